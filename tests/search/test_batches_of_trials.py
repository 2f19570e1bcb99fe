"""Batches of trials: asked for together, trained together, told in order; resumed after interruptions and errors."""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import pytest

from dasearch.bayes import PRSampler, curve_mean
from dasearch.config import StudySettings
from dasearch.errors import StudyError
from dasearch.layout import PLACEMENTS
from dasearch.search import loop
from dasearch.search.events import Finished, Listener, Training
from dasearch.search.store import Store, open_store
from dasearch.search.study import Status, Study
from dasearch.training.progress import Epoch
from tests.search.trainings import Stub, curve
from tests.training.studies import small_settings, small_study

NAMES = [choice.name for choice in PLACEMENTS]


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    return stubbed(monkeypatch)


def stubbed(monkeypatch: pytest.MonkeyPatch) -> Stub:
    """Trainings that cost nothing, in a study that ends with its search."""
    found = Stub()
    monkeypatch.setattr("dasearch.search.objective.train_together", found)
    monkeypatch.setattr("dasearch.search.objective.candidates_at_once", lambda *_: 4)
    monkeypatch.setattr("dasearch.search.runner.confirm", lambda *_: [])
    return found


class Straight(NamedTuple):
    """A study that nothing interrupts: eight evaluations, three at a time."""

    evaluated: list[tuple[str, float | None]]
    batches: list[list[str]]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Straight:
    with pytest.MonkeyPatch.context() as patched:
        found = stubbed(patched)
        return Straight(evaluated(search(study(tmp_path_factory.mktemp("straight"), 3, 8))), found.batches)


def search(settings: StudySettings, listener: Listener | None = None) -> Status:
    return Study(settings).run(train=False, listener=listener)


def study(
    folder: Path, batch: int | str, budget: int = 7, *, pending: int | str = "auto", **changes: Any
) -> StudySettings:
    return small_study(folder, search={"batch": batch, "budget": budget, "pending": pending}, **changes)


def evaluated(status: Status) -> list[tuple[str, float | None]]:
    return [(str(trial.layout), trial.score) for trial in status.completed]


class Stops(Listener):
    """Interrupts at an epoch, or at the end, of the training at one position."""

    def __init__(self, place: int, epoch: int | None) -> None:
        self.place, self.at = place, epoch

    def epoch(self, training: Training, epoch: Epoch) -> None:
        if (training.index, epoch.number) == (self.place, self.at):
            raise KeyboardInterrupt

    def finished(self, finished: Finished) -> None:
        if self.at is None and finished.training.index == self.place:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("batch", "sizes"), [(1, [1] * 7), (3, [3, 3, 1]), ("auto", [4, 3]), (8, [7])])
def test_a_batch_is_of_distinct_layouts_and_the_budget_is_exact(
    tmp_path: Path, stub: Stub, batch: int | str, sizes: list[int]
) -> None:
    status = search(study(tmp_path, batch))
    assert [len(together) for together in stub.batches] == sizes
    assert len(status.completed) == len(status.trials) == 7
    assert len({trial.layout for trial in status.trials}) == 7
    assert [layout for together in stub.batches for layout in together] == [str(t.layout) for t in status.trials]
    assert [trial.seconds for trial in status.completed] == [0.5] * 7


def test_one_at_a_time_is_a_plain_ask_and_tell(tmp_path: Path, stub: Stub) -> None:
    """Against Optuna's own loop, in memory."""
    settings = study(tmp_path, 1)
    space = Study(settings).space()
    distribution = optuna.distributions.CategoricalDistribution(NAMES)
    names = dict.fromkeys(space.free, distribution)
    plain = optuna.create_study(
        direction="maximize", sampler=PRSampler(seed=0, n_startup=3, search_space=names, signal=curve_mean)
    )
    expected = []
    for _ in range(7):
        trial = plain.ask()
        layout = space.decode({name: trial.suggest_categorical(name, NAMES) for name in space.free})
        values = curve(layout, 0)
        for number, value in enumerate(values):
            trial.report(value, number)
        plain.tell(trial, values[-1])
        expected.append((str(layout), values[-1]))
    assert evaluated(search(settings)) == expected


