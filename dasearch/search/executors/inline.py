"""Jobs one after another in the study's own process, with all its cores: no worker, no bundle."""

from __future__ import annotations

import shutil
from collections import deque
from pathlib import Path

from dasearch.search.executors.base import Heard, Job
from dasearch.search.executors.tasks import Workshop
from dasearch.search.executors.work import work
from dasearch.search.objective import Prepared
from dasearch.training.materials import StudyContext


class Inline:
    """The executor that needs nothing."""

    slots = 1

    def __init__(self) -> None:
        self._workshops: dict[str, Workshop] = {}
        self._jobs: deque[Job] = deque()

    def prepare(self, materials: StudyContext) -> Prepared:
        name = str(len(self._workshops))
        self._workshops[name] = Workshop(materials)
        return Prepared(name, materials.method.settings)

    def fetch(self, checkpoint: Path) -> None:
        """It is here."""

    def forget(self, checkpoint: Path) -> None:
        checkpoint.unlink(missing_ok=True)

    def forget_all(self, checkpoints: Path) -> None:
        shutil.rmtree(checkpoints, ignore_errors=True)

    def width(self, at_once: int) -> int:
        return at_once

    def submit(self, job: Job) -> None:
        self._jobs.append(job)

    def advance(self, heard: Heard) -> None:
        """Train the next job to its end."""
        if self._jobs:
            job = self._jobs.popleft()
            work(job, self._workshops[job.prepared.name], heard)

    def cancel(self) -> None:
        self._jobs.clear()

    def close(self) -> None:
        self.cancel()
