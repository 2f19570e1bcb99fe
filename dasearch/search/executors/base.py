"""Jobs, events, and what an executor is.

The driver alone owns the store, the proposals and the test split. A job is all that a worker needs beside the prepared study,
as JSON and places; an event is all that it says. An executor never trains a job again: whoever submitted it does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from dasearch.config import parse_study
from dasearch.errors import BrokenTraining, TrainingError, described
from dasearch.search.executors.tasks import Task, read_task
from dasearch.search.objective import Prepared
from dasearch.training.materials import StudyContext
from dasearch.training.progress import Epoch, Fit, Progress

Heard = Callable[["Event"], None]


@dataclass(frozen=True)
class Workers:
    """How many processes train at once, and what each of them has.

    Args:
        cpus: threads of each; None: its share of the machine's cores.
        gpus: of each, such as a quarter of one.
        address: of a Ray cluster that runs; None: a cluster on this machine, for as long as the study runs.
        slurm: None: on Ray; else what each job asks of SLURM, as in ``partition=gpu,time=120``, or ``local``.
        exchange: the URI of an object store, where workers share no disk with the driver.
    """

    count: int = 1
    cpus: int | None = None
    gpus: float = 0.0
    address: str | None = None
    slurm: str | None = None
    exchange: str | None = None


@dataclass(frozen=True)
class Job:
    """A task on its way.

    Attributes:
        number: of the job in its driver.
        prepared: what the task trains on.
        checkpoints: a folder that driver and workers see alike.
        attempt: from 1 on; what an earlier one still says counts for nothing.
    """

    number: int
    task: Task
    prepared: Prepared
    checkpoints: Path
    attempt: int = 1

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        prepared = {"name": self.prepared.name, "settings": self.prepared.settings.model_dump(mode="json")}
        return {
            "number": self.number,
            "attempt": self.attempt,
            "prepared": prepared,
            "checkpoints": str(self.checkpoints),
            "task": self.task.record(),
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Job:
        prepared = record["prepared"]
        read = {
            "task": read_task(record["task"]),
            "prepared": Prepared(prepared["name"], parse_study(prepared["settings"], source="a job")),
            "checkpoints": Path(record["checkpoints"]),
        }
        return cls(**{**record, **read})


class Kind(StrEnum):
    """What an event says."""

    BEGAN = "began"  # the job, in a worker
    SAYS = "says"
    EPOCH = "epoch"
    DONE = "done"
    FAILED = "failed"  # one run: it diverged, or it broke
    LOST = "lost"  # the worker, and with it what was not over


@dataclass(frozen=True)
class Event:
    """What a job says of one of its runs, or of itself.

    Attributes:
        job, attempt: as of `Job`.
        place: of the run in its job; of no meaning where the event is of the whole job.
        text: what is said, the cause of a loss, or the worker as ``machine:process``.
        error: why a run failed: `TrainingError` where its loss was no finite number.
    """

    job: int
    attempt: int
    kind: Kind
    place: int = 0
    text: str = ""
    epoch: Epoch | None = None
    fit: Fit | None = None
    error: Exception | None = None

    def record(self) -> dict[str, Any]:
        """As JSON values, without a trained model: it is in its checkpoint."""
        found: dict[str, Any] = {"job": self.job, "attempt": self.attempt, "kind": self.kind.value, "place": self.place}
        found["text"] = self.text
        if self.epoch is not None:
            found["epoch"] = asdict(self.epoch)
        if self.fit is not None:
            kept = {key: getattr(self.fit, key) for key in ("parameters", "seconds", "peak_memory")}
            found["fit"] = {**kept, "progress": self.fit.progress.record()}
        if self.error is not None:
            found["error"] = _error_record(self.error)
        return found

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Event:
        found = {**record, "kind": Kind(record["kind"])}
        if "epoch" in record:
            found["epoch"] = Epoch(**record["epoch"])
        if "fit" in record:
            progress = Progress.from_record(record["fit"]["progress"])
            found["fit"] = Fit(**{**record["fit"], "progress": progress})
        if "error" in record:
            found["error"] = _error(record["error"])
        return cls(**found)


class Executor(Protocol):
    """Runs jobs.

    Attributes:
        slots: how many jobs run at once; more may be submitted and wait their turn.
    """

    slots: int

    def prepare(self, materials: StudyContext) -> Prepared:
        """Keep a prepared study for jobs to come.

        Args:
            materials: of all users.
        """

    def fetch(self, checkpoint: Path) -> None:
        """Have a checkpoint here that a worker has written."""

    def forget(self, checkpoint: Path) -> None:
        """Remove a checkpoint whose result is kept."""

    def forget_all(self, checkpoints: Path) -> None:
        """Remove a folder of checkpoints."""

    def width(self, at_once: int) -> int:
        """How many trainings one job should have, where this process would train so many side by side."""

    def submit(self, job: Job) -> None:
        """Take a job."""

    def advance(self, heard: Heard) -> None:
        """Work, or wait, until at least one event is told; at once where there is no job."""

    def cancel(self) -> None:
        """Give up every job."""

    def close(self) -> None:
        """Leave nothing running."""


def out_of_memory(error: BaseException) -> bool:
    """Whether a training asked for more memory than there is."""
    return isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or getattr(error, "memory", False)


def _error_record(error: Exception) -> dict[str, Any]:
    return {"diverged": isinstance(error, TrainingError), "memory": out_of_memory(error), "text": described(error)}


def _error(record: dict[str, Any]) -> Exception:
    if record["diverged"]:
        return TrainingError(record["text"])
    return BrokenTraining(record["text"], memory=record["memory"])
