"""Trainings in Ray workers: the same results as in one process, and isolated faults."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from dasearch.config import StudySettings
from dasearch.errors import StudyError
from dasearch.folders import sha256
from dasearch.layout import Layout
from dasearch.search.dispatch import Dispatcher
from dasearch.search.events import Finished, Listener, Training
from dasearch.search.executors import Workers, ray, watch
from dasearch.search.executors.tasks import EncoderTask, Workshop
from dasearch.search.store import PostSearchTraining, open_store
from dasearch.search.study import Status, Study
from dasearch.training.progress import Epoch, Fit
from tests.search import faulty
from tests.search.trainings import curve
from tests.training.studies import materials, small_settings, small_study

if find_spec("ray") is None:
    pytest.skip("workers run on Ray, which is not installed", allow_module_level=True)
pytestmark = pytest.mark.slow
TWO = Workers(2, cpus=1)
FINAL = {"encoders": ["gru4rec", "mf"], "variations": ["llmrec"], "seeds": 1, "encoder": {"epochs": 3, "patience": 3}}


class Ears(Listener):
    def __init__(self) -> None:
        self.said: list[str] = []

    def says(self, text: str) -> None:
        self.said.append(text)


def study(folder: Path, budget: int, **changes: Any) -> StudySettings:
    search = {"batch": 1, "pending": 2, "budget": budget, "confirm_seeds": 2, "stop_when_flat": False}
    return small_study(folder, search={**search, **changes.pop("search", {})}, comparison=FINAL, **changes)


def kept(status: Status) -> list[Any]:
    trials = [(str(trial.layout), trial.state, trial.score) for trial in status.trials]
    return [*trials, *status.standings, *status.results]


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    """A separate cache of ID encoders for each name, so that they are trained again."""

    def chosen(name: str) -> Path:
        monkeypatch.setenv("DASEARCH_CACHE", str(tmp_path / f"cache-{name}"))
        return tmp_path / f"cache-{name}" / "encoders"

    return chosen


class Strangers(Ears):
    """Once, as a trial is finished, tries to connect to the workers' cluster: without its token, and with it."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[str] = []

    def finished(self, finished: Finished) -> None:
        if not self.answers:
            self.answers = [connected(without_token()), connected(dict(os.environ))]


Together = tuple[Path, Status, Strangers]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Together:
    """A study in two workers, which trained every ID encoder: its folder, its results, and its listener."""
    folder, ears = tmp_path_factory.mktemp("together"), Strangers()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("DASEARCH_CACHE", str(folder / "cache"))
        return folder, Study(study(folder, 4)).run(workers=TWO, listener=ears), ears


def test_workers_find_what_one_process_finds(together: Together, tmp_path: Path, cache: Callable[[str], Path]) -> None:
    """Layouts, scores, confirmation and the final table with its ID encoders, to the last digit."""
    folder, status, ears = together
    before, after = cache("alone"), folder / "cache/encoders"
    alone = Study(study(tmp_path, 4)).run()
    assert kept(status) == kept(alone)
    assert {"GRU4Rec", "MF"} <= {result.name for result in status.results}
    assert sorted(sha256(path) for path in after.iterdir()) == sorted(sha256(path) for path in before.iterdir())
    assert "starting the workers" in ears.said
    assert sum("ID encoder gru4rec, epoch" in text for text in ears.said) == 3
    assert not (folder / "runs/toy/prepared").exists()


def test_a_connection_without_the_token_is_refused(together: Together) -> None:
    """From this machine, while the study runs."""
    without, within = together[2].answers
    assert without.startswith("refused ConnectionError Failed to connect to Ray cluster at")
    assert within == "connected"


class Here(Ears):
    """Looks for what workers leave in the driver's output until the final models are saved there."""

    def __init__(self, output: Path) -> None:
        super().__init__()
        self.output, self.seen, self.phases = output, set[str](), set[str]()

    def epoch(self, training: Training, epoch: Epoch) -> None:
        self.phases.add(training.phase)
        if training.phase != "final":
            self.seen |= {path.name for path in self.output.rglob("*.safetensors")}


def test_workers_without_a_shared_disk_find_the_same(tmp_path: Path, cache: Callable[[str], Path]) -> None:
    """Shared objects are only in the exchange while the search runs, and removed at the end."""
    pytest.importorskip("pyarrow.fs", reason="needs dasearch[cloud]")
    cache("alone")
    alone = Study(study(tmp_path / "alone", 2)).run()
    cache("apart")
    ears, there = Here(tmp_path / "apart/runs"), tmp_path / "there"
    apart = Study(study(tmp_path / "apart", 2)).run(workers=replace(TWO, exchange=f"file://{there}"), listener=ears)
    assert kept(apart) == kept(alone)
    assert ears.phases >= {"search", "confirmation"}
    assert ears.seen == set()
    assert [path for path in there.rglob("*") if path.is_file()] == []


Survived = tuple[Status, list[str], dict[str, str], list[PostSearchTraining]]


