"""Trainings as jobs: on this machine, and on SLURM, replaced by test programs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dasearch.cli import run_command
from dasearch.errors import DasearchError, StudyError
from dasearch.layout import PLAIN, Layout
from dasearch.search.dispatch import Batch, Dispatcher
from dasearch.search.events import Finished, Listener
from dasearch.search.executors import Event, Kind, Workers, slurm, watch
from dasearch.search.executors.slurm import SlurmExecutor, asked_of_slurm, end_left_over
from dasearch.search.executors.tasks import LayoutTask
from dasearch.search.objective import Objective, Outcome, Run
from dasearch.search.study import Study
from tests.search import faulty
from tests.search.trainings import curve
from tests.training.studies import materials, small_settings, small_study

pytest.importorskip("submitit", reason="needs dasearch[slurm]")
LOCAL = Workers(2, cpus=1, slurm="local")
FINE = "SSS-SSS"
BUDGET = 3


class Enough(Exception):
    """The search is over."""


class UntilConfirmation(Listener):
    def __init__(self) -> None:
        self.left = BUDGET

    def finished(self, finished: Finished) -> None:
        self.left -= 1
        if not self.left:
            raise Enough


def searched(folder: Path, workers: Workers | None = None) -> list[Any]:
    """The trials of a search, and no confirmation."""
    search = {"batch": 1, "pending": 2, "budget": BUDGET, "startup": 2, "stop_when_flat": False}
    settings = small_study(folder, search=search, trial={"epochs": 1})
    with pytest.raises(Enough):
        Study(settings).run(workers=workers, listener=UntilConfirmation())
    return [(str(trial.layout), trial.state, trial.score) for trial in Study(settings).status().completed]


@pytest.mark.slow
def test_jobs_find_what_one_process_finds(tmp_path: Path) -> None:
    alone = searched(tmp_path / "alone")
    assert searched(tmp_path / "jobs", LOCAL) == alone
    assert len(alone) == BUDGET
    assert not (tmp_path / "jobs/runs/toy/prepared").exists()
    assert not (tmp_path / "jobs/runs/toy/slurm").exists()


class Crew:
    """An executor whose jobs go wrong as their layouts say, and what it is given."""

    def __init__(self, folder: Path, workers: Workers = LOCAL) -> None:
        self.folder, self.said = folder, list[str]()
        self.settings = small_settings(search={"batch": 1})
        self.materials = materials(self.settings)
        self.executor = SlurmExecutor(self.settings, workers, folder)
        self.prepared = self.executor.prepare(self.materials)
        self.dispatcher = Dispatcher(self.executor, self.said.append)

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *error: object) -> None:
        self.executor.close()

    def submit(self, layout: str, **recipe: Any) -> Batch:
        found = self.settings.trial.model_copy(update=recipe)
        objective = Objective(self.settings, self.materials, found, PLAIN, self.folder / "checkpoints", counted=1)
        run = Run(Layout.parse(layout), f"trial/{layout}", 0)
        task = LayoutTask.of(objective, [run])
        return self.dispatcher.submit(task, self.prepared, objective.folder, lambda place, epoch: None)

    def trained(self, **recipes: Any) -> dict[str, Outcome]:
        batches = {layout: self.submit(layout, **recipe) for layout, recipe in recipes.items()}
        while not all(batch.over for batch in batches.values()):
            self.dispatcher.wait()
        return {layout: batch.in_order[0] for layout, batch in batches.items()}

    def begun(self, layout: str) -> tuple[Batch, int]:
        """A job that is in its training, and its process."""
        batch = self.submit(layout)
        while not batch.workers:
            self.dispatcher.wait()
        return batch, int(batch.workers[0][0].rpartition(":")[2])


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "train", faulty.train)


def runs(process: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def ended(process: int) -> bool:
    """Waits for that, as long as it takes a test that will not pass."""
    for _ in range(200):
        if not runs(process):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
@pytest.mark.usefixtures("faults")
def test_what_goes_wrong_in_a_job_costs_it_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "GRACE", 1.0)
    with Crew(tmp_path) as crew:
        outcomes = crew.trained(**{faulty.DIES: {}, faulty.DIES_ONCE: {}, faulty.HANGS: {"minutes": 0.05}})
    fit = outcomes[faulty.DIES_ONCE]
    assert not isinstance(fit, Exception)
    assert fit.progress.epochs[-1].metrics["MRR"] == curve(Layout.parse(faulty.DIES_ONCE), 0)[-1]
    assert re.fullmatch(r"its worker was lost \(FINISHED, .*_0_log\.err\), 3 times", str(outcomes[faulty.DIES]))
    assert str(outcomes[faulty.HANGS]) == "it took longer than its 0.05 minutes"
    again = [text.split(":")[0] for text in crew.said if "resumes from its last epoch" in text]
    assert sorted(again) == sorted([f"trial/{faulty.DIES}"] * 2 + [f"trial/{faulty.DIES_ONCE}"])
    assert {path.suffix for path in (tmp_path / "slurm").iterdir()} == {".err", ".out"}


@pytest.mark.slow
@pytest.mark.usefixtures("faults")
@pytest.mark.parametrize("by", ["close", "another driver"])
def test_jobs_end_with_their_driver(tmp_path: Path, by: str) -> None:
    with Crew(tmp_path) as crew:
        _, process = crew.begun(faulty.HANGS)
        assert runs(process)
        if by == "another driver":
            end_left_over(tmp_path)
            assert ended(process)
    assert not runs(process)
    assert not (tmp_path / "slurm").exists()


PROGRAMS = {
    "sbatch": 'cp "$1" "$CLUSTER/script"; echo "Submitted batch job $NUMBER"\n'
    'if [ "$RUN" ]; then SLURM_JOB_ID=$NUMBER nohup bash "$1" > /dev/null 2>&1 & fi',
    "srun": 'while [ "$1" != --error ]; do shift; done; shift 2; exec "$@"',
    "sacct": 'printf "JobID|State|NodeList\\n$NUMBER|%s|node1\\n" "$(cat "$CLUSTER/state")"',
    "scancel": 'echo "$@" >> "$CLUSTER/cancelled"',
}


class Cluster:
    """SLURM's programs, for one job."""

    numbers = iter(range(70_001, 80_000))  # submitit remembers them

    def __init__(self, folder: Path, patched: pytest.MonkeyPatch, *, run: bool = False) -> None:
        self.folder, self.number = folder, str(next(self.numbers))
        folder.mkdir()
        for name, text in PROGRAMS.items():
            (folder / name).write_text(f"#!/bin/bash\n{text}\n")
            (folder / name).chmod(0o755)
        for name, value in {"CLUSTER": str(folder), "NUMBER": self.number, "RUN": "1" if run else ""}.items():
            patched.setenv(name, value)
        patched.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        patched.setattr(slurm, "LOOK", 0.0)
        patched.setattr(slurm, "SETTLE", 0.0)
        self.says("RUNNING")

    def says(self, state: str) -> None:
        (self.folder / "state").write_text(state)

    def read(self, name: str) -> list[str]:
        return (self.folder / name).read_text().splitlines()


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(tmp_path / "cluster", monkeypatch)


