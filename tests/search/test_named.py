"""A study by its name: which file or stored study is meant, and with which settings."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from dasearch.cli import run_command
from dasearch.config import Override, StudySettings, changed, load_study, value_at
from dasearch.errors import DataError, StoreError, StudyError
from dasearch.report.view import read_view
from dasearch.search.named import named_dataset, named_study, resumable, resumed_study
from dasearch.search.store import open_store
from dasearch.search.study import STARTED_IN, Study
from dasearch.search_space import load_search_space
from tests.training.studies import small_study


def keep(
    settings: StudySettings, *, output: str | None = None, storage: str | None = None, started_in: Path | None = None
) -> None:
    """Begin a study in a database, without a training; without a folder as earlier versions did."""
    place = {} if started_in is None else {STARTED_IN: str(started_in)}
    space = load_search_space("darec", backbone_layers=2)
    with closing(open_store(storage, output or settings.output, create=True)) as store:
        store.begin(
            settings.name,
            settings=settings.model_dump(mode="json"),
            space=space.record(),
            space_hash=space.hash,
            dataset={"name": "toy", "fingerprint": "-", "statistics": {}} | place,
            versions={},
        )


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_stored_study_is_known_by_its_name(here: Path) -> None:
    own = small_study(here, name="s1", seed=7, trial={"lr": 0.02}, output="runs")
    keep(own)
    found = named_study("s1")
    assert found.study.settings == own
    assert found.recalled == "study s1 with its own settings of runs/dasearch.db"


def test_overrides_stand_on_recalled_settings(here: Path) -> None:
    keep(small_study(here, name="s1", seed=7, output="runs"))
    settings = named_study("s1", ["trial.epochs=5", Override.option("--budget", "search.budget", 9)]).study.settings
    assert (settings.seed, settings.trial.epochs, settings.search.budget) == (7, 5, 9)
    with pytest.raises(StudyError, match=r"^--set trial\.epochs=x: trial\.epochs: input should be a valid integer"):
        named_study("s1", ["trial.epochs=x"])
    assert named_study("s1", ["name=s2"]).study.settings.name == "s2"


def test_what_is_resumed_is_stored(here: Path) -> None:
    """By its name or as the only unfinished one, never from a file."""
    with pytest.raises(StudyError, match="there is no study 'quickstart' to resume; no studies are under runs yet"):
        resumed_study("quickstart")
    keep(own := small_study(here, name="s1", seed=7, output="runs"))
    (here / "s1").write_text("a file of its name")
    for name in ("s1", None):
        found = resumed_study(name, ["search.budget=9"])
        assert found.study.settings == own.model_copy(update={"search": own.search.model_copy(update={"budget": 9})})
        assert found.recalled == "study s1 with its own settings of runs/dasearch.db"
        assert resumable(found.study)
    assert not resumable(Study(small_study(here, name="s2", output="runs")))
    keep(small_study(here, name="s2", output="runs"))
    with pytest.raises(StudyError, match="has 2 unfinished studies: s1, s2; name one, as in `dasearch resume s2`"):
        resumed_study(None)
    with pytest.raises(StudyError, match=r"no study 's3' to resume; runs/dasearch\.db has none of that name"):
        resumed_study("s3")


def test_a_stored_study_goes_before_the_shipped_file_of_its_name(here: Path) -> None:
    file = load_study("quickstart")
    keep(load_study("quickstart", ["search.budget=3", "trial.epochs=9", "seed=5"]))
    found = named_study("quickstart", ["seed=5"])
    assert found.study.settings == load_study("quickstart", ["search.budget=3", "trial.epochs=9", "seed=5"])
    assert found.recalled == (
        "study quickstart with its own settings of runs/dasearch.db, which differ from its file's: search.budget=3 "
        "trial.epochs=9; for the file's, --set name=NEW"
    )
    assert named_study("quickstart", ["name=other"]).study.settings == file.model_copy(update={"name": "other"})
    assert named_study("studies/quickstart.yaml").study.settings == file


def test_nothing_is_said_of_settings_that_are_the_files(here: Path) -> None:
    keep(load_study("quickstart"))
    assert named_study("quickstart", ["search.budget=50"]).recalled is None
    assert named_study("idle").recalled is None  # shipped and not stored


def test_few_of_many_differences_are_said(here: Path) -> None:
    changes = [f"backbone.tiny.{key}=48" for key in ("width", "ffn", "steps", "pool", "batch_size", "row_tokens")]
    keep(load_study("quickstart", [*changes, "seed=9", "search.budget=3"]))
    recalled = named_study("quickstart").recalled
    assert recalled is not None
    assert " and 2 more; for the file's" in recalled
    assert recalled.count("=") == 6 + 1


def test_a_file_goes_before_a_stored_study(here: Path) -> None:
    keep(small_study(here, name="s1", seed=7, output="runs"))
    file = small_study(here, name="s1", seed=1, output="runs")
    for name in ("s1.yaml", "s1"):
        (here / name).write_text(file.yaml())
        assert named_study(name).study.settings == file
        assert named_study(name).recalled is None
    assert named_study(str(here / "s1.yaml"), output="elsewhere").study.settings.output == "elsewhere"


def test_output_and_storage_say_where_to_look(here: Path) -> None:
    keep(small_study(here, name="s1", seed=1, output="runs"))
    keep(small_study(here, name="s1", seed=2, output="other runs"))
    keep(small_study(here, name="s1", seed=3, output="runs"), storage="third.db")
    assert named_study("s1").study.settings.seed == 1
    assert named_study("s1", output="other runs").study.settings.seed == 2
    assert named_study("s1", ["output=other runs"]).study.settings.seed == 2
    third = named_study("s1", storage="third.db")
    assert (third.study.settings.seed, third.study.storage) == (3, "third.db")
    assert third.recalled == "study s1 with its own settings of third.db"


def test_a_study_in_a_folder_that_was_moved_goes_on_there(here: Path) -> None:
    keep(small_study(here, name="s1"))  # an absolute folder
    (here / "runs").rename(here / "moved")
    study = named_study("s1", output="moved").study
    assert study.settings.output == "moved"
    (here / "moved").rename(here / "runs")
    (here / "deeper").mkdir()
    assert named_study("s1").study.settings.output == str(here / "runs")  # where it is still, as it was written


def test_an_unknown_study_is_refused_with_what_is_there(here: Path) -> None:
    said = r"there is no study 's2'; no studies are under runs yet; give a YAML file, a stored study .*, or one of .*quickstart"
    with pytest.raises(StudyError, match=said):
        named_study("s2")
    keep(small_study(here, name="long-name", output="runs"))
    with pytest.raises(
        StudyError, match=r"'long-nam'; did you mean long-name\?; runs/dasearch.db has none of that name"
    ):
        named_study("long-nam")
    with pytest.raises(StudyError, match=r"there is no study 'quickstrat'; did you mean quickstart\?"):
        named_study("quickstrat")
    with pytest.raises(StudyError, match=r"there is no study file 's2\.yaml'"):
        named_study("s2.yaml")
    assert not (here / "s2").exists()


def test_a_database_that_cannot_be_read_is_no_missing_study(here: Path) -> None:
    (here / "runs").mkdir()
    (here / "runs" / "dasearch.db").write_text("no database " * 100)
    with pytest.raises(StoreError, match="cannot be used as a study database"):
        named_study("quickstart")


def test_the_data_of_a_stored_study(here: Path) -> None:
    keep(small_study(here, name="s1", output="runs"))
    assert len(named_dataset("s1").users) == 60
    assert len(named_dataset("s1", ["data.min_user_interactions=6"]).users) < 60
    with pytest.raises(DataError, match="there is no data set or folder 's2'"):
        named_dataset("s2")


@pytest.mark.parametrize("key", ["data.source", "data.items", "encoder.file", "backbone.name", "space.name"])
def test_relative_paths_are_those_of_the_folder_where_a_study_was_started(
    key: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = changed(small_study(here, name="s1", output="runs"), {key: "mine/own.x"}, source="x")
    keep(settings, started_in=here)
    (here / "mine").mkdir()
    (here / "mine" / "own.x").touch()
    assert named_study("s1").study.settings == settings
    elsewhere = here / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    said = (
        rf"^there is no mine/own\.x here: study s1 was started in {here}, which has its {key}; run the command there$"
    )
    with pytest.raises(StudyError, match=said):
        named_study("s1", output="../runs")
    (elsewhere / "mine").mkdir()
    (elsewhere / "mine" / "own.x").touch()
    assert value_at(named_study("s1", output="../runs").study.settings.model_dump(), key) == "mine/own.x"


def test_a_name_is_no_path_of_the_folder_where_a_study_was_started(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(load_study("quickstart"), started_in=here)
    (here / "complete-journey").mkdir()
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert named_study("quickstart", output="../runs").study.settings.data.source == "complete-journey"


def test_the_folder_of_a_study_s_start_is_kept_and_not_shown(here: Path) -> None:
    settings = small_study(here, name="s1", output="runs")
    Study(settings).run(1, train=False)
    with closing(open_store(None, "runs", create=False)) as store:
        assert store.begun("s1").dataset[STARTED_IN] == str(here)
        assert set(read_view(store, "s1").dataset) == {"name", "fingerprint", "statistics"}


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["status"], "s1: search"),
        (["report"], "report: other runs/s1/report.html"),
        (["doctor"], "trials: none runs"),
        (["compare", "s2", "--storage", "other runs/dasearch.db"], "s1"),
    ],
)
def test_a_file_says_where_its_study_is(
    command: list[str], shown: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = small_study(here, name="s1", output="other runs")
    keep(settings)
    keep(settings.model_copy(update={"name": "s2"}))
    (here / "mine.yaml").write_text(settings.yaml())
    name, *options = command
    run_command([name, "mine.yaml", *options])
    assert shown in capsys.readouterr().out
    assert run_command([name, "mine.yaml", *options[:1], "--output", "runs"]) == 2
    assert "runs" in capsys.readouterr().err


def test_a_study_that_is_given_by_a_file_says_how_to_go_on_with_its_own_settings(here: Path) -> None:
    settings = small_study(here, name="s1", output="runs")
    Study(settings).run(1, train=False)
    (here / "s1.yaml").write_text(settings.yaml())
    with pytest.raises(StudyError, match=r"began with another seed; restore it .*`dasearch resume s1` goes on"):
        named_study("s1.yaml", ["seed=4"]).study.run(1, train=False)
    with pytest.raises(StudyError, match=r"began with another seed"):
        named_study("s1", ["seed=4"]).study.run(1, train=False)
    assert named_study("s1").study.run(2, train=False).completed[1].number == 1
