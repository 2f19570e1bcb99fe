"""A study that is killed before a state change, whichever it is, comes out as the one that nothing kills."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, Engine, event

from dasearch.search import loop, runner
from dasearch.search.loop import Search
from dasearch.search.store import RETRY
from dasearch.training.materials import StudyContext
from tests.search.test_batches_of_trials import evaluated, search, stub, study  # noqa: F401
from tests.search.trainings import Stub

STRIDE = 67  # of the moments that are tried; all of them are some 200 a study
SOON = 9  # state changes after it goes on, it is killed again


class Killed(BaseException):
    """Nothing is written after it."""


class Moments:
    """Counts the state changes of the driver, and kills it before one of them."""

    def __init__(self, last: int | None = None) -> None:
        self.last, self.count = last, 0

    def __call__(self, connection: Connection) -> None:
        if threading.current_thread() is not threading.main_thread():  # a heartbeat
            return
        self.count += 1
        if self.last is not None and self.count > self.last:
            connection.connection.rollback()  # as the system does for a process that is gone
            raise Killed


@contextmanager
def counted(moments: Moments) -> Iterator[None]:
    event.listen(Engine, "commit", moments)
    try:
        yield
    finally:
        event.remove(Engine, "commit", moments)


def once(prepare: Callable[..., StudyContext]) -> Callable[..., StudyContext]:
    """Every study of a test is prepared alike."""
    found: list[StudyContext] = []

    def prepared(*args: Any, **settings: Any) -> StudyContext:
        if not found:
            found.append(prepare(*args, **settings))
        return found[0]

    return prepared


@pytest.mark.parametrize(("batch", "pending"), [(3, 2)])
def test_killed_before_any_state_change(
    tmp_path: Path,
    stub: Stub,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
    pending: int,
) -> None:
    monkeypatch.setattr(Search, "_released_if_interrupted", lambda search: nullcontext())
    monkeypatch.setattr(runner, "prepare_study", once(runner.prepare_study))
    every = Moments()
    with counted(every):
        straight = evaluated(search(study(tmp_path / "straight", batch, 8, pending=pending)))
    for last in range(batch + pending, every.count, STRIDE):
        settings = study(tmp_path / str(last), batch, 8, pending=pending)
        stub.epochs.clear()
        with counted(Moments(last)), pytest.raises(Killed):
            search(settings)
        with counted(Moments(SOON)), pytest.raises(Killed):
            search(settings)
        assert evaluated(search(settings)) == straight, f"killed after {last} state changes"
        assert set(Counter(stub.epochs).values()) == {1}


@pytest.mark.parametrize("step", ["tell", "RETRY"])
def test_what_is_given_back_is_queued_once_wherever_a_kill_falls(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """A trial without complete parameters is only ended."""
    able = {"site": optuna.distributions.CategoricalDistribution(["serial", "parallel"])}
    found = optuna.create_study()
    for _ in range(2):
        found.ask(able)
    found.ask()

    def running() -> list[FrozenTrial]:
        return found.get_trials(states=(TrialState.RUNNING,))

    with monkeypatch.context() as patched:
        patched.setattr(*{"tell": (found, "tell", killed), "RETRY": (type(RETRY), "__call__", killed)}[step])
        with pytest.raises(Killed):
            loop.give_back(found, running(), Asked(able))  # type: ignore[arg-type]
    assert len(running()) == 3  # what is queued already is running still
    loop.give_back(found, running(), Asked(able))  # type: ignore[arg-type]
    assert running() == []
    waiting = found.get_trials(states=(TrialState.WAITING,))
    assert [trial.system_attrs["retry_history"] for trial in waiting] == [[0], [1]]


class Asked(NamedTuple):
    """A domain with only the members that are used."""

    distributions: dict[str, Any]


def killed(*args: object, **settings: object) -> None:
    raise Killed