@pytest.mark.parametrize(("place", "epoch"), [(4, 0), (5, 0), (5, 1), (5, None), (6, None)])
def test_interrupted_in_a_batch_each_goes_on_from_its_own_epoch(
    tmp_path: Path, stub: Stub, straight: Straight, place: int, epoch: int | None
) -> None:
    settings = study(tmp_path, 3, 8)
    with pytest.raises(KeyboardInterrupt):
        search(settings, Stops(place, epoch))
    assert evaluated(search(settings)) == straight.evaluated
    assert set(Counter(stub.epochs).values()) == {1}  # no epoch is trained twice
    first, second, third = straight.batches
    left = second if epoch is not None else second[place - 3 :]
    assert stub.batches == [first, second, *([left] if left else []), third]


@pytest.mark.parametrize("proposal", [4, 6])
def test_interrupted_while_it_asks_a_batch_is_filled_up(
    tmp_path: Path, stub: Stub, straight: Straight, monkeypatch: pytest.MonkeyPatch, proposal: int
) -> None:
    calls, add = iter(range(1, 100)), Store.add_proposal

    def interrupted(self: Store, *record: Any) -> None:
        if next(calls) == proposal:
            raise KeyboardInterrupt
        add(self, *record)

    monkeypatch.setattr(Store, "add_proposal", interrupted)
    settings = study(tmp_path, 3, 8)
    with pytest.raises(KeyboardInterrupt):
        search(settings)
    assert evaluated(search(settings)) == straight.evaluated
    assert stub.batches == straight.batches


def test_a_diverging_candidate_is_pruned_alone(tmp_path: Path, stub: Stub) -> None:
    stub.diverges = lambda layout: layout == "PPP-PPP"
    heard: list[tuple[int, float | None]] = []

    class Ears(Listener):
        def finished(self, finished: Finished) -> None:
            heard.append((finished.training.index, finished.score))

    status = search(study(tmp_path, 4), Ears())
    assert [(str(t.layout), t.state) for t in status.trials if t.state != "complete"] == [("PPP-PPP", "pruned")]
    assert len(status.completed) == 7
    assert [len(together) for together in stub.batches] == [4, 4]
    assert [place for place, _ in heard] == [1, 2, 3, 4, 4, 5, 6, 7]
    assert heard[1] == (2, None)


def test_a_batch_too_large_for_the_machine_is_trained_one_by_one(tmp_path: Path, stub: Stub) -> None:
    def crowded(together: list[str], layout: str, epoch: int) -> None:
        if len(together) > 2 and epoch == 1:
            raise MemoryError("too much\nSearch for it elsewhere")

    said: list[str] = []

    class Ears(Listener):
        def says(self, text: str) -> None:
            said.append(text)

    stub.fault = crowded
    status = search(study(tmp_path, 3, 4), Ears())
    assert said[-1] == "3 trainings side by side failed (MemoryError: too much); they continue one by one"
    assert [trial.state for trial in status.trials] == ["complete"] * 4
    assert [len(together) for together in stub.batches] == [3, 1, 1, 1, 1]
    assert set(Counter(stub.epochs).values()) == {1}


def breaking(guilty: str) -> Callable[[list[str], str, int], None]:
    def broken(together: list[str], layout: str, epoch: int) -> None:
        if guilty in ("every", layout):
            raise ValueError("no room")

    return broken


def reasons(settings: StudySettings) -> list[str]:
    store = open_store(None, settings.output, create=False)
    found = [trial.attributes["reason"] for trial in store.trials("toy") if trial.state == "pruned"]
    store.close()
    return found


def test_a_trial_that_breaks_costs_itself_alone(tmp_path: Path, stub: Stub) -> None:
    guilty = "PPP-PPP"
    stub.fault = breaking(guilty)
    said: list[str] = []

    class Ears(Listener):
        def says(self, text: str) -> None:
            said.append(text)

    settings = study(tmp_path, 3, 4)
    status = search(settings, Ears())
    states = {str(t.layout): t.state for t in status.trials}
    assert states.pop(guilty) == "pruned"
    assert set(states.values()) == {"complete"}
    assert len(status.completed) == len({t.layout for t in status.completed}) == 4
    assert set(Counter(stub.epochs).values()) == {1}
    assert reasons(settings) == ["ValueError: no room"]
    assert said[-1] == "given up: ValueError: no room"


def test_an_error_before_any_trial_came_to_its_end_is_the_studys(tmp_path: Path, stub: Stub) -> None:
    stub.fault = breaking("every")
    settings = study(tmp_path, 1, 4)
    with pytest.raises(ValueError, match="no room"):
        search(settings)
    with pytest.raises(ValueError, match="no room"):  # the first one again, which is given up, and then another
        search(settings)
    assert reasons(settings) == ["ValueError: no room"]
    stub.fault = breaking("none")
    assert len(search(settings).completed) == 4


