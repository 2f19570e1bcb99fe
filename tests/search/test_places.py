"""Where a study's database and model lie: names that URLs have signs for, folders that move, runs that share a database."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from dasearch.cli import run_command
from dasearch.errors import NoStudies, StoreError
from dasearch.search.store import open_store
from dasearch.search.store.engines import shown
from tests.report.stored import NAME, empty_study, evaluate

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
