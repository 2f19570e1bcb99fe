"""Times of trials, independent of the time zones of the writing and the reading machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import optuna
import pytest

from dasearch.search.store import open_store
from tests.report.stored import NAME, empty_study, evaluate, optuna_study

TOKYO, NEW_YORK = "Asia/Tokyo", "America/New_York"


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Moves this machine to a time zone."""

    def move(zone: str) -> None:
        monkeypatch.setenv("TZ", zone)
        time.tzset()

    yield move
    monkeypatch.undo()
    time.tzset()


def times(folder: Path) -> list[datetime]:
    with closing(open_store(None, str(folder), create=False)) as store:
        (trial, *_) = store.trials(NAME)
        assert trial.started is not None
        assert trial.ended is not None
        return [trial.started, trial.ended]


def test_times_are_those_of_the_machine_that_wrote_them(tmp_path: Path, stand_in: Callable[[str], None]) -> None:
    stand_in(TOKYO)
    before = datetime.now(UTC)
    with closing(empty_study(tmp_path)) as store:
        evaluate(store, "SSS-SSS", 0.1)
        after = datetime.now(UTC)
        for zone in (TOKYO, NEW_YORK, "UTC"):
            stand_in(zone)
            began, ended = times(tmp_path)
            assert before <= began <= ended <= after


def test_a_trial_that_another_zone_ended(tmp_path: Path, stand_in: Callable[[str], None]) -> None:
    """As where the clock is set back an hour meanwhile, or another machine finds the trial lost."""
    stand_in(NEW_YORK)
    with closing(empty_study(tmp_path)) as store:
        study = optuna_study(store)
        study.enqueue_trial({})
        before = datetime.now(UTC)
        trial = study.ask()
        stand_in(TOKYO)
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        after = datetime.now(UTC)
    began, ended = times(tmp_path)
    assert before <= began <= ended <= after


@pytest.mark.parametrize("beats", [True, False])
def test_when_a_trial_was_last_heard_of(tmp_path: Path, stand_in: Callable[[str], None], beats: bool) -> None:
    """Databases keep heartbeats in UTC, to the second; before the first one the trial's beginning counts."""
    stand_in(TOKYO)
    before = datetime.now(UTC).replace(microsecond=0)
    with closing(empty_study(tmp_path)) as store:
        trial = optuna_study(store).ask()
        if beats:
            store.optuna_storage().record_heartbeat(trial._trial_id)
        assert before <= store.running(NAME)[0] <= datetime.now(UTC)
