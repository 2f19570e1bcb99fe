"""Jobs, events, and the executor protocol.

Only the driver owns the store, the proposals and the test split. A job is all that a worker needs besides the prepared study,
as JSON and paths; an event is all that it returns. An executor never retries a job: the submitter does.
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
    """Number of training processes, and the resources of each.

    Args:
        cpus: threads of each; None: its share of the machine's cores.
        gpus: of each, fractions included.
        address: of a running Ray cluster; None: a cluster on this machine while the study runs.
        slurm: None: on Ray; else what each job requests from SLURM, as in ``partition=gpu,time=120``, or ``local``.
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
    """A submitted task.

    Attributes:
        number: of the job in its driver.
        prepared: reference to the study that the task trains on.
        checkpoints: a folder under the same path for driver and workers.
        attempt: counted from 1; events of earlier attempts are ignored.
    """

    number: int
    task: Task
    prepared: Prepared
    checkpoints: Path
    attempt: int = 1

    def record(self) -> dict[str, Any]:
        """The job as JSON values."""
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
        """The job of a `record`."""
        prepared = record["prepared"]
        read = {
            "task": read_task(record["task"]),
            "prepared": Prepared(prepared["name"], parse_study(prepared["settings"], source="a job")),
            "checkpoints": Path(record["checkpoints"]),
        }
        return cls(**{**record, **read})


class Kind(StrEnum):
    """The kind of an event."""

    BEGAN = "began"  # the job, in a worker
    SAYS = "says"
    EPOCH = "epoch"
    DONE = "done"
    FAILED = "failed"  # one run: it diverged, or raised an error
    LOST = "lost"  # the worker, and with it its unfinished runs


@dataclass(frozen=True)
class Event:
    """An event of a job, or of one of its runs.

    Attributes:
        job, attempt: as in `Job`.
        place: position of the run in its job; unused where the event concerns the whole job.
        text: a message, the cause of a loss, or the worker as ``machine:process``.
        error: the cause of a failed run: `TrainingError` where its loss was not finite.
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
        """The event as JSON values, without a trained model, which is in its checkpoint."""
        record: dict[str, Any] = {
            "job": self.job,
            "attempt": self.attempt,
            "kind": self.kind.value,
            "place": self.place,
        }
        record["text"] = self.text
        if self.epoch is not None:
            record["epoch"] = asdict(self.epoch)
        if self.fit is not None:
            kept = {key: getattr(self.fit, key) for key in ("parameters", "seconds", "peak_memory")}
            record["fit"] = {**kept, "progress": self.fit.progress.record()}
        if self.error is not None:
            record["error"] = _error_record(self.error)
        return record

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Event:
        """The event of a `record`; a trained model stays in its checkpoint."""
        fields = {**record, "kind": Kind(record["kind"])}
        if "epoch" in record:
            fields["epoch"] = Epoch(**record["epoch"])
        if "fit" in record:
            progress = Progress.from_record(record["fit"]["progress"])
            fields["fit"] = Fit(**{**record["fit"], "progress": progress})
        if "error" in record:
            fields["error"] = _error(record["error"])
        return cls(**fields)


class Executor(Protocol):
    """Runs jobs.

    Attributes:
        slots: number of jobs that run at once; further ones are queued.
    """

    slots: int

    def prepare(self, materials: StudyContext) -> Prepared:
        """Keep a prepared study for later jobs.

        Args:
            materials: of all users.
        """

    def fetch(self, checkpoint: Path) -> None:
        """Make a worker's checkpoint available on this machine."""

    def forget(self, checkpoint: Path) -> None:
        """Remove a checkpoint whose result is stored."""

    def forget_all(self, checkpoints: Path) -> None:
        """Remove a folder of checkpoints."""

    def width(self, at_once: int) -> int:
        """Number of trainings per job, where this process would train ``at_once`` side by side."""

    def submit(self, job: Job) -> None:
        """Queue a job."""

    def advance(self, heard: Heard) -> None:
        """Work or wait until at least one event is delivered; returns at once where there is no job."""

    def cancel(self) -> None:
        """Cancel every job."""

    def close(self) -> None:
        """Cancel every job and end the workers."""


def out_of_memory(error: BaseException) -> bool:
    """Whether a training ran out of memory."""
    return isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or getattr(error, "memory", False)


def _error_record(error: Exception) -> dict[str, Any]:
    return {"diverged": isinstance(error, TrainingError), "memory": out_of_memory(error), "text": described(error)}


def _error(record: dict[str, Any]) -> Exception:
    if record["diverged"]:
        return TrainingError(record["text"])
    return BrokenTraining(record["text"], memory=record["memory"])
