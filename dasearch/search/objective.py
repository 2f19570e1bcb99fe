"""The objective of the search: trains a layout on Data_BO and returns its validation metric.

It receives only `Development` data, which contain no test item.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from dasearch.config import Recipe, StudySettings
from dasearch.data import Development
from dasearch.errors import TrainingError, described
from dasearch.layout import Layout, Structure
from dasearch.training.loop import Trained, candidates_at_once, train_together
from dasearch.training.materials import StudyContext
from dasearch.training.progress import Epoch, Fit
from dasearch.training.ranks import ALONE, Peers
from dasearch.training.seeds import generator_for
from dasearch.training.shared import Say
from dasearch.training.stack import Candidate

TRIAL_SEED = 0  # common random numbers: the same initial weights and batches in every trial
Outcome = Fit | Exception  # a training, or the exception that ended it: TrainingError where it diverged


class Users(StrEnum):
    """The users that a training learns from and is validated on."""

    EVERYONE = "everyone"
    DATA_BO = "Data_BO"


class Run(NamedTuple):
    """One training of a study: its layout, its name, as in `store.EpochRow`, and its seed."""

    layout: Layout
    name: str
    seed: int


@dataclass(frozen=True)
class Prepared:
    """A reference to a prepared study that an executor keeps for its jobs.

    Attributes:
        name: the sha256 of its bundle, where there is one.
        settings: that it was prepared with.
    """

    name: str
    settings: StudySettings


@dataclass(frozen=True)
class Objective:
    """Trains layouts of one study under one recipe.

    Args:
        materials: of the users to train and validate on; Data_BO for trials, all users for the final training.
        folder: of the checkpoints of unfinished trainings.
        structure: of the study's search space.
        users: of the materials.
        counted: number of runs that train side by side, if already measured; None: as `at_once` measures it.
        peers: the processes that share each training (data parallel).
        prepared: reference to the materials of all users in an executor; None for an objective that trains by itself.
    """

    settings: StudySettings
    materials: StudyContext
    recipe: Recipe
    structure: Structure
    folder: Path
    users: Users = Users.EVERYONE
    counted: int | None = None
    peers: Peers = ALONE
    prepared: Prepared | None = None

    def train(self, layout: Layout, *, run: str, seed: int, on_epoch: Callable[[Epoch], None]) -> Trained:
        """Train a layout alone, with all cores, resuming from this run's checkpoint if there is one.

        Raises:
            TrainingError: if a loss is not a finite number.
        """
        (outcome,) = self._side_by_side([Run(layout, run, seed)], lambda _, epoch: on_epoch(epoch), at_once=1)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def train_together(
        self, runs: Sequence[Run], *, on_epoch: Callable[[int, Epoch], None], say: Say = lambda _: None
    ) -> list[Trained | Exception]:
        """Train runs side by side, each resuming from its own checkpoint; their outcomes, in order.

        An error that ends the whole batch, such as too little memory, is not attributed to a run: they continue one by one.

        Args:
            runs: to train together.
            on_epoch: callback for each new epoch, with the position of its run.
            say: callback for the message on a failed batch.
        """
        try:
            return list(self._side_by_side(runs, on_epoch, self.at_once))
        except Exception as error:
            if len(runs) == 1:
                return [error]
            say(f"{len(runs)} trainings side by side failed ({described(error)}); they continue one by one")
        outcomes: list[Trained | Exception] = []  # outside the handler, whose traceback keeps the batch's memory alive
        for place, run in enumerate(runs):
            outcomes += self.train_together([run], on_epoch=_at(place, on_epoch))
        return outcomes

    def trained(self, run: Run, fit: Fit) -> Trained:
        """Load a finished run with its model from the checkpoint that a worker wrote."""
        if isinstance(fit, Trained):
            return fit
        training = self.train(run.layout, run=run.name, seed=run.seed, on_epoch=lambda _: None)
        return dataclasses.replace(training, seconds=fit.seconds, peak_memory=fit.peak_memory)

    def _side_by_side(
        self, runs: Sequence[Run], on_epoch: Callable[[int, Epoch], None], at_once: int
    ) -> list[Trained | TrainingError]:
        candidates = [Candidate(run.layout, run.seed, self.checkpoint(run.name)) for run in runs]
        return list(
            train_together(
                self.settings,
                self.materials,
                candidates,
                self.recipe,
                structure=self.structure,
                at_once=at_once,
                peers=self.peers,
                on_epoch=on_epoch,
            )
        )

    def checkpoint(self, run: str) -> Path:
        """Path of the checkpoint of a run."""
        return self.folder / checkpoint_name(run)

    def forget(self, run: str) -> None:
        """Remove the checkpoint of a run whose result is stored."""
        self.checkpoint(run).unlink(missing_ok=True)

    @cached_property
    def at_once(self) -> int:
        """Number of runs that train side by side."""
        return self.counted or at_once(self.settings, self.materials, self.recipe)

    @property
    def work(self) -> int:
        """Users times epochs of one training, which its seconds are proportional to."""
        return len(self.materials.development.users) * self.recipe.epochs


def checkpoint_name(run: str) -> str:
    """File name of a run's checkpoint."""
    return f"{run.replace('/', '_')}.safetensors"


def at_once(settings: StudySettings, materials: StudyContext, recipe: Recipe) -> int:
    """Number of trainings side by side: the study's setting, or what fits on the device."""
    batch = settings.search.batch
    return candidates_at_once(settings, materials, recipe) if batch == "auto" else batch


def _at(place: int, on_epoch: Callable[[int, Epoch], None]) -> Callable[[int, Epoch], None]:
    """A callback for a run that trains alone, with its position among the others."""
    return lambda _, epoch: on_epoch(place, epoch)


def data_bo(settings: StudySettings, development: Development) -> Development:
    """Data_BO: a seeded sample of the users with the whole catalogue (DARec sec. 3.1.1)."""
    return development.sample_users(settings.data.bo_fraction, generator_for(settings.seed, "Data_BO"))