ASKED = Workers(1, cpus=3, slurm="partition=gpu,time=120,gpus-per-node=1,nodelist=n1,n2")


@pytest.mark.parametrize(
    ("state", "kind", "text"),
    [
        ("OUT_OF_MEMORY", Kind.FAILED, "its SLURM job ran out of memory"),
        ("TIMEOUT", Kind.LOST, "its SLURM job reached its time limit"),
        ("PREEMPTED", Kind.LOST, "its worker was lost (PREEMPTED, "),
        ("CANCELLED by 1000", Kind.LOST, "its worker was lost (CANCELLED, "),
    ],
)
def test_a_job_that_slurm_ends(tmp_path: Path, cluster: Cluster, state: str, kind: Kind, text: str) -> None:
    heard = list[Event]()
    with Crew(tmp_path, ASKED) as crew:
        crew.submit(FINE)
        crew.executor.advance(heard.append)
        assert not heard
        cluster.says(state)
        crew.executor.advance(heard.append)
    (event,) = heard
    assert event.kind is kind
    assert (event.text or str(event.error)).startswith(text)
    assert getattr(event.error, "memory", False) is (state == "OUT_OF_MEMORY")
    assert not (cluster.folder / "cancelled").exists()


def test_what_slurm_is_asked(tmp_path: Path, cluster: Cluster) -> None:
    with Crew(tmp_path, ASKED) as crew:
        crew.submit(FINE)
        crew.executor.advance(lambda event: None)
        end_left_over(tmp_path)
        assert cluster.read("cancelled") == [cluster.number]
    assert cluster.read("cancelled") == [cluster.number] * 2
    flags = {line.removeprefix("#SBATCH --") for line in cluster.read("script") if line.startswith("#SBATCH")}
    asked = {"partition=gpu", "time=120", "gpus-per-node=1", "nodelist=n1,n2", "cpus-per-task=3"}
    assert flags > {*asked, "no-requeue", "job-name=dasearch-toy"}
    assert not any(flag.startswith(("wckey", "array", "requeue")) for flag in flags)


