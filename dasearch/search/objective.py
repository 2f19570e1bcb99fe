"""From a layout to its score: one training on Data_BO, validation MRR out.

It is handed `Development` data only, which carries no test item.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dasearch.config import Recipe, StudySettings
from dasearch.layout import Layout
from dasearch.training.loop import Epoch, Trained, train
from dasearch.training.materials import Materials

TRIAL_SEED = 0  # common random numbers: every trial starts from the same weights and sees the same batches


@dataclass(frozen=True)
class Objective:
    """Trains layouts of one study under one recipe.

    Args:
        materials: of the users to train and validate on; Data_BO for trials, everyone for the final training.
        folder: where unfinished trainings keep their checkpoints.
    """

    settings: StudySettings
    materials: Materials
    recipe: Recipe
    replace_every: int
    folder: Path

    def train(self, layout: Layout, *, run: str, seed: int, on_epoch: Callable[[Epoch], None]) -> Trained:
        """Train a layout, going on from this run's checkpoint if there is one."""
        return train(
            self.settings,
            self.materials,
            layout,
            self.recipe,
            replace_every=self.replace_every,
            seed=seed,
            checkpoint=self.checkpoint(run),
            on_epoch=on_epoch,
        )

    def checkpoint(self, run: str) -> Path:
        return self.folder / f"{run.replace('/', '_')}.safetensors"

    def forget(self, run: str) -> None:
        """Remove the checkpoint of a run whose result is kept."""
        self.checkpoint(run).unlink(missing_ok=True)

    @property
    def work(self) -> int:
        """Users times epochs of one training: what its seconds are proportional to."""
        return len(self.materials.development.users) * self.recipe.epochs
