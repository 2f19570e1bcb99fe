"""Weights & Biases runs in ``wandb/`` of the study's folder, grouped by study; ``wandb sync`` uploads them.

Offline unless ``WANDB_MODE`` says otherwise; project dasearch unless ``WANDB_PROJECT`` does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # before the import; dasearch asks the network for nothing

import wandb

from dasearch.config import StudySettings, resolve_output
from dasearch.report.tracking import STUDY

MODE, PROJECT = "WANDB_MODE", "WANDB_PROJECT"
STEP = "step"  # phases count anew, and W&B's own steps only rise


class WeightsAndBiases:
    """A `Tracker` with a W&B run for the study and one for each training."""

    def __init__(self, settings: StudySettings) -> None:
        self.study, self.folder = settings.name, resolve_output(settings).absolute()
        self._runs: dict[str, wandb.Run] = {}

    def begin(self, run: str, facts: Mapping[str, str]) -> None:
        begun = self._runs[run] = wandb.init(
            project=os.environ.get(PROJECT, "dasearch"),
            group=self.study,
            name=self.study if run == STUDY else run,
            job_type=run.partition("/")[0],
            config=dict(facts),
            dir=self.folder,
            mode=os.environ.get(MODE, "offline"),
            reinit="create_new",  # the study's run stays open beside a training's
            settings=wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True),
        )
        begun.define_metric("*", step_metric=STEP)

    def log(self, run: str, numbers: Mapping[str, float], step: int) -> None:
        self._runs[run].log({**numbers, STEP: step})

    def table(self, run: str, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self._runs[run].log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def end(self, run: str, *, failed: bool) -> None:
        self._runs.pop(run).finish(exit_code=int(failed))

    def close(self) -> None:
        for run, begun in self._runs.items():
            begun.finish(exit_code=int(run != STUDY))
        self._runs.clear()
