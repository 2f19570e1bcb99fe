"""What executors with workers share: how much a worker takes, and a job as its driver watches it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from dasearch.config import StudySettings
from dasearch.search.executors.base import Event, Heard, Job, Kind
from dasearch.training.loop import MOST_AT_ONCE

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
        return [place for place in range(len(self.job.runs)) if place not in self.over]

    @property
    def hangs(self) -> bool:
        """Whether it is still there long after its minutes."""
        if self.job.minutes is None or self.began is None:
            return False
        return time.monotonic() - self.began > 60 * self.job.minutes + GRACE

    def tell(self, record: dict[str, Any], heard: Heard) -> None:
        """An event that came as JSON values; keeps what it says of how far the job is."""
        event = Event.from_record(record, self.job)
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


def width_of_worker(settings: StudySettings, at_once: int, *, cpus: int, gpus: float) -> int:
    """How many trainings a worker's job has: as the study says, as a whole GPU holds, or as many as the worker has cores.

    Args:
        at_once: as of `Executor.width`.
        gpus: of the worker; with a share of one it trains one at a time.
    """
    if settings.search.batch != "auto":
        return at_once
    if gpus:
        return at_once if gpus >= 1 else 1
    return min(MOST_AT_ONCE, cpus)