@pytest.fixture(scope="module")
def survived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Survived]:
    """A study with every kind of fault: its results, its messages, the causes of failed trials, its later trainings."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ray, "Worker", faulty.Faulty)
        patched.setattr(watch, "GRACE", 1.0)
        settings = study(tmp_path_factory.mktemp("faults"), 12, search={"startup": 12}, trial={"minutes": 0.05})
        ears = Ears()
        status = Study(settings).run(train=False, workers=TWO, listener=ears)
        store = open_store(None, settings.output, create=False)
        trials, later = store.trials("toy"), store.later_trainings("toy")
        store.close()
        layouts = {trial.number: str(trial.layout) for trial in status.trials}
        reasons = {layouts[t.number]: t.attributes["reason"] for t in trials if t.state == "pruned"}
        yield status, ears.said, reasons, later


def test_what_goes_wrong_in_a_worker_costs_it_alone(survived: Survived) -> None:
    status, _, reasons, _ = survived
    lost = reasons.pop(faulty.DIES)
    assert lost.startswith("its worker was lost (")
    assert lost.endswith("), 3 times")
    assert reasons == {
        faulty.RAISES: "ValueError: no such thing",
        faulty.DIVERGES: "diverged",
        faulty.HANGS: "it took longer than its 0.05 minutes",
        faulty.GREEDY: "MemoryError",
    }
    assert len(status.completed) == 12
    assert len({trial.layout for trial in status.completed}) == 12


def test_a_lost_worker_is_made_good(survived: Survived) -> None:
    """The training resumes from its checkpoint, in another process, with the same result."""
    status, said, _, _ = survived
    score = next(trial.score for trial in status.completed if str(trial.layout) == faulty.DIES_ONCE)
    assert score == curve(Layout.parse(faulty.DIES_ONCE), 0)[-1]
    assert sum(faulty.DIES_ONCE in text and "resumes from its last epoch" in text for text in said) == 1
    assert sum(faulty.DIES in text and "resumes from its last epoch" in text for text in said) == 2


def test_too_little_memory_halves_the_rows_of_a_pass_once(survived: Survived) -> None:
    _, said, _, _ = survived
    halved = [text for text in said if "did not fit into memory" in text]
    assert {text.split()[0] for text in halved} == {f"trial/{faulty.HUNGRY}", f"trial/{faulty.GREEDY}"}
    assert all(text.endswith("batch_size=8 and accumulate=2") for text in halved)


def test_a_control_that_fails_is_left_out_of_the_confirmation(survived: Survived) -> None:
    status, said, _, _ = survived
    assert "confirmation without all-parallel, seed 1: ValueError: no such thing" in said
    assert faulty.RAISES not in {str(standing.layout) for standing in status.standings}
    assert {str(standing.layout) for standing in status.standings} > {"SSS-SSS"}


def test_trainings_after_the_search_say_where_they_ran_and_why_they_failed(survived: Survived) -> None:
    _, _, _, later = survived
    failed = [training for training in later if training.reason is not None]
    assert {(str(one.layout), one.reason) for one in failed} == {(faulty.RAISES, "ValueError: no such thing")}
    assert all(one.ended is not None for one in later)
    assert all(len(one.workers) == 1 for one in later)
    machine, process = later[0].workers[0].split(":")
    assert machine == platform.node()
    assert int(process) != os.getpid()


def test_an_encoder_whose_worker_is_lost_goes_on_from_its_last_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "Worker", faulty.Dying)
    settings, said = small_settings(comparison={"encoder": {"epochs": 4, "patience": 4}}), list[str]()
    task = EncoderTask("encoder/sasrec/0", settings.comparison.encoder.model_copy(update={"name": "sasrec"}), 3)
    executor = ray.RayExecutor(settings, Workers(1, cpus=1), tmp_path)
    with closing(executor):
        dispatcher, heard = Dispatcher(executor, said.append), list[int]()
        prepared = executor.prepare(materials(settings))
        batch = dispatcher.submit(task, prepared, tmp_path / "there", lambda _, epoch: heard.append(epoch.number))
        while not batch.over:
            dispatcher.wait()
    (found,) = batch.in_order
    (expected,) = task.train(Workshop(materials(settings)), tmp_path / "here", lambda _, epoch: None, said.append)
    assert isinstance(found, Fit)
    assert isinstance(expected, Fit)
    assert [epoch.metrics for epoch in found.progress.epochs] == [epoch.metrics for epoch in expected.progress.epochs]
    assert len(batch.workers[0]) == 2
    assert heard == [0, 2, 3]  # the second one was saved, and not told
    assert [text.split(":")[0] for text in said] == ["encoder/sasrec/0"]


def test_more_workers_than_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="there is no 1 GPU for a worker; request less"):
        Study(study(tmp_path, 4)).run(workers=Workers(2, cpus=1, gpus=1.0))


CONNECT = """
import ray
try:
    ray.init(address="{address}", log_to_driver=False, logging_level="ERROR")
except Exception as error:
    print("refused", type(error).__name__, str(error))
else:
    print("connected")
"""


def without_token() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


def connected(environment: dict[str, str]) -> str:
    import ray as engine

    script = CONNECT.format(address=engine.get_runtime_context().gcs_address)
    environment = {**environment, "HOME": os.devnull}
    asked = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    return asked.stdout.strip() or asked.stderr
