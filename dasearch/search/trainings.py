"""The trainings of a study: side by side, recorded by epoch, reported to listeners, and timed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

from dasearch.config import Recipe, StudySettings, resolve_output, with_found
from dasearch.data import Development
from dasearch.errors import described
from dasearch.search.confirmation import CONTROLS
from dasearch.search.dispatch import Batch, Dispatcher
from dasearch.search.events import FINAL, Finished, Listener, Training
from dasearch.search.executors import Executor, Inline
from dasearch.search.executors.tasks import LayoutTask, in_smaller_parts
from dasearch.search.executors.work import elsewhere
from dasearch.search.objective import Objective, Outcome, Prepared, Run, Users, checkpoint_name, data_bo
from dasearch.search.store import PostSearchTraining, Store
from dasearch.search_space import SearchSpace
from dasearch.training.loop import Trained
from dasearch.training.materials import StudyContext
from dasearch.training.progress import Epoch, Fit

T = TypeVar("T")
Report = Callable[[int, Epoch], None]  # a training's position in its group, and its epoch


class Planned(NamedTuple):
    """A planned training: its event for listeners, and its run."""

    training: Training
    run: Run


@dataclass
class Group:
    """Submitted trainings of one recipe.

    Attributes:
        report: callback for each epoch, with the position of its training; some epochs repeat.
        began: start of its first epoch.
    """

    objective: Objective
    planned: Sequence[Planned]
    batch: Batch
    report: Report
    began: float = math.inf

    @property
    def over(self) -> bool:
        """Whether every training of the group has an outcome."""
        return self.batch.over

    def objective_of(self, place: int) -> Objective:
        """The objective that trained one of them, after retries."""
        recipe = in_smaller_parts(self.objective.recipe) if place in self.batch.smaller else None
        return self.objective if recipe is None else replace(self.objective, recipe=recipe)


class Ahead(NamedTuple):
    """The work of a study after its confirmation.

    Attributes:
        finals: trainings by the final recipe.
        id_models: seconds of the ID models of the results table.
    """

    finals: int = 0
    id_models: float = 0.0


class Kept(NamedTuple):
    """A finished training after the search, and its objective."""

    run: Run
    fit: Fit
    objective: Objective

    def trained(self, executor: Executor) -> Trained:
        """Load it with its model, which may be in another place of the executor."""
        executor.fetch(self.objective.checkpoint(self.run.name))
        return self.objective.trained(self.run, self.fit)


class Ledger:
    """Records trainings while they run; this base records nothing, for trainings of which only the result is stored."""

    def epoch(self, run: str, epoch: Epoch) -> None:
        """An epoch is done; some are reported twice."""

    def began(self, one: Planned, began: datetime) -> None:
        """A training after the search begins; Optuna keeps only the times of trials."""

    def ended(self, one: Planned, ended: datetime, *, workers: Sequence[str], reason: str | None) -> None:
        """A training ended: its workers, and the cause if it failed."""


class StudyLedger(Ledger):
    """Records trainings in the database of a study."""

    def __init__(self, store: Store, study: str) -> None:
        self._store, self._study = store, study

    def epoch(self, run: str, epoch: Epoch) -> None:
        """Record an epoch; recording it again replaces it."""
        self._store.add_epoch(self._study, run, epoch)

    def began(self, one: Planned, began: datetime) -> None:
        """Record that a training began."""
        training = one.training
        record = PostSearchTraining(
            one.run.name, training.phase, training.label, training.layout, training.index, training.total, began
        )
        self._store.begin_training(self._study, record)

    def ended(self, one: Planned, ended: datetime, *, workers: Sequence[str], reason: str | None) -> None:
        """Record that a training ended, where it ran, and the cause of a failure."""
        self._store.end_training(self._study, one.run.name, ended, workers=workers, reason=reason)


class Trainer:
    """Trains layouts side by side in an executor; records, reports and times them.

    Args:
        metric: the study's selection metric.
    """

    def __init__(self, executor: Executor, ledger: Ledger, listener: Listener, metric: str) -> None:
        self.executor, self.ledger, self.listener, self.metric = executor, ledger, listener, metric
        self.dispatcher = Dispatcher(executor, listener.says)
        self.pace = 0.0  # seconds per user and epoch of one training, its share where several run side by side
        self._last_over = 0.0

    def score(self, fit: Fit) -> float:
        """The score of a training in the study's selection metric."""
        return fit.metrics.record()[self.metric]

    def begin(
        self,
        objective: Objective,
        planned: Sequence[Planned],
        report: Report = lambda place, epoch: None,
    ) -> Group:
        """Submit trainings that run side by side; `wait` advances them. ``report`` as in `Group`."""
        for training, _ in planned:
            self.listener.started(training)

        def heard(place: int, epoch: Epoch) -> None:
            group.began = min(group.began, time.perf_counter() - epoch.seconds)
            self._record(planned[place], epoch)
            report(place, epoch)
            self.listener.epoch(planned[place].training, epoch)

        assert objective.prepared is not None  # an objective with an executor has prepared materials
        task = LayoutTask.of(objective, [run for _, run in planned])
        batch = self.dispatcher.submit(task, objective.prepared, objective.folder, heard)
        group = Group(objective, planned, batch, report)
        return group

    def wait(self) -> None:
        """Block until an event of some group is handled."""
        self.dispatcher.wait()

    def outcomes(self, group: Group) -> list[Outcome]:
        """The outcomes of a finished group, in order."""
        found = group.batch.in_order
        for place, outcome in enumerate(found):
            if isinstance(outcome, Fit):
                for (
                    epoch
                ) in outcome.progress.epochs:  # an epoch that was checkpointed just before a kill may be unrecorded
                    self._record(group.planned[place], epoch)
                    group.report(place, epoch)
        self._keep_pace(group, found)
        return found

    def _record(self, one: Planned, epoch: Epoch) -> None:
        self.ledger.epoch(one.run.name, epoch)

    def later(
        self,
        parts: Iterable[tuple[Objective, Sequence[Planned]]],
        keep: Callable[[Planned, Fit], None] = lambda one, fit: None,
        *,
        needed: Callable[[Planned], bool],
    ) -> dict[str, Kept]:
        """Train after the search, as many batches at a time as there are workers; each is stored when it ends.

        Args:
            parts: trainings and their objectives; each is drawn when there is room for it.
            keep: stores a training and its result.
            needed: whether the study needs a training; other failed ones are dropped with a message.

        Returns:
            The trainings that did not fail, by the name of their run.

        Raises:
            Exception: the cause of a failed needed training, after all others are stored.
        """
        waiting = ((by, batch) for by, planned in parts for batch in batches(planned, by.at_once))
        running, failed = list[Group](), list[tuple[Planned, Exception]]()
        found: dict[str, Kept] = {}
        while True:
            while (self.dispatcher.idle > 0 or not running) and (part := next(waiting, None)):
                running.append(self._begin_later(*part))
            if not running:
                break
            self.wait()
            for group in [group for group in running if group.over]:
                running.remove(group)
                failed += self._keep(group, keep, found)
        for one, error in failed:
            if needed(one):
                raise error
            self.listener.says(f"{one.training.phase} without {one.training.label}: {described(error)}")
        return found

    def _begin_later(self, objective: Objective, batch: Sequence[Planned]) -> Group:
        began = datetime.now(UTC)
        for one in batch:
            self.ledger.began(one, began)
        return self.begin(objective, batch)

    def _keep(
        self, group: Group, keep: Callable[[Planned, Fit], None], found: dict[str, Kept]
    ) -> list[tuple[Planned, Exception]]:
        """Store the trained models of a group; its failed trainings, and their causes."""
        failed = []
        outcomes, ended = self.outcomes(group), datetime.now(UTC)
        left = self.left_after(group.planned[-1].training, group.objective)
        for place, (one, outcome) in enumerate(zip(group.planned, outcomes, strict=True)):
            workers = elsewhere(group.batch.workers.get(place, []))
            reason = None if isinstance(outcome, Fit) else described(outcome)
            self.ledger.ended(one, ended, workers=workers, reason=reason)
            if isinstance(outcome, Fit):
                keep(one, outcome)
                found[one.run.name] = Kept(one.run, outcome, group.objective_of(place))
                self.listener.finished(Finished(one.training, self.score(outcome), None, None, outcome.seconds, left))
            else:
                failed.append((one, outcome))
        return failed

    def _keep_pace(self, group: Group, outcomes: Sequence[Outcome]) -> None:
        now, slots = time.perf_counter(), self.dispatcher.executor.slots
        elapsed, self._last_over = max(0.0, now - max(group.began, self._last_over)), now
        trained = [outcome for outcome in outcomes if isinstance(outcome, Fit)]
        if not trained:
            return
        whole = max(elapsed, sum(one.seconds for one in trained) / slots)  # more, where they resumed from checkpoints
        pace = whole / (len(trained) * group.objective.work)
        self.pace = pace if not self.pace else 0.7 * self.pace + 0.3 * pace

    def left_after(self, last: Training, objective: Objective) -> float:
        """An estimate of the remaining seconds after a training by an objective."""
        return self.pace * (last.total - last.index) * objective.work


