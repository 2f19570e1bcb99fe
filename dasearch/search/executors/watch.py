"""What executors with workers share: how much a worker takes, and a job as its driver watches it."""

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

GRACE = 30.0  # seconds over its minutes after which a job counts as hanging


@dataclass(kw_only=True, eq=False)
class Watched:
    """A job in a worker.

    Attributes:
        began: when the worker, which has to start first, began with the job; on the monotonic clock, in seconds.
        over: places whose outcome was told.
    """

    job: Job
    began: float | None = None
    over: set[int] = field(default_factory=set)

    @property
    def left(self) -> list[int]:
        """Places whose outcome was not told."""
        return [place for place in range(len(self.job.task.names)) if place not in self.over]

    @property
    def hangs(self) -> bool:
        """Whether it is still there long after its minutes."""
        minutes = self.job.task.minutes
        if minutes is None or self.began is None:
            return False
        return time.monotonic() - self.began > 60 * minutes + GRACE

    def tell(self, record: dict[str, Any], heard: Heard) -> None:
        """An event that came as JSON values; keeps what it says of how far the job is."""
        event = Event.from_record(record)
        if event.kind is Kind.BEGAN:
            self.began = time.monotonic()
        elif event.kind in (Kind.DONE, Kind.FAILED):
            self.over.add(event.place)
        heard(event)

    def lose(self, cause: str, heard: Heard) -> None:
        """That the worker is lost."""
        heard(Event(self.job.number, self.job.attempt, Kind.LOST, text=cause))

    def fail(self, error: Exception, heard: Heard) -> None:
        """That each run which was not over has failed."""
        for place in self.left:
            heard(Event(self.job.number, self.job.attempt, Kind.FAILED, place, error=error))


B = TypeVar("B", bound=Watched)


class Watching(ABC, Generic[B]):
    """An executor whose jobs run in workers, at most ``slots`` at once; the others wait their turn.

    Args:
        cpus, gpus: of each worker; with a share of a GPU it trains one at a time.
        output: of the study, where bundles lie; the workers must see it under the same path, or share an ``exchange``.
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
        if self._exchange is not None:
            self._exchange.get(checkpoint_object(checkpoint), checkpoint)

    def forget(self, checkpoint: Path) -> None:
        checkpoint.unlink(missing_ok=True)
        if self._exchange is not None:
            self._exchange.forget(checkpoint_object(checkpoint))

    def forget_all(self, checkpoints: Path) -> None:
        shutil.rmtree(checkpoints, ignore_errors=True)
        if self._exchange is not None:
            self._exchange.clear(checkpoints.name)

    def width(self, at_once: int) -> int:
        """As the study says; else as many as a whole GPU holds, or as the worker has cores."""
        if self._settings.search.batch != "auto":
            return at_once
        if self._gpus:
            return at_once if self._gpus >= 1 else 1
        return min(MOST_AT_ONCE, self._cpus)

    def submit(self, job: Job) -> None:
        self._jobs.append(job)

    def cancel(self) -> None:
        self._jobs.clear()
        for busy in list(self._busy):
            self._give_up(busy)

    def _remove_bundles(self) -> None:
        shutil.rmtree(self._bundles, ignore_errors=True)
        if self._exchange is not None:
            with suppress(ExchangeError):  # it may be why the study ends; the next one puts the same there
                self._exchange.clear(BUNDLES)

    def _fill(self) -> None:
        """Start what there is room for."""
        while self._jobs and len(self._busy) < self.slots:
            self._busy.append(self._started(self._jobs.popleft()))

    def _give_up(self, busy: B) -> None:
        """Part from a job, and end its worker."""
        self._busy.remove(busy)
        self._end(busy)

    @abstractmethod
    def _started(self, job: Job) -> B:
        """A job on its way to a worker."""

    @abstractmethod
    def _end(self, busy: B) -> None:
        """End the worker of a job that is given up."""
