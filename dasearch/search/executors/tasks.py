"""Tasks of jobs: layouts side by side, or an ID encoder. A task is sent to a worker as JSON values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from dasearch.config import Recipe, StudySettings, parse_study
from dasearch.layout import CHOICES, Layout, Structure
from dasearch.layout_file import ChoiceRecord
from dasearch.models.id_encoders import EncoderSettings
from dasearch.search.objective import Objective, Outcome, Run, Users, checkpoint_name, data_bo
from dasearch.threads import using
from dasearch.training.encoders import encoder_training
from dasearch.training.loop import peak_memory
from dasearch.training.materials import StudyContext
from dasearch.training.progress import Epoch, Fit
from dasearch.training.shared import Say

OnEpoch = Callable[[int, Epoch], None]  # a training's position in its task, and its new epoch


class Workshop:
    """The prepared inputs of a study, for tasks.

    Args:
        materials: of all users.
    """

    def __init__(self, materials: StudyContext) -> None:
        self.everyone = materials
        self._sampled: dict[tuple[float, int], StudyContext] = {}

    def materials(self, users: Users, settings: StudySettings) -> StudyContext:
        """Inputs for these users, under these settings."""
        if users is Users.EVERYONE:
            return self.everyone.under(settings)
        drawn_by = (settings.data.bo_fraction, settings.seed)
        if drawn_by not in self._sampled:
            self._sampled[drawn_by] = self.everyone.on(data_bo(settings, self.everyone.development))
        return self._sampled[drawn_by].under(settings)


class Task(Protocol):
    """The trainings of one job, identified by their positions."""

    @property
    def names(self) -> Sequence[str]:
        """Names of its trainings, which are those of their checkpoints."""

    @property
    def minutes(self) -> float | None:
        """Time limit of the whole task in minutes; None: no limit."""

    @property
    def minutes_each(self) -> float | None:
        """Time limit of one training in minutes; None: no limit."""

    def part(self, places: Sequence[int]) -> Task:
        """The task with only the trainings at these positions."""

    def smaller(self) -> Task | None:
        """The same trainings with less memory; None where that is impossible."""

    def rows(self) -> str:
        """Its rows per forward pass and per step, in terms of its settings."""

    def train(self, workshop: Workshop, folder: Path, on_epoch: OnEpoch, say: Say) -> Sequence[Outcome]:
        """Train, each resuming from its own checkpoint in ``folder``; their outcomes, in order."""

    def with_threads(self, cpus: int) -> Task:
        """The same task for a worker with this many cores."""

    def record(self) -> dict[str, Any]:
        """As JSON values."""


@dataclass(frozen=True)
class LayoutTask:
    """Trainings of layouts side by side under one recipe.

    Attributes:
        users: that it trains on.
        structure: as in `Objective`.
        at_once: usual number of trainings per job, which share a worker's cores.
    """

    runs: tuple[Run, ...]
    settings: StudySettings
    recipe: Recipe
    users: Users
    structure: Structure
    at_once: int

    @classmethod
    def of(cls, objective: Objective, runs: Sequence[Run]) -> LayoutTask:
        """The task of an objective's runs."""
        return cls(
            tuple(runs),
            objective.settings,
            objective.recipe,
            objective.users,
            objective.structure,
            objective.at_once,
        )

    @property
    def names(self) -> list[str]:
        """Names of its runs."""
        return [run.name for run in self.runs]

    @property
    def minutes(self) -> float | None:
        """Minutes for the whole task: those of the recipe for each run."""
        return None if self.recipe.minutes is None else self.recipe.minutes * len(self.runs)

    @property
    def minutes_each(self) -> float | None:
        """Minutes for one run, from the recipe."""
        return self.recipe.minutes

    def part(self, places: Sequence[int]) -> LayoutTask:
        """The task with only the runs at these positions."""
        return replace(self, runs=tuple(self.runs[place] for place in places))

    def smaller(self) -> LayoutTask | None:
        """The task with half the rows per forward pass; None where they cannot be halved."""
        recipe = in_smaller_parts(self.recipe)
        return None if recipe is None else replace(self, recipe=recipe)

    def rows(self) -> str:
        """Its batch size and gradient accumulation, in words."""
        return f"batch_size={self.recipe.batch_size} and accumulate={self.recipe.accumulate}"

    def train(self, workshop: Workshop, folder: Path, on_epoch: OnEpoch, say: Say) -> Sequence[Outcome]:
        """Train the runs side by side; a trained model or an exception for each, in order."""
        objective = Objective(
            self.settings,
            workshop.materials(self.users, self.settings),
            self.recipe,
            self.structure,
            folder,
            users=self.users,
            counted=self.at_once,
        )
        return objective.train_together(self.runs, on_epoch=on_epoch, say=say)

    def with_threads(self, cpus: int) -> LayoutTask:
        """The task with as many threads as a worker has cores."""
        return replace(self, settings=with_threads(self.settings, cpus))

    def record(self) -> dict[str, Any]:
        """The task as JSON values, with its kind."""
        return {
            "kind": "layouts",
            "users": self.users.value,
            **self.structure._asdict(),
            "at_once": self.at_once,
            "settings": self.settings.model_dump(mode="json"),
            "recipe": self.recipe.model_dump(mode="json"),
            "runs": [{**run._asdict(), "layout": _layout_record(run.layout)} for run in self.runs],
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> LayoutTask:
        """The task of a `record`."""
        runs = tuple(Run(_layout(run["layout"]), run["name"], run["seed"]) for run in record["runs"])
        read = {
            "settings": parse_study(record["settings"], source="a job"),
            "recipe": Recipe.model_validate(record["recipe"]),
            "users": Users(record["users"]),
            "structure": Structure(**{name: record[name] for name in Structure._fields}),
            "at_once": record["at_once"],
        }
        return cls(runs, **read)


@dataclass(frozen=True)
class EncoderTask:
    """The training of one ID encoder on all users, in one thread, so that its result does not depend on the machine."""

    name: str
    settings: EncoderSettings
    seed: int

    @property
    def names(self) -> list[str]:
        """The name of its one training."""
        return [self.name]

    @property
    def minutes(self) -> float | None:
        """No time limit."""
        return None

    @property
    def minutes_each(self) -> float | None:
        """No time limit."""
        return None

    def part(self, places: Sequence[int]) -> EncoderTask:
        """The task itself: it has one training."""
        return self

    def smaller(self) -> EncoderTask | None:
        """None: its batches cannot be made smaller."""
        return None

    def rows(self) -> str:
        """Its batch size, in words."""
        return f"batch_size={self.settings.batch_size}"

    def train(self, workshop: Workshop, folder: Path, on_epoch: OnEpoch, say: Say) -> Sequence[Outcome]:
        """Train the encoder; a list of the trained encoder or the exception."""
        try:
            return [self._trained(workshop.everyone, folder / checkpoint_name(self.name), on_epoch)]
        except Exception as error:
            return [error]

    def _trained(self, materials: StudyContext, checkpoint: Path, on_epoch: OnEpoch) -> Fit:
        with using(1):
            training = encoder_training(self.settings, materials, self.seed, checkpoint)
            while not training.over:
                on_epoch(0, training.epoch())
        seconds = sum(epoch.seconds for epoch in training.progress.epochs)
        parameters = sum(parameter.numel() for parameter in training.encoder.parameters())
        return Fit(training.progress, parameters, seconds, peak_memory(torch.device("cpu")))

    def with_threads(self, cpus: int) -> EncoderTask:
        """The task itself: it trains in one thread."""
        return self

    def record(self) -> dict[str, Any]:
        """The task as JSON values, with its kind."""
        return {
            "kind": "encoder",
            "name": self.name,
            "seed": self.seed,
            "settings": self.settings.model_dump(mode="json"),
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> EncoderTask:
        """The task of a `record`."""
        return cls(**{**record, "settings": EncoderSettings.model_validate(record["settings"])})


TASKS: dict[str, Callable[[dict[str, Any]], Task]] = {
    "layouts": LayoutTask.from_record,
    "encoder": EncoderTask.from_record,
}


def read_task(record: dict[str, Any]) -> Task:
    """The task of its JSON values."""
    return TASKS[record["kind"]]({key: value for key, value in record.items() if key != "kind"})


def with_threads(settings: StudySettings, cpus: int) -> StudySettings:
    """The settings with as many threads as a worker has cores."""
    return settings.model_copy(update={"threads": cpus})


def in_smaller_parts(recipe: Recipe) -> Recipe | None:
    """The recipe with half the rows per forward pass and the same rows per step; None where they cannot be halved."""
    if recipe.batch_size % 2:
        return None
    return recipe.model_copy(update={"batch_size": recipe.batch_size // 2, "accumulate": 2 * recipe.accumulate})


def _layout_record(layout: Layout) -> dict[str, Any]:
    return {"text": str(layout), "choices": [choice.record() for choice in layout.own_choices]}


def _layout(record: dict[str, Any]) -> Layout:
    own = [ChoiceRecord(**choice).choice() for choice in record["choices"]]
    return Layout.parse(record["text"], [*CHOICES.values(), *own])