class Trainings(Trainer):
    """Trains layouts of one study by its trial recipe (``short``) and by its final one (``full``).

    Args:
        executor: that runs the trainings; None: in this process.
        prepared: the executor's reference to the materials; None: they are passed to it now.
        ahead: work after the confirmation; None: none.
    """

    def __init__(
        self,
        settings: StudySettings,
        space: SearchSpace,
        materials: StudyContext,
        store: Store,
        listener: Listener,
        executor: Executor | None = None,
        prepared: Prepared | None = None,
        ahead: Ahead | None = None,
    ) -> None:
        executor = executor or Inline()
        super().__init__(executor, StudyLedger(store, settings.name), listener, settings.search.metric)
        self.settings, self.store = settings, store
        self.checkpoints = resolve_output(settings) / "checkpoints"
        self.prepared = prepared or executor.prepare(materials)

        def objective(materials: StudyContext, recipe: Recipe, users: Users) -> Objective:
            found = Objective(
                settings,
                materials,
                recipe,
                space.file.structure,
                self.checkpoints,
                users=users,
                prepared=self.prepared,
            )
            return replace(found, counted=executor.width(found.at_once))

        development: Development = materials.development
        self.short = objective(materials.on(data_bo(settings, development)), settings.trial, Users.DATA_BO)
        self.full = objective(materials, settings.final, Users.EVERYONE)
        self.ahead = ahead or Ahead()

    def forget(self, run: str) -> None:
        """Remove the checkpoint of a run whose result is stored."""
        self.executor.forget(self.checkpoints / checkpoint_name(run))

    def trying(self, values: Mapping[str, Any]) -> Objective:
        """``short`` under values of the settings searched besides the layout."""
        if not values:
            return self.short
        settings = with_found(self.settings, values)
        materials = self.short.materials.under(settings)
        return replace(self.short, settings=settings, materials=materials, recipe=settings.trial)

    def left_after(self, last: Training, objective: Objective) -> float:
        """An estimate of the study's remaining seconds after a training of the confirmation or the final phase."""
        to_come = last.total - last.index
        if last.phase == FINAL:
            self.ahead = self.ahead._replace(finals=to_come)
            return self.seconds_left(0, to_come)
        return self.seconds_left(to_come, self.ahead.finals)

    def seconds_left(self, short: int, full: int) -> float:
        """An estimate from the pace so far for these numbers of trainings by each recipe, and the ID models after them."""
        return self.pace * (short * self.short.work + full * self.full.work) + self.ahead.id_models


def batches(planned: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Consecutive chunks of ``size``; the last one may be smaller."""
    for first in range(0, len(planned), size):
        yield planned[first : first + size]


def confirmation_trainings(settings: StudySettings) -> int:
    """Maximum number of trainings of the confirmation."""
    return (settings.search.candidates + CONTROLS) * settings.search.confirm_seeds


def final_trainings(settings: StudySettings) -> int:
    """Maximum number of trainings of the results table: the winner, the controls and the variations, with every seed."""
    controls = CONTROLS if settings.comparison.random else CONTROLS - 1
    return (1 + controls + len(settings.compared_variations)) * settings.comparison.seeds
