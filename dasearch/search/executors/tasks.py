"""What a job trains: layouts side by side, or an ID encoder. As JSON values a task goes to whoever trains it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from dasearch.config import Recipe, StudySettings, parse_study
from dasearch.layout import CHOICES, Layout
from dasearch.layout_file import ChoiceRecord
from dasearch.models.id_encoders import EncoderSettings
from dasearch.search.objective import Objective, Outcome, Run, Users, checkpoint_name, data_bo
from dasearch.threads import using
from dasearch.training.encoders import encoder_training
from dasearch.training.loop import peak_memory
from dasearch.training.materials import StudyContext
from dasearch.training.progress import Epoch, Fit
from dasearch.training.shared import Say

OnEpoch = Callable[[int, Epoch], None]  # a training's place in its task, and its new epoch


class Workshop:
    """A prepared study, as tasks want it.

    Args:
        materials: of all users.
    """

    def __init__(self, materials: StudyContext) -> None:
        self.everyone = materials
        self._sampled: dict[tuple[float, int], StudyContext] = {}

    def materials(self, users: Users, settings: StudySettings) -> StudyContext:
        """Of these users, under these settings."""
        if users is Users.EVERYONE:
            return self.everyone.under(settings)
        drawn_by = (settings.data.bo_fraction, settings.seed)
        if drawn_by not in self._sampled:
            self._sampled[drawn_by] = self.everyone.on(data_bo(settings, self.everyone.development))
        return self._sampled[drawn_by].under(settings)


class Task(Protocol):
    """Trainings of one job, known by their places."""

    @property
    def names(self) -> Sequence[str]:
        """Of its trainings: what their checkpoints are kept under."""

    @property
    def minutes(self) -> float | None:
        """How long all of it may take; None: as long as it wants."""

    @property
    def minutes_each(self) -> float | None:
        """How long one of its trainings may."""

    def part(self, places: Sequence[int]) -> Task:
        """Some of its trainings."""

    def smaller(self) -> Task | None:
        """The same trainings with less memory; None where that cannot be."""

    def rows(self) -> str:
        """How many rows it takes a pass and a step, in words of its settings."""

    def train(self, workshop: Workshop, folder: Path, on_epoch: OnEpoch, say: Say) -> Sequence[Outcome]:
        """Train, each from its own checkpoint in ``folder`` on; what became of each, in order."""

    def with_threads(self, cpus: int) -> Task:
        """The same in a worker of so many cores."""

    def record(self) -> dict[str, Any]:
        """As JSON values."""


@dataclass(frozen=True)
class LayoutTask:
    """Trainings of layouts side by side under one recipe.

    Attributes:
        users: whom it trains on.
        replace_every, lora: as of `Objective`.
        at_once: how many trainings a job has as a rule, who share a worker's cores.
    """

    runs: tuple[Run, ...]
    settings: StudySettings
    recipe: Recipe
    users: Users
    replace_every: int
    lora: bool
    at_once: int

    @classmethod
    def of(cls, objective: Objective, runs: Sequence[Run]) -> LayoutTask:
        """What an objective trains."""
        return cls(
            tuple(runs),
            objective.settings,
            objective.recipe,
            objective.users,
            objective.replace_every,
            objective.lora,
            objective.at_once,
        )

    @property
    def names(self) -> list[str]:
        return [run.name for run in self.runs]

    @property
    def minutes(self) -> float | None:
        return None if self.recipe.minutes is None else self.recipe.minutes * len(self.runs)

    @property
    def minutes_each(self) -> float | None:
        return self.recipe.minutes

    def part(self, places: Sequence[int]) -> LayoutTask:
        return replace(self, runs=tuple(self.runs[place] for place in places))

    def smaller(self) -> LayoutTask | None:
        found = in_smaller_parts(self.recipe)
        return None if found is None else replace(self, recipe=found)

    def rows(self) -> str:
        return f"batch_size={self.recipe.batch_size} and accumulate={self.recipe.accumulate}"

    def train(self, workshop: Workshop, folder: Path, on_epoch: OnEpoch, say: Say) -> Sequence[Outcome]:
        objective = Objective(
            self.settings,
            workshop.materials(self.users, self.settings),
            self.recipe,
            self.replace_every,
            folder,
            lora=self.lora,
            users=self.users,
            counted=self.at_once,
        )
        return objective.train_together(self.runs, on_epoch=on_epoch, say=say)

    def with_threads(self, cpus: int) -> LayoutTask:
        return replace(self, settings=with_threads(self.settings, cpus))

    def record(self) -> dict[str, Any]:
        return {
            "kind": "layouts",
            "users": self.users.value,
            "replace_every": self.replace_every,
            "lora": self.lora,
            "at_once": self.at_once,
            "settings": self.settings.model_dump(mode="json"),
            "recipe": self.recipe.model_dump(mode="json"),
            "runs": [{**run._asdict(), "layout": _layout_record(run.layout)} for run in self.runs],
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> LayoutTask:
        runs = tuple(Run(_layout(run["layout"]), run["name"], run["seed"]) for run in record["runs"])
        read = {
            "settings": parse_study(record["settings"], source="a job"),
            "recipe": Recipe.model_validate(record["recipe"]),
            "users": Users(record["users"]),
        }
        return cls(**{**record, **read, "runs": runs})


@dataclass(frozen=True)
class EncoderTask:
    """The training of one ID encoder on everyone: in one thread, so that it comes out alike wherever it runs."""

    name: str
    settings: EncoderSettings
    seed: int

    @property
    def names(self) -> list[str]:
        return [self.name]

    @property
    def minutes(self) -> float | None:
        return None

    @property
    def minutes_each(self) -> float | None:
        return None

    def part(self, places: Sequence[int]) -> EncoderTask:
        return self

    def smaller(self) -> EncoderTask | None:
        return None

    def rows(self) -> str:
        return f"batch_size={self.settings.batch_size}"

    def train(self, workshop: Workshop, folder: Path, on_epoch: OnEpoch, say: Say) -> Sequence[Outcome]:
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
        return self

    def record(self) -> dict[str, Any]:
        return {
            "kind": "encoder",
            "name": self.name,
            "seed": self.seed,
            "settings": self.settings.model_dump(mode="json"),
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> EncoderTask:
        return cls(**{**record, "settings": EncoderSettings.model_validate(record["settings"])})


TASKS: dict[str, Callable[[dict[str, Any]], Task]] = {
    "layouts": LayoutTask.from_record,
    "encoder": EncoderTask.from_record,
}


def read_task(record: dict[str, Any]) -> Task:
    """A task from its JSON values."""
    return TASKS[record["kind"]]({key: value for key, value in record.items() if key != "kind"})


def with_threads(settings: StudySettings, cpus: int) -> StudySettings:
    """With as many threads as a worker has cores."""
    return settings.model_copy(update={"threads": cpus})


def in_smaller_parts(recipe: Recipe) -> Recipe | None:
    """Half of the rows of a forward pass, and as many rows a step; None where they cannot be halved."""
    if recipe.batch_size % 2:
        return None
    return recipe.model_copy(update={"batch_size": recipe.batch_size // 2, "accumulate": 2 * recipe.accumulate})


def _layout_record(layout: Layout) -> dict[str, Any]:
    return {"text": str(layout), "choices": [choice.record() for choice in layout.own_choices]}


def _layout(record: dict[str, Any]) -> Layout:
    own = [ChoiceRecord(**choice).choice() for choice in record["choices"]]
    return Layout.parse(record["text"], [*CHOICES.values(), *own])
