"""Weights & Biases runs in ``wandb/`` of the study's folder, grouped by study; ``wandb sync`` uploads them.

Offline unless ``WANDB_MODE`` is set; the project is ``WANDB_PROJECT``, by default dasearch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # before the import; dasearch works offline

import wandb

from dasearch.config import StudySettings, resolve_output
from dasearch.report.tracking import STUDY

MODE, PROJECT = "WANDB_MODE", "WANDB_PROJECT"
STEP = "step"  # steps restart in each phase, and W&B's own steps only increase


class WeightsAndBiases:
    """A `Tracker` with a W&B run for the study and one for each training."""

    def __init__(self, settings: StudySettings) -> None:
        self.study, self.folder = settings.name, resolve_output(settings).absolute()
        self._runs: dict[str, wandb.Run] = {}

    def begin(self, run: str, facts: Mapping[str, str]) -> None:
        """Start a run in the study's group."""
        begun = self._runs[run] = wandb.init(
            project=os.environ.get(PROJECT, "dasearch"),
            group=self.study,
            name=self.study if run == STUDY else run,
            job_type=run.partition("/")[0],
            config=dict(facts),
            dir=self.folder,
            mode=os.environ.get(MODE, "offline"),
            reinit="create_new",  # the study's run stays open during its trainings
            settings=wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True),
        )
        begun.define_metric("*", step_metric=STEP)

    def log(self, run: str, numbers: Mapping[str, float], step: int) -> None:
        """Add a point to each curve."""
        self._runs[run].log({**numbers, STEP: step})

    def table(self, run: str, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Write a table."""
        self._runs[run].log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def end(self, run: str, *, failed: bool) -> None:
        """Finish the run, or mark it as failed."""
        self._runs.pop(run).finish(exit_code=int(failed))

    def close(self) -> None:
        """Finish the study's run, and mark open ones as interrupted."""
        for run, begun in self._runs.items():
            begun.finish(exit_code=int(run != STUDY))
        self._runs.clear()
