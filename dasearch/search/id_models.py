"""The ID models that are rows of the results table: which are trained, where, and an estimate of their time."""

from __future__ import annotations

from typing import NamedTuple

from dasearch.config import StudySettings
from dasearch.errors import described
from dasearch.models.id_encoders import ENCODERS, EncoderSettings, IDEncoder
from dasearch.search.dispatch import Batch
from dasearch.search.events import FINAL
from dasearch.search.executors.tasks import EncoderTask
from dasearch.search.objective import Outcome, checkpoint_name
from dasearch.search.trainings import Trainings
from dasearch.training.encoders import (
    encoder_training,
    epoch_words,
    kept_encoder,
    known_encoder,
    needs_training,
    outcome_words,
    training_seconds,
)
from dasearch.training.materials import StudyContext
from dasearch.training.progress import Epoch
from dasearch.training.seeds import derive_seed
from dasearch.training.shared import Passing, SharedInputs


class PlannedEncoder(NamedTuple):
    """An ID encoder of the results table, the ``number``-th of its kind."""

    recipe: EncoderSettings
    number: int
    seed: int

    @property
    def title(self) -> str:
        """Its name in tables."""
        return ENCODERS[self.recipe.name].title


def planned_encoders(settings: StudySettings) -> list[PlannedEncoder]:
    """All encoders, each with every seed."""
    comparison = settings.comparison
    recipes = [comparison.encoder.model_copy(update={"name": name, "file": None}) for name in comparison.encoders]
    seeds = [derive_seed(settings.seed, "comparison", number) for number in range(comparison.seeds)]
    return [PlannedEncoder(one, number, seed) for one in recipes for number, seed in enumerate(seeds)]


def encoder_seconds(settings: StudySettings, materials: SharedInputs) -> list[float]:
    """Upper bound of the seconds of each of `planned_encoders` on this machine; 0 where it is cached."""
    paces: dict[str, float] = {}  # all seeds take the same time
    found = []
    for recipe, _, seed in planned_encoders(settings):
        is_new = needs_training(recipe, materials, seed)
        if is_new and recipe.name not in paces:
            paces[recipe.name] = training_seconds(recipe, materials)
        found.append(paces[recipe.name] if is_new else 0.0)
    return found


class EncoderTrainings:
    """The ID encoders of the results table, trained in the study's executor, or loaded from the cache.

    They share the queue of the executor with the other rows of the table.

    Args:
        seconds: as of `encoder_seconds`.
    """

    def __init__(self, trainings: Trainings, materials: StudyContext, seconds: list[float]) -> None:
        self.trainings, self.materials, self.seconds = trainings, materials, seconds
        self.planned = planned_encoders(trainings.settings)
        self._batches: dict[int, Batch] = {}

    def begin(self) -> None:
        """Submit those that are not cached."""
        for index, one in enumerate(self.planned):
            if needs_training(one.recipe, self.materials, one.seed):
                self._batches[index] = self._sent(index, one)
        self._count()

    def ended(self) -> dict[str, list[IDEncoder]]:
        """Wait for them; the encoders by title, one per seed. An encoder is dropped if one of its trainings failed."""
        while any(not batch.over for batch in self._batches.values()):
            self.trainings.wait()
        found: dict[str, list[IDEncoder | None]] = {}
        for index, one in enumerate(self.planned):
            found.setdefault(one.title, []).append(self._trained(index, one))
        whole = {title: [one for one in own if one is not None] for title, own in found.items()}
        return {title: own for title, own in whole.items() if len(own) == len(found[title])}

    def _sent(self, index: int, one: PlannedEncoder) -> Batch:
        trainings, place = self.trainings, f"{index + 1}/{len(self.planned)}  "

        def heard(_: int, epoch: Epoch) -> None:
            trainings.listener.says(Passing(f"{place}{epoch_words(one.recipe, epoch)} (seed {one.number})"))

        def over(_: int, outcome: Outcome) -> None:
            if isinstance(outcome, Exception):
                trainings.listener.says(f"{FINAL} without {one.title}, seed {one.number}: {described(outcome)}")
            else:
                words = outcome_words(one.recipe, outcome.progress)
                trainings.listener.says(type(words)(f"{place}{words}"))
            self._count()
            trainings.listener.left(trainings.seconds_left(0, trainings.ahead.finals))

        task = EncoderTask(f"encoder/{one.recipe.name}/{one.number}", one.recipe, one.seed)
        return trainings.dispatcher.submit(task, trainings.prepared, trainings.checkpoints, heard, over)

    def _count(self) -> None:
        """Update what the ID models to come add to the time left."""
        to_come = sum(self.seconds[index] for index, batch in self._batches.items() if not batch.over)
        slots = self.trainings.executor.slots
        self.trainings.ahead = self.trainings.ahead._replace(id_models=to_come / slots)

    def _trained(self, index: int, one: PlannedEncoder) -> IDEncoder | None:
        batch = self._batches.get(index)
        if batch is None:
            return known_encoder(one.recipe, self.materials, one.seed)
        if isinstance(batch.in_order[0], Exception):
            return None
        checkpoint = self.trainings.checkpoints / checkpoint_name(batch.task.names[0])
        self.trainings.executor.fetch(checkpoint)
        return kept_encoder(encoder_training(one.recipe, self.materials, one.seed, checkpoint), self.materials)