@pytest.mark.slow
@pytest.mark.parametrize("pending", [2, 3])
@pytest.mark.parametrize("interruption", [None, (2, 0), (3, 1), (5, None), (6, 1)])
def test_batches_on_their_way_are_told_in_order(
    tmp_path: Path, stub: Stub, pending: int, interruption: tuple[int, int | None] | None
) -> None:
    """Each is asked for with those before it pending, whatever was interrupted."""
    settings = study(tmp_path / "own", 1, 8, pending=pending)
    if interruption is not None:
        with pytest.raises(KeyboardInterrupt):
            search(settings, Stops(*interruption))
    found = search(settings)
    assert len(found.completed) == 8
    straight = search(study(tmp_path / "straight", 1, 8, pending=pending))
    assert evaluated(found) == evaluated(straight)
    one_by_one = search(study(tmp_path / "alone", 1, 8))
    assert evaluated(found) != evaluated(one_by_one)


def test_twins_that_were_enqueued_are_trained_once(tmp_path: Path, stub: Stub) -> None:
    settings = study(tmp_path, 4, 1)
    search(settings)
    found = optuna.load_study(study_name="toy", storage=f"sqlite:///{settings.output}/dasearch.db")
    twin = dict.fromkeys(found.trials[0].params, "parallel")
    for params in (found.trials[0].params, twin, twin):
        found.enqueue_trial(params)
    status = search(study(tmp_path, 4, 5))
    assert len(status.completed) == len({t.layout for t in status.completed}) == 5
    assert [t.state for t in status.trials].count("pruned") == 2


def test_a_space_smaller_than_a_batch_ends(tmp_path: Path, stub: Stub) -> None:
    space = tmp_path / "two.yaml"
    space.write_text(
        "name: two\nmodel: darec\nsites: [causal, context, recommendation]\n"
        'fixed: {"*.context": serial, "*.recommendation": parallel}\n'
    )
    status = search(study(tmp_path, 8, 9, space={"name": str(space)}))
    assert [len(together) for together in stub.batches] == [4]
    assert len(status.completed) == 4


def test_a_study_without_the_setting_goes_on(tmp_path: Path, stub: Stub) -> None:
    """As 1e032b9 left it: trained one by one, interrupted in its third trial."""
    settings = study(tmp_path, 1, 8)
    with pytest.raises(KeyboardInterrupt):
        search(settings, Stops(3, 0))
    before = [together[0] for together in stub.batches]
    with sqlite3.connect(f"{settings.output}/dasearch.db") as connection:
        connection.execute("DELETE FROM trial_user_attributes WHERE key = 'batch'")
        connection.execute("UPDATE dasearch_study SET settings = json_remove(settings, '$.search.batch')")
    status = search(study(tmp_path, "auto", 8))
    assert len(status.completed) == 8
    assert [str(trial.layout) for trial in status.completed[:3]] == before
    assert [len(together) for together in stub.batches] == [1, 1, 1, 1, 4, 1]
    assert set(Counter(stub.epochs).values()) == {1}


def test_the_batch_of_a_begun_study_may_change(tmp_path: Path, stub: Stub) -> None:
    search(study(tmp_path, 2, 4))
    status = search(study(tmp_path, 3, 7))
    assert [len(together) for together in stub.batches] == [2, 2, 3]
    assert len(status.completed) == 7


@pytest.mark.parametrize("batch", [0, "many", 1.5, True])
def test_what_is_no_batch(batch: Any) -> None:
    with pytest.raises(StudyError, match=r"search\.batch: a batch is auto or a number of at least 1 \(got"):
        small_settings(search={"batch": batch})


def test_every_trial_of_a_batch_gives_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those too that join it later."""
    monkeypatch.setattr(loop, "HEARTBEAT_SECONDS", 0.01)
    beaten: dict[int, threading.Event] = {1: threading.Event(), 2: threading.Event()}
    batch: list[Any] = [(Named(1), None)]
    with loop.heartbeat(Hearts(beaten), batch):  # type: ignore[arg-type]
        assert beaten[1].wait(5)
        assert not beaten[2].is_set()
        batch.append((Named(2), None))
        assert beaten[2].wait(5)


class Named:
    def __init__(self, trial_id: int) -> None:
        self._trial_id = trial_id


class Hearts:
    def __init__(self, beaten: dict[int, threading.Event]) -> None:
        self.record_heartbeat: Callable[[int], None] = lambda trial: beaten[trial].set()