@pytest.mark.usefixtures("faults")
def test_a_job_leaves_signals_to_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The warning before its end changes nothing, and at its end it is gone at once; submitit would queue it again."""
    cluster = Cluster(tmp_path / "cluster", monkeypatch, run=True)
    with Crew(tmp_path, Workers(1, slurm="partition=gpu")) as crew:
        batch, process = crew.begun(faulty.HANGS)
        os.kill(process, signal.SIGUSR2)
        os.kill(process, signal.SIGTERM)
        assert ended(process)
        cluster.says("NODE_FAIL")
        while not crew.said and not batch.over:
            crew.dispatcher.wait()
    assert crew.said[0].startswith(f"trial/{faulty.HANGS}: its worker was lost (NODE_FAIL, ")


def test_slurm_takes_no_job(tmp_path: Path, cluster: Cluster) -> None:
    complaint = "sbatch: error: invalid partition specified: gpu"
    (cluster.folder / "sbatch").write_text(f"#!/bin/bash\necho '{complaint}' >&2\nexit 1\n")
    with Crew(tmp_path, ASKED) as crew:
        crew.submit(FINE)
        with pytest.raises(DasearchError, match=f"SLURM rejected the job: {complaint}; run the same command again"):
            crew.executor.advance(lambda event: None)


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ("gpu", "reads local, or KEY=VALUE,KEY=VALUE as in partition=gpu,time=120, and not 'gpu'"),
        ("partition=", "and not 'partition='"),
        ("partitoin=gpu", "--slurm has no parameter 'partitoin'; did you mean partition"),
        ("nodes=2", "--slurm has no parameter 'nodes'"),
    ],
)
def test_what_cannot_be_asked_is_refused(asked: str, match: str) -> None:
    with pytest.raises(StudyError, match=match):
        asked_of_slurm(Workers(slurm=asked))


def test_values_of_parameters(cluster: Cluster) -> None:
    asked = asked_of_slurm(Workers(slurm="time=2:00:00,exclusive=true,setup=module load cuda/12,mem=16GB"))
    assert asked == {"time": "2:00:00", "exclusive": True, "setup": ["module load cuda/12"], "mem": "16GB"}
    with pytest.raises(StudyError, match="whole GPUs; give --gpus-per-worker an integer"):
        asked_of_slurm(Workers(gpus=0.5, slurm="partition=gpu"))


def test_without_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(StudyError, match="--slurm needs sbatch, which this machine does not have; use a login node"):
        asked_of_slurm(Workers(slurm="partition=gpu"))
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(StudyError, match=re.escape('which is not installed; pip install "dasearch[slurm]"')):
        asked_of_slurm(LOCAL)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (["--workers", "2", "--slurm", "local", "--ray", "auto"], "remove --ray or --slurm"),
        (["--slurm", "local"], "add --workers N"),
    ],
)
def test_the_command_line_refuses(given: list[str], match: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["run", "toy", *given]) == 2
    assert match in " ".join(capsys.readouterr().err.split())
