"""Runs jobs one after another in the study's own process, with all its cores, without workers or bundles."""

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
    """Runs jobs in the study's own process."""

    slots = 1

    def __init__(self) -> None:
        self._workshops: dict[str, Workshop] = {}
        self._jobs: deque[Job] = deque()

    def prepare(self, materials: StudyContext) -> Prepared:
        """Keep the materials in memory under a number."""
        name = str(len(self._workshops))
        self._workshops[name] = Workshop(materials)
        return Prepared(name, materials.method.settings)

    def fetch(self, checkpoint: Path) -> None:
        """Nothing to do: the checkpoint is on this machine."""

    def forget(self, checkpoint: Path) -> None:
        """Remove a checkpoint."""
        checkpoint.unlink(missing_ok=True)

    def forget_all(self, checkpoints: Path) -> None:
        """Remove a folder of checkpoints."""
        shutil.rmtree(checkpoints, ignore_errors=True)

    def width(self, at_once: int) -> int:
        """All trainings that fit side by side."""
        return at_once

    def submit(self, job: Job) -> None:
        """Queue a job."""
        self._jobs.append(job)

    def advance(self, heard: Heard) -> None:
        """Train the next job to its end."""
        if self._jobs:
            job = self._jobs.popleft()
            work(job, self._workshops[job.prepared.name], heard)

    def cancel(self) -> None:
        """Empty the queue."""
        self._jobs.clear()

    def close(self) -> None:
        """Empty the queue; no worker has to end."""
        self.cancel()
