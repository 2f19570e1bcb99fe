"""Shared by executors with workers: the size of a job, and its state in the driver."""

from __future__ import annotations

import shutil
import time
from abc import ABC, abstractmethod
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from dasearch.config import StudySettings
from dasearch.errors import ExchangeError
from dasearch.search.executors.base import Event, Heard, Job, Kind
from dasearch.search.executors.exchange import Exchange
from dasearch.search.executors.places import BUNDLES, bundle_object, checkpoint_object
from dasearch.search.objective import Prepared
from dasearch.training.bundle import save_bundle
from dasearch.training.loop import MOST_AT_ONCE
from dasearch.training.materials import StudyContext

GRACE = 30.0  # seconds after its time limit when a job counts as hanging


@dataclass(kw_only=True, eq=False)
class Watched:
    """A job in a worker.

    Attributes:
        began: monotonic time in seconds when the worker, once started, began the job.
        over: positions with a delivered outcome.
    """

    job: Job
    began: float | None = None
    over: set[int] = field(default_factory=set)

    @property
    def left(self) -> list[int]:
        """Positions without a delivered outcome."""
        return [place for place in range(len(self.job.task.names)) if place not in self.over]

    @property
    def hangs(self) -> bool:
        """Whether it still runs long after its time limit."""
        minutes = self.job.task.minutes
        if minutes is None or self.began is None:
            return False
        return time.monotonic() - self.began > 60 * minutes + GRACE

    def tell(self, record: dict[str, Any], heard: Heard) -> None:
        """Parse an event from JSON values, and update the state of the job."""
        event = Event.from_record(record)
        if event.kind is Kind.BEGAN:
            self.began = time.monotonic()
        elif event.kind in (Kind.DONE, Kind.FAILED):
            self.over.add(event.place)
        heard(event)

    def lose(self, cause: str, heard: Heard) -> None:
        """The event of a lost worker."""
        heard(Event(self.job.number, self.job.attempt, Kind.LOST, text=cause))

    def fail(self, error: Exception, heard: Heard) -> None:
        """The events of failure of each unfinished run."""
        for place in self.left:
            heard(Event(self.job.number, self.job.attempt, Kind.FAILED, place, error=error))


B = TypeVar("B", bound=Watched)


class Watching(ABC, Generic[B]):
    """An executor whose jobs run in workers, at most ``slots`` at once; the others are queued.

    Args:
        cpus, gpus: of each worker; with a fraction of a GPU it trains one at a time.
        output: of the study, with its bundles; the workers must see it under the same path, or share an ``exchange``.
    """

    def __init__(
        self,
        settings: StudySettings,
        output: Path,
        *,
        slots: int,
        cpus: int,
        gpus: float,
        exchange: Exchange | None = None,
    ) -> None:
        self.slots, self._settings, self._cpus, self._gpus = slots, settings, cpus, gpus
        self._bundles = output.resolve() / BUNDLES
        self._exchange = exchange
        self._jobs, self._busy = deque[Job](), list[B]()

    def prepare(self, materials: StudyContext) -> Prepared:
        """Save a prepared study for the workers."""
        name = save_bundle(materials, self._bundles)
        if self._exchange is not None:
            self._exchange.put_folder(bundle_object(name), self._bundles / name)
            shutil.rmtree(self._bundles / name)
        return Prepared(name, materials.method.settings)

    def fetch(self, checkpoint: Path) -> None:
        """Download a checkpoint from the exchange, if there is one."""
        if self._exchange is not None:
            self._exchange.get(checkpoint_object(checkpoint), checkpoint)

    def forget(self, checkpoint: Path) -> None:
        """Remove a checkpoint here and in the exchange."""
        checkpoint.unlink(missing_ok=True)
        if self._exchange is not None:
            self._exchange.forget(checkpoint_object(checkpoint))

    def forget_all(self, checkpoints: Path) -> None:
        """Remove a study's checkpoints here and in the exchange."""
        shutil.rmtree(checkpoints, ignore_errors=True)
        if self._exchange is not None:
            self._exchange.clear(checkpoints.name)

    def width(self, at_once: int) -> int:
        """The study's setting; else as many as fit on a whole GPU, or as the worker has cores."""
        if self._settings.search.batch != "auto":
            return at_once
        if self._gpus:
            return at_once if self._gpus >= 1 else 1
        return min(MOST_AT_ONCE, self._cpus)

    def submit(self, job: Job) -> None:
        """Queue a job."""
        self._jobs.append(job)

    def cancel(self) -> None:
        """Empty the queue, and end the workers of running jobs."""
        self._jobs.clear()
        for busy in list(self._busy):
            self._give_up(busy)

    def _remove_bundles(self) -> None:
        shutil.rmtree(self._bundles, ignore_errors=True)
        if self._exchange is not None:
            with suppress(ExchangeError):  # its failure may be what ends the study; the next run uploads the same
                self._exchange.clear(BUNDLES)

    def _fill(self) -> None:
        """Start queued jobs while there is room."""
        while self._jobs and len(self._busy) < self.slots:
            self._busy.append(self._started(self._jobs.popleft()))

    def _give_up(self, busy: B) -> None:
        """Release a job, and end its worker."""
        self._busy.remove(busy)
        self._end(busy)

    @abstractmethod
    def _started(self, job: Job) -> B:
        """Send a job to a worker."""

    @abstractmethod
    def _end(self, busy: B) -> None:
        """End the worker of a cancelled job."""
