"""Locations of a study's database and model: names with URL characters, moved folders, runs that share a database."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from dasearch.cli import run_command
from dasearch.errors import NoStudies, StoreError
from dasearch.folders import sha256
from dasearch.search.events import Finished, Listener
from dasearch.search.store import Artifact, open_store
from dasearch.search.store.engines import shown
from dasearch.search.study import Study
from tests.report.stored import NAME, empty_study, evaluate
from tests.training.studies import small_study

SIGNS = ("a b", "50%", "a%20b", "what?", "x#y", "a@b:c", "{x}", "[y]", "ü", "a&b=c", "'quoted'", "q?timeout=3")


@pytest.mark.parametrize("name", SIGNS)
def test_an_output_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    with closing(empty_study(tmp_path / name)) as store:
        evaluate(store, "SSS-SSS", 0.5)
        assert shown(store.url) == str(tmp_path / name / "dasearch.db")
    assert {path.name for path in tmp_path.iterdir()} == {name}
    assert (tmp_path / name / "dasearch.db").is_file()
    with closing(open_store(None, str(tmp_path / name), create=False)) as store:
        assert store.study_names() == [NAME]
        assert store.damage() is None


@pytest.mark.parametrize("name", SIGNS)
def test_a_database_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.db"
    open_store(str(path), "", create=True).close()
    assert path.is_file()
    assert all(one.name.removeprefix(".").startswith(path.name) for one in tmp_path.iterdir())
    with closing(open_store(str(path), "", create=False)) as store:
        assert store.study_names() == []
    with pytest.raises(NoStudies) as refused:
        open_store(str(tmp_path / f"{name}-other.db"), "", create=False)
    assert str(tmp_path / f"{name}-other.db") in str(refused.value)


def test_a_url_with_a_query_names_its_file(tmp_path: Path) -> None:
    empty_study(tmp_path).close()
    url = f"sqlite:///{tmp_path / 'dasearch.db'}?timeout=30"
    with closing(open_store(url, "", create=False)) as store:
        assert store.study_names() == [NAME]
        assert store.optuna_storage().get_all_studies()
    with pytest.raises(NoStudies, match=r"there is no database .*/absent\.db; check --storage"):
        open_store(f"sqlite:///{tmp_path / 'absent.db'}?timeout=30", "", create=False)
    assert not (tmp_path / "absent.db").exists()


@pytest.mark.parametrize("place", ["~/dasearch.db", "sqlite:///~/dasearch.db", "sqlite:///~/dasearch.db?timeout=9"])
def test_a_tilde_is_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    open_store(place, "", create=True).close()
    assert (tmp_path / "home" / "dasearch.db").is_file()
    assert not (tmp_path / "~").exists()
    open_store(place, "", create=False).close()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:sesame/7@127.0.0.1/db",
        "postgresql://me:12/sesame@127.0.0.1/db",
        "postgresql://me:12?sesame@127.0.0.1/db",
        "postgresql://me:sesame@x@127.0.0.1:1/db",
        "postgresql://me:open sesame/7@127.0.0.1/db",
    ],
)
def test_a_password_with_a_sign_of_urls_is_not_shown(url: str) -> None:
    try:
        said = shown(url)
    except StoreError as refused:
        said = str(refused)
    assert "sesame" not in said
    assert said.startswith(("postgresql+psycopg://me:***@127.0.0.1", "the password of postgresql://***@"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "--output", "postgresql://me:sesame@here/db"],
        ["status", "postgresql://me:sesame@here/db"],
        ["status", "toy", "postgresql://me:sesame@here/db"],
        ["status", "--storage", "nosuch://me:sesame@here/db"],
        ["run", "postgresql://me:sesame@here/db"],
        ["run", "--warm-start", "postgresql://me:sesame@here/db:toy", "--dry-run"],
        ["export", "postgresql://me:sesame@here/db"],
        ["data", "stats", "postgresql://me:sesame@here/db"],
        ["run", "--set", "output=postgresql://me:sesame@here/db", "--set", "nothing=1"],
        ["evaluate", "postgresql://me:sesame@here/db"],
    ],
)
def test_no_refusal_shows_a_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(arguments) != 0
    found = capsys.readouterr()
    assert found.err.startswith("dasearch: ")
    assert "sesame" not in found.out + found.err


def saved_model(output: Path, text: str = "weights", *, path: str | None = None) -> Path:
    """A study that is done, and its model; ``path``: as the database keeps it."""
    model = output / NAME / "model"
    with closing(empty_study(output)) as store:
        model.mkdir(parents=True)
        (model / "model.safetensors").write_text(text)
        store.finish(NAME, [], [Artifact("model", path or f"{NAME}/model", sha256(model))])
    return model


def found(output: Path, storage: Path | None = None) -> Path:
    with closing(open_store(storage and str(storage), str(output), create=False)) as store:
        (artifact,) = store.artifacts(NAME)
    return Path(artifact.path)


@pytest.mark.parametrize("written", [None, "old/toy/model", "absolute"])
def test_a_model_is_found_from_anywhere_and_after_a_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str | None
) -> None:
    path = str(tmp_path / "old" / NAME / "model") if written == "absolute" else written
    model = saved_model(tmp_path / "old", path=path)
    monkeypatch.chdir(tmp_path)
    assert found(Path("old")).samefile(model)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert found(Path("../old")).samefile(model)
    assert found(Path("runs"), tmp_path / "old" / "dasearch.db").samefile(model)
    shutil.move(tmp_path / "old", tmp_path / "new")
    assert found(tmp_path / "new") == tmp_path / "new" / NAME / "model"
    assert found(Path("runs"), tmp_path / "new" / "dasearch.db").samefile(tmp_path / "new" / NAME / "model")


def test_a_model_is_that_of_its_own_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved_model(tmp_path / "runs", "another study's of the same name")
    own = saved_model(tmp_path / "mine")
    assert found(Path("runs"), tmp_path / "mine" / "dasearch.db").samefile(own)


def test_a_database_apart_from_its_output(tmp_path: Path) -> None:
    saved_model(tmp_path / "old")
    with closing(sqlite3.connect(tmp_path / "old" / "dasearch.db")) as connection:
        connection.execute("vacuum into ?", (str(tmp_path / "kept.db"),))
    assert found(Path("runs"), tmp_path / "kept.db") == tmp_path / "old" / NAME / "model"
    shutil.move(tmp_path / "old", tmp_path / "new")
    assert found(tmp_path / "new", tmp_path / "kept.db") == tmp_path / "new" / NAME / "model"


def test_a_model_that_is_gone_is_looked_for_in_the_output_folder(tmp_path: Path) -> None:
    shutil.rmtree(saved_model(tmp_path))
    assert found(tmp_path) == tmp_path / NAME / "model"


def test_the_database_keeps_no_place_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A moved study: export, doctor and status locate its model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(small_study(tmp_path, output="runs").yaml())
    assert run_command(["run", "toy.yaml", "--budget", "2"]) == 0
    with closing(sqlite3.connect(tmp_path / "runs" / "dasearch.db")) as connection:
        assert connection.execute("select path from dasearch_artifact").fetchall() == [("toy/model",)]
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "runs", tmp_path / "elsewhere" / "old runs")
    monkeypatch.chdir(tmp_path / "elsewhere")
    for command in ("export toy --format layout", "doctor toy", "status toy", "report toy"):
        assert run_command([*command.split(), "--output", "old runs"]) == 0


def test_one_runner_a_study_of_a_file_whatever_its_output(tmp_path: Path) -> None:
    path = tmp_path / "shared.db"
    (tmp_path / "link.db").symlink_to(path)
    with closing(open_store(str(path), "one", create=True)) as first:
        with first.only_runner(NAME):
            for place in (str(path), f"sqlite:///{path}?timeout=5", str(tmp_path / "link.db")):
                with closing(open_store(place, "two", create=True)) as second:
                    with pytest.raises(StoreError, match="another process runs this study"), second.only_runner(NAME):
                        pass
                    with second.only_runner("other"):
                        pass
        with closing(open_store(str(path), "two", create=True)) as second, second.only_runner(NAME):
            pass


def test_two_runs_of_a_shared_database_meet_in_one_sentence(tmp_path: Path) -> None:
    """The second does not touch the first's running trial."""
    storage, hit = str(tmp_path / "shared.db"), []

    class Second(Listener):
        def finished(self, finished: Finished) -> None:
            if not hit:
                other = small_study(tmp_path, output=str(tmp_path / "two"))
                with pytest.raises(StoreError, match="another process runs this study"):
                    Study(other, storage=storage).run(train=False)
                hit.append(finished)

    settings = small_study(tmp_path, output=str(tmp_path / "one"))
    status = Study(settings, storage=storage).run(2, train=False, listener=Second())
    assert len(status.completed) == 2
    assert hit
