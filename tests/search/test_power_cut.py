"""A power cut may take the last commits back: the database is then older than the files beside it."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from dasearch.search.events import Listener, Training
from dasearch.search.store import open_store
from dasearch.search.study import Study
from dasearch.training.progress import Epoch
from tests.report.stored import NAME, empty_study
from tests.search.kills import Ending, Place, differences, ending

SEARCH = {"budget": 6, "confirm_seeds": 2, "batch": 1}


class Cut(Listener):
    """Keeps a copy of the database of one epoch of the study, and interrupts it at a later one."""

    def __init__(self, database: Path, kept: int, last: int | None) -> None:
        self.database, self.kept, self.last = database, kept, last
        self.copy = database.with_suffix(".copy")
        self.epochs = 0

    def epoch(self, training: Training, epoch: Epoch) -> None:
        self.epochs += 1
        if self.epochs == self.kept:
            with closing(sqlite3.connect(self.database)) as here, closing(sqlite3.connect(self.copy)) as there:
                here.backup(there)
        if self.epochs == self.last:
            raise KeyboardInterrupt

    def restore(self) -> None:
        for end in ("", "-wal", "-shm"):
            Path(f"{self.database}{end}").unlink(missing_ok=True)
        self.copy.rename(self.database)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Ending:
    place = Place(tmp_path_factory.mktemp("straight"))
    Study(place.settings(search=SEARCH)).run()
    return ending(place)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kept", "last"),
    [(0.1, 0.25), (0.2, 0.6), (0.45, 0.8), (0.7, None)],
    ids=["search", "confirmation", "final", "done"],
)
def test_a_study_ends_the_same_with_its_last_commits_gone(
    tmp_path: Path, straight: Ending, kept: float, last: float | None
) -> None:
    place, whole = Place(tmp_path), len(straight.curves)
    settings = place.settings(search=SEARCH)
    cut = Cut(tmp_path / "runs" / "dasearch.db", round(kept * whole), None if last is None else round(last * whole))
    if last is None:
        Study(settings).run(listener=cut)
    else:
        with pytest.raises(KeyboardInterrupt):
            Study(settings).run(listener=cut)
    cut.restore()
    with closing(place.store()) as store:
        assert sum(map(len, store.epochs_by_run(NAME).values())) < cut.epochs
        assert store.progress(NAME).phase != "done"
    Study(settings).run()
    assert differences(ending(place), straight) == []


def test_the_end_of_a_study_is_on_the_disk(tmp_path: Path) -> None:
    """In the file itself, without its log: the test split is not read again after a power cut."""
    with closing(empty_study(tmp_path / "runs")) as store:
        store.finish(NAME, [], [])
        shutil.copy(tmp_path / "runs" / "dasearch.db", tmp_path / "copy.db")
    with closing(open_store(str(tmp_path / "copy.db"), "", create=False)) as store:
        assert store.progress(NAME).phase == "done"


def test_both_engines_wait_for_the_disk_at_checkpoints_alone(tmp_path: Path) -> None:
    with closing(empty_study(tmp_path)) as store:
        for engine in (store._engine, store.optuna_storage().engine):
            with engine.connect() as connection:
                assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 1
                assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
