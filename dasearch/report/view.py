"""An immutable snapshot of one study for reports, figures and the dashboard, read at once.

Independent of HTML, and of the store except in `read_view`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from typing import Any

from dasearch.bayes import Proposal
from dasearch.config import StudySettings, parse_study
from dasearch.errors import WrongUse
from dasearch.layout import Difference, Layout
from dasearch.models.cost import Cost, SiteCosts
from dasearch.report.learned import Learned, learn
from dasearch.search.causes import cause_of, failed, workers_of
from dasearch.search.confirmation import OBJECTIVE, WINNER, ConfirmedLayout, standings, t_interval, winner_of
from dasearch.search.domain import Domain, Point, trial_run
from dasearch.search.events import DONE
from dasearch.search.front import Selection
from dasearch.search.store import (
    Artifact,
    Confirmation,
    FinalTraining,
    PostSearchTraining,
    PriorTrial,
    Result,
    Store,
    TrialRecord,
)
from dasearch.search.study import STARTED_IN, stored_space
from dasearch.search_space import SearchSpace
from dasearch.training.metrics import Interval
from dasearch.training.progress import Epoch

LEAD_METRIC = "NDCG@10"  # the metric of comparisons in the results table


class State(StrEnum):
    """State of a trial, in Optuna's terms."""

    COMPLETE = "complete"
    RUNNING = "running"
    WAITING = "waiting"
    PRUNED = "pruned"
    FAIL = "fail"

    @property
    def word(self) -> str:
        """The state as shown to users."""
        return "failed" if self is State.FAIL else self.value


@dataclass(frozen=True)
class Trial:
    """One evaluation of a layout, or an attempt at it.

    Attributes:
        settings: searched besides the layout, by key.
        score: on validation data, in the study's metric; None until the trial is complete.
        curve: the same by epoch, counted from 0.
        epochs: the epochs of ``curve`` with their losses and seconds, where recorded.
        seconds: of training; of the attempt where no training finished.
        peak_memory: in bytes.
        retry_of: the failed trial that this one repeats.
        reason: why it was pruned or failed, or has no valid layout.
        workers: ``machine:process``, one per attempt; empty for the study's own process.
    """

    number: int
    state: State
    layout: Layout | None = None
    score: float | None = None
    curve: Mapping[int, float] | None = None
    epochs: tuple[Epoch, ...] = ()
    seconds: float | None = None
    parameters: int | None = None
    peak_memory: int | None = None
    started: datetime | None = None
    ended: datetime | None = None
    retry_of: int | None = None
    reason: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    workers: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether its training failed, or it was lost."""
        return failed(self.state, self.reason)

    @property
    def surrogate_target(self) -> float | None:
        """The signal of a complete trial for the surrogate: the mean of its curve (`dasearch.bayes.curve_mean`)."""
        if not self.curve:
            return self.score
        return sum(self.curve.values()) / len(self.curve)


@dataclass(frozen=True)
class TrialDifference:
    """The difference between two trials' layouts.

    Attributes:
        score: of the second minus that of the first, one training each; None where one is not complete.
        confirmed: the same over fresh seeds, paired, with its 95% t interval; None unless both layouts were confirmed.
    """

    before: Trial
    after: Trial
    sites: tuple[Difference, ...]
    score: float | None
    confirmed: Interval | None
    metric: str = OBJECTIVE


@dataclass(frozen=True, eq=False)
class StudyView:
    """A study at one moment, ``read``."""

    name: str
    phase: str
    settings: StudySettings
    space: SearchSpace
    dataset: Mapping[str, Any]
    versions: Mapping[str, str]
    created: datetime
    read: datetime
    trials: tuple[Trial, ...] = ()
    proposals: tuple[Proposal, ...] = ()
    confirmations: tuple[Confirmation, ...] = ()
    results: tuple[Result, ...] = ()
    final_trainings: tuple[FinalTraining, ...] = ()
    later_trainings: tuple[PostSearchTraining, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    prior: tuple[PriorTrial, ...] = ()  # of the warm start
    costs: Mapping[Cost, SiteCosts] = field(default_factory=dict)  # of layouts; None without a cost

    @property
    def metric(self) -> str:
        """The selection metric of layouts."""
        return self.settings.search.metric

    @cached_property
    def domain(self) -> Domain:
        """The search domain: layouts, and settings besides them."""
        return Domain.of(self.settings, self.space)

    @cached_property
    def settings_found(self) -> dict[str, Any]:
        """The best values so far of the settings searched besides the layout, by key."""
        return self.domain.named(self.domain.best_values(self._signals))

    @cached_property
    def _signals(self) -> dict[Point, float]:
        """The signal of every complete trial for the surrogate."""
        signals = {Point(t.layout, tuple(t.settings.values())): t.surrogate_target for t in self.completed if t.layout}
        return {point: signal for point, signal in signals.items() if signal is not None}

    @cached_property
    def selection(self) -> Selection | None:
        """How a study with a cost chooses among confirmed layouts; None without one."""
        return Selection.of(self.settings.search, self.costs)

    @cached_property
    def completed(self) -> tuple[Trial, ...]:
        """Trials with a layout and a score, in the order of their numbers."""
        return tuple(t for t in self.trials if t.state is State.COMPLETE and t.layout and t.score is not None)

    @cached_property
    def standings(self) -> tuple[ConfirmedLayout, ...]:
        """Confirmed layouts, the best mean first."""
        return tuple(standings(self.confirmations, self.space.all_serial, self.metric))

    @property
    def best(self) -> Trial | None:
        """The complete trial with the best score, the earliest on ties."""
        return max(self.completed, key=lambda trial: (_score(trial), -trial.number), default=None)

    @property
    def best_word(self) -> str:
        """A phrase for the layout of `winner`."""
        return WINNER if self.phase == DONE else "best so far"

    @property
    def winner(self) -> Layout | None:
        """The layout that was trained in full, or is to be; before any is confirmed, that of the best trial."""
        layout = winner_of(self.results, self.standings, self.space, self.selection)
        if layout is not None:
            return layout
        return None if self.best is None else self.best.layout

    @cached_property
    def learned(self) -> Learned | None:
        """The surrogate's effects from the complete trials; None where they are too few."""
        return learn(self.domain, self._signals)

    def top(self, k: int) -> list[Layout]:
        """The best k evaluated layouts: by posterior mean, which is less noisy, or by score where no surrogate is fitted."""
        values = {trial.layout: _score(trial) for trial in self.completed if trial.layout}
        if self.learned is not None:
            values = {layout: self.learned.predicted[layout].mean for layout in values}
        return sorted(values, key=lambda layout: -values[layout])[:k]

    def trial(self, number: int) -> Trial:
        """The trial with a number.

        Raises:
            WrongUse: if there is no such trial.
        """
        match = next((trial for trial in self.trials if trial.number == number), None)
        if match is None:
            known = f"its trials are 0 to {self.trials[-1].number}" if self.trials else "it has no trials yet"
            raise WrongUse(f"study {self.name!r} has no trial {number}; {known}")
        return match

    def trial_of(self, layout: Layout) -> Trial | None:
        """The complete trial that evaluated a layout."""
        return next((trial for trial in self.completed if trial.layout == layout), None)

    def difference(self, before: int, after: int) -> TrialDifference:
        """The difference from one trial to another.

        Raises:
            WrongUse: if there is no such trial, or one has no layout yet.
        """
        first, second = self.trial(before), self.trial(after)
        if first.layout is None or second.layout is None:
            without = first if first.layout is None else second
            raise WrongUse(f"trial {without.number} of {self.name!r} has no layout yet; choose another")
        scores = (first.score, second.score)
        score = None if scores[0] is None or scores[1] is None else scores[1] - scores[0]
        confirmed = self._confirmed_difference(first.layout, second.layout)
        return TrialDifference(first, second, first.layout.diff(second.layout), score, confirmed, self.metric)

    def _confirmed_difference(self, before: Layout, after: Layout) -> Interval | None:
        if before == after:
            return None
        first, second = self.seed_scores(before), self.seed_scores(after)
        shared = sorted(set(first) & set(second))
        return t_interval([second[seed] - first[seed] for seed in shared]) if shared else None

    def seed_scores(self, layout: Layout) -> dict[int, float]:
        """The confirmed score of a layout by seed."""
        return {c.seed: c.metrics[self.metric] for c in self.confirmations if c.layout == layout}


