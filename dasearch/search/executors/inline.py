"""Jobs one after another in the study's own process, with all its cores: no worker, no bundle."""

from __future__ import annotations

from collections import deque

from dasearch.search.executors.base import Heard, Job
from dasearch.search.executors.work import Workshop, work
from dasearch.training.materials import Materials


class Inline:
    """The executor that needs nothing.

    Args:
        materials: of all users.
    """

    slots = 1

    def __init__(self, materials: Materials) -> None:
        self._workshop = Workshop(materials)
        self._jobs: deque[Job] = deque()

    def width(self, at_once: int) -> int:
        return at_once

    def submit(self, job: Job) -> None:
        self._jobs.append(job)

    def advance(self, heard: Heard) -> None:
        """Train the next job to its end."""
        if self._jobs:
            work(self._jobs.popleft(), self._workshop, heard)

    def cancel(self) -> None:
        self._jobs.clear()

    def close(self) -> None:
        self.cancel()
