"""The trainings of a study: side by side, recorded epoch by epoch, told to whoever watches, timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

from dasearch.config import Recipe, StudySettings, resolve_output, with_found
from dasearch.data import Development
from dasearch.search.confirmation import CONTROLS
from dasearch.search.events import FINAL, Finished, Listener, Training
from dasearch.search.objective import Objective, Outcome, Run, data_bo, raise_failed
from dasearch.search.store import LaterTraining, Store
from dasearch.search_space import SearchSpace
from dasearch.training.loop import Trained
from dasearch.training.materials import Materials
from dasearch.training.stack import Epoch

T = TypeVar("T")


class Planned(NamedTuple):
    """A training that is to come: as it is told, and as it is run."""

    training: Training
    run: Run


class Trainings:
    """Trains layouts of one study by its trial recipe (``short``) and by its final one (``full``)."""

    def __init__(
        self, settings: StudySettings, space: SearchSpace, materials: Materials, store: Store, listener: Listener
    ) -> None:
        self.settings, self.store, self.listener = settings, store, listener
        self.checkpoints = resolve_output(settings) / "checkpoints"

        def objective(materials: Materials, recipe: Recipe) -> Objective:
            return Objective(
                settings, materials, recipe, space.file.replace_every, self.checkpoints, lora=space.file.has_lora
            )

        development: Development = materials.development
        self.short = objective(materials.on(data_bo(settings, development)), settings.trial)
        self.full = objective(materials, settings.final)
        self.pace = 0.0  # seconds a user and epoch of one training, its share where several run side by side

    def trying(self, values: Mapping[str, Any]) -> Objective:
        """``short`` under values of the settings that are searched beside the layout."""
        if not values:
            return self.short
        settings = with_found(self.settings, values)
        materials = self.short.materials.under(settings)
        return replace(self.short, settings=settings, materials=materials, recipe=settings.trial)

    def score(self, trained: Trained) -> float:
        """In the metric that the study chooses by."""
        return trained.metrics.record()[self.settings.search.metric]

    def together(
        self,
        objective: Objective,
        planned: Sequence[Planned],
        report: Callable[[int, Epoch], None] = lambda place, epoch: None,
    ) -> list[Outcome]:
        """Train side by side; outcomes as of `Objective.train_together`.

        Args:
            report: told each epoch with the place of its training, some twice.
        """
        for training, _ in planned:
            self.listener.started(training)

        def record(place: int, epoch: Epoch) -> None:
            self.store.add_epoch(self.settings.name, planned[place].run.name, epoch)
            report(place, epoch)

        def heard(place: int, epoch: Epoch) -> None:
            record(place, epoch)
            self.listener.epoch(planned[place].training, epoch)

        started = time.perf_counter()
        outcomes = objective.train_together([run for _, run in planned], on_epoch=heard, say=self.listener.says)
        for place, outcome in enumerate(outcomes):
            if isinstance(outcome, Trained):
                for epoch in outcome.progress.epochs:  # one checkpointed in the moment of a kill was not recorded then
                    record(place, epoch)
        self._keep_pace(objective, outcomes, time.perf_counter() - started)
        return outcomes

    def later(
        self, objective: Objective, planned: Sequence[Planned], keep: Callable[[Planned, Trained], None]
    ) -> list[Trained]:
        """Train after the search, a batch at a time; each is kept before the next batch begins.

        Raises:
            TrainingError: for a training that diverged, after the others of its batch are kept.
        """
        found: list[Trained] = []
        for batch in batches(planned, objective.at_once):
            outcomes = self._timed(objective, batch)
            left = self._left_after(batch[-1].training)
            for one, outcome in zip(batch, outcomes, strict=False):
                if isinstance(outcome, Trained):
                    keep(one, outcome)
                    found.append(outcome)
                    self.listener.finished(
                        Finished(one.training, self.score(outcome), None, None, outcome.seconds, left)
                    )
            raise_failed(outcomes)
        return found

    def _timed(self, objective: Objective, batch: Sequence[Planned]) -> list[Outcome]:
        """Train a batch and record when each of it ran: Optuna keeps the times of trials alone."""
        name, began = self.settings.name, datetime.now(UTC)
        for one, run in batch:
            record = LaterTraining(run.name, one.phase, one.label, one.layout, one.index, one.total, began)
            self.store.begin_training(name, record)
        outcomes = self.together(objective, batch)
        ended = datetime.now(UTC)
        for (_, run), outcome in zip(batch, outcomes, strict=False):
            if isinstance(outcome, Trained):
                self.store.end_training(name, run.name, ended)
        return outcomes

    def _keep_pace(self, objective: Objective, outcomes: Sequence[Outcome], elapsed: float) -> None:
        trained = [outcome for outcome in outcomes if isinstance(outcome, Trained)]
        if not trained:
            return
        whole = max(elapsed, sum(one.seconds for one in trained))  # more, where they went on from checkpoints
        pace = whole / (len(trained) * objective.work)
        self.pace = pace if not self.pace else 0.7 * self.pace + 0.3 * pace

    def _left_after(self, last: Training) -> float:
        to_come = last.total - last.index
        if last.phase == FINAL:
            return self.seconds_left(0, to_come)
        return self.seconds_left(to_come, final_trainings(self.settings))

    def seconds_left(self, short: int, full: int) -> float:
        """A guess from the pace so far for so many trainings by each recipe; ID models are not counted."""
        return self.pace * (short * self.short.work + full * self.full.work)


def batches(planned: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Its parts in order, each of ``size`` or, the last one, fewer."""
    for first in range(0, len(planned), size):
        yield planned[first : first + size]


def confirmation_trainings(settings: StudySettings) -> int:
    """How many trainings the confirmation needs at most."""
    return (settings.search.candidates + CONTROLS) * settings.search.confirm_seeds


def final_trainings(settings: StudySettings) -> int:
    """How many trainings the final table needs at most: the winner, the controls and the variations, with every seed."""
    controls = CONTROLS if settings.comparison.random else CONTROLS - 1
    return (1 + controls + len(settings.compared_variations)) * settings.comparison.seeds