def _score(trial: Trial) -> float:
    return float("-inf") if trial.score is None else trial.score


def read_view(store: Store, name: str) -> StudyView:
    """A snapshot of a stored study; may be read while another process runs it.

    Raises:
        StoreError: if the database has no such study, or this version cannot read its search space.
    """
    stored = store.begun(name)
    settings, space = parse_study(stored.settings, source=f"study {name}"), stored_space(stored)
    domain, epochs = Domain.of(settings, space), store.epochs_by_run(name)
    return StudyView(
        name=stored.name,
        phase=stored.phase,
        settings=settings,
        space=space,
        dataset={key: value for key, value in stored.dataset.items() if key != STARTED_IN},
        versions=stored.versions,
        created=datetime.fromtimestamp(stored.created, UTC),
        read=datetime.fromtimestamp(time.time(), UTC),
        trials=tuple(_trial(record, domain, epochs) for record in store.trials(name)),
        proposals=tuple(store.proposals(name)),
        confirmations=tuple(store.confirmations(name)),
        results=tuple(store.results(name)),
        final_trainings=tuple(store.final_trainings(name)),
        later_trainings=tuple(store.later_trainings(name)),
        artifacts=tuple(store.artifacts(name)),
        prior=tuple(store.prior(name)),
        costs=store.costs(name),
    )


def _trial(record: TrialRecord, domain: Domain, epochs: Mapping[str, Sequence[Epoch]]) -> Trial:
    layout, settings = domain.point(record.params) if domain.holds(record.params) else (None, ())
    named = domain.named(settings) if layout else {}
    run = trial_run(layout, named) if layout else ""
    own = [epoch for epoch in epochs.get(run, ()) if epoch.number in record.curve]
    state, kept = State(record.state), record.attributes
    return Trial(
        number=record.number,
        state=state,
        layout=layout,
        score=record.score if state is State.COMPLETE else None,
        curve=record.curve,
        epochs=tuple(own),
        seconds=record.seconds,
        parameters=kept.get("parameters"),
        peak_memory=kept.get("peak_memory"),
        started=record.started,
        ended=record.ended,
        retry_of=record.retry_of,
        settings=named,
        reason=cause_of(record, domain),
        workers=workers_of(record),
    )
