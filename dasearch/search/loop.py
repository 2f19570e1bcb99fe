"""Ask, train, tell: the search for a layout. Liu et al. 2024 (DARec), alg. 1.

A batch of trials is asked for, one after another and each with those before it believed to run, trained side by side, and
told in the order of its numbers; with several workers as many batches are on their way. What was interrupted goes on in the
batches that it was in, so that a study comes out the same.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from dasearch.bayes import Observation, PRSampler, SpaceExhausted, curve_mean, quietly, startup_trials
from dasearch.errors import DasearchError, TrainingError, described
from dasearch.models.cost import SiteCosts, cost_of_choices
from dasearch.search.domain import Domain, Point, briefly, suggested, trial_run
from dasearch.search.events import SEARCH, TRIAL, Finished, Training
from dasearch.search.executors.work import elsewhere
from dasearch.search.objective import TRIAL_SEED, Outcome, Run
from dasearch.search.store import HEARTBEAT_SECONDS, RETRY
from dasearch.search.trainings import Group, Planned, Report, Trainings, confirmation_trainings
from dasearch.search.worth import UNLIKELY, chance_of_gain
from dasearch.training.progress import Epoch, Fit

# attributes of a trial
BROKEN = "broken"  # its training raised an error
BATCH = "batch"  # how many trials train side by side, itself among them; from when all of them are asked for
GROUP = "group"  # which of them: the number of its first trial when they were asked for

REASON = "reason"  # why its training failed
WORKERS = "workers"  # where it was trained, ``machine:process``, an attempt after the other

PROPOSED_TRIALS = 4  # of the surrogate, before its landscape is called flat


class Asked(NamedTuple):
    """A trial with the point that was proposed for it."""

    trial: Trial
    point: Point


@dataclass(frozen=True)
class Asking:
    """A batch that is on its way.

    Attributes:
        groups: for every recipe the places of its trials in the batch, and their trainings.
    """

    members: Sequence[Asked]
    planned: Sequence[Planned]
    groups: Sequence[tuple[Sequence[int], Group]]

    @property
    def over(self) -> bool:
        return all(group.over for _, group in self.groups)


class Search:
    """The search phase of one study, told and asked by one process wherever its trainings run.

    Args:
        costs: of a study with a cost, what its layouts cost.
    """

    def __init__(self, domain: Domain, trainings: Trainings, costs: SiteCosts | None = None) -> None:
        self.domain, self.space, self.trainings, self.costs = domain, domain.space, trainings, costs
        self.settings, self.store, self.listener = trainings.settings, trainings.store, trainings.listener
        self.storage = self.store.optuna_storage()
        self.prior = self.store.prior(self.settings.name)
        self.study = self._optuna_study()
        self._alive: list[Asked] = []  # asked for and not told
        self._ready = deque[Asked]()  # of them, those that are to join the next batch
        self._exhausted = False  # no layout is left

    def _optuna_study(self) -> optuna.Study:
        sampler = PRSampler(
            seed=self.settings.seed,
            n_startup=self.settings.search.startup,
            search_space=self.domain.distributions,
            prior=[Observation(self.space.encode(trial.layout), trial.value) for trial in self.prior],
            signal=curve_mean,  # predicts other seeds' MRR better than the best epoch: benchmarks/further_outputs.py
            cost=None if self.costs is None else cost_of_choices(self.space, self.costs),
            on_proposal=lambda proposal: self.store.add_proposal(self.settings.name, proposal),
        )
        study = optuna.load_study(study_name=self.settings.name, storage=self.storage, sampler=sampler)
        cost = self.settings.search.cost
        names = [self.settings.search.metric, *([] if cost is None else [cost.words])]
        if study.metric_names != names:  # what Optuna's own tools call them
            with quietly():
                study.set_metric_names(names)
        return study

    def run(self) -> None:
        """Until the budget of completed evaluations is met or every layout is known.

        The order is strict whatever ends first: a batch is asked for when the one so many before it has been told
        (`search.pending`), so that the workers decide how long a search takes and not what it finds.
        """
        self._retry_lost_trials()
        if self.prior:
            self.listener.says(f"warm start: {self.prior[0].source}, layouts: {len(self.prior)}")
        window = deque[Asking]()
        with self._released_if_interrupted(), heartbeat(self.storage, self._alive):
            for members in self._interrupted():
                window.append(self._begin(members))
            while True:
                self._require_progress()
                while len(window) < self._most_pending and (members := self._ask()):
                    window.append(self._begin(members))
                if not window:
                    break
                while not window[0].over:
                    self.trainings.wait()
                self._tell(window.popleft())
        self._say_why_it_ended()

    @property
    def _most_pending(self) -> int:
        pending = self.settings.search.pending
        return self.trainings.dispatcher.executor.slots if pending == "auto" else pending

    def _say_why_it_ended(self) -> None:
        if self._exhausted:
            self.listener.says(f"all {self.domain.choices.count} {self._points} are evaluated")
        elif self._evaluations_left() > 0 and (chance := self._small_chance()) is not None:
            search = self.settings.search
            self.listener.says(
                f"flat after {len(self.signals())} of {search.budget} trials: the chance that any layout beats all-serial by "
                f"{search.worth:.0%} is {chance:.1%}; to search on, --set search.stop_when_flat=false"
            )

    def _small_chance(self) -> float | None:
        """The chance that a layout is worth having, where it is so small that the search may stop; else None."""
        search = self.settings.search
        if self.costs is not None or self.domain.also:  # one may be cheaper, or a setting better
            return None
        if not search.stop_when_flat or self._waiting():  # what was asked for is trained, interrupted or not
            return None
        signals = self.signals()
        if len(signals) < flat_from(search.startup, len(self.space.free)):
            return None
        chance = chance_of_gain(self.domain, signals, margin=search.worth, seed=self.settings.seed)
        return chance if chance < UNLIKELY else None

    def signals(self) -> dict[Point, float]:
        """What the surrogate learned from every evaluated point."""
        return {self.domain.point(t.params): curve_mean(t) for t in self._finished(TrialState.COMPLETE)}

    @property
    def _points(self) -> str:
        return "layouts with every setting" if self.domain.also else "layouts"

    # --- ask ------------------------------------------------------------------------------------------------------

    def _interrupted(self) -> list[list[Asked]]:
        """Trials that were training when the search was interrupted, by their batches; others wait to be asked for.

        Batches of before there were groups are one, and a trial of before there were batches is known by its epochs.
        """
        found: dict[int, list[Asked]] = {}
        begun = self._begun()
        while any(_was_training(trial, begun) for trial in self._waiting()):
            asked = None
            with suppress(SpaceExhausted):  # enqueued by hand where nothing is left
                asked = self._next_asked()
            if asked is None:
                continue
            kept = self.storage.get_trial(asked.trial._trial_id)
            if _was_training(kept, begun):
                found.setdefault(kept.user_attrs.get(GROUP, -1), []).append(asked)
            else:
                self._ready.append(asked)
        return [found[group] for group in sorted(found)]

    def _begun(self) -> set[int]:
        """The groups of batches that were sent on their way: one of their trials, at least, says how many they are."""
        every = self.study.get_trials(deepcopy=False)
        return {trial.user_attrs[GROUP] for trial in every if {GROUP, BATCH} <= set(trial.user_attrs)}

    def _ask(self) -> list[Asked]:
        """The next batch; empty where the budget is on its way, no layout is left, or hardly one is worth having."""
        size = min(self.trainings.short.at_once, self._evaluations_left() - len(self._alive) + len(self._ready))
        if size <= 0 or self._exhausted or (not self._ready and self._small_chance() is not None):
            return []
        batch = [self._ready.popleft() for _ in range(min(size, len(self._ready)))]
        while len(batch) < size and not self._exhausted:
            confined = bool(batch and self.domain.also)  # trained side by side, all have one recipe
            if confined and not self._waiting():
                self.study.enqueue_trial(self.domain.named(batch[0].point.values))
            try:
                asked = self._next_asked(confined=confined)
            except SpaceExhausted:
                self._exhausted = not confined
                break
            batch += [] if asked is None else [asked]
        return batch

    def _next_asked(self, *, confined: bool = False) -> Asked | None:
        """A trial and its point; None for one that was enqueued and cannot be had.

        Args:
            confined: to the settings of its batch.

        Raises:
            SpaceExhausted: where nothing is left to propose.
        """
        with quietly():
            trial = self.study.ask()
        self.storage.record_heartbeat(trial._trial_id)  # a worker that dies before its training is missed as well
        try:
            point = self._suggested(trial)
        except SpaceExhausted as error:
            self.study.tell(trial, state=TrialState.FAIL)
            if confined or len(self._taken()) == self.domain.choices.count:
                raise
            self.listener.says(f"an enqueued trial is left out: {error}")  # only what it was given is used up
            return None
        if point in self._taken():  # enqueued by hand; a layout is trained once
            self.study.tell(trial, state=TrialState.PRUNED)
            return None
        asked = Asked(trial, point)
        self._alive.append(asked)
        return asked

    def _suggested(self, trial: Trial) -> Point:
        """What the sampler proposes.

        Raises:
            SpaceExhausted: where nothing is left to propose.
        """
        able = self.domain.distributions
        return self.domain.point({name: suggested(trial, name, distribution) for name, distribution in able.items()})

    def _waiting(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))

    def _taken(self) -> set[Point]:
        """The points that were trained or are about to be."""
        done = self._finished(TrialState.COMPLETE, TrialState.PRUNED)
        tried = {self.domain.point(t.params) for t in done if set(self.domain.distributions) <= set(t.params)}
        return tried | {point for _, point in self._alive}

    # --- train ----------------------------------------------------------------------------------------------------

    def _begin(self, members: Sequence[Asked]) -> Asking:
        """Send a batch on its way: side by side those that have one recipe, all of them but for what was enqueued by hand."""
        new = [trial for trial, _ in members if not {GROUP, BATCH} <= set(trial.user_attrs)]
        for attribute, value in ((GROUP, members[0].trial.number), (BATCH, len(members))):
            for trial in new:
                trial.set_user_attr(attribute, value)
        planned = self._planned(members)
        groups = []
        for values in dict.fromkeys(point.values for _, point in members):
            places = [place for place, (_, point) in enumerate(members) if point.values == values]
            reports = self._reports([members[place].trial for place in places])
            objective = self.trainings.trying(self.domain.named(values))
            groups.append((places, self.trainings.begin(objective, [planned[place] for place in places], reports)))
        return Asking(members, planned, groups)

    def _reports(self, trials: Sequence[Trial]) -> Report:
        """What keeps each epoch of some trials once, told it with the trial's place."""
        reported = [set(self.storage.get_trial(trial._trial_id).intermediate_values) for trial in trials]

        def report(place: int, epoch: Epoch) -> None:
            if epoch.number not in reported[place]:
                reported[place].add(epoch.number)
                self._report(trials[place], epoch)

        return report

    def _report(self, trial: Trial, epoch: Epoch) -> None:
        """A point of the trial's curve; not by `Trial.report`, which refuses studies of two objectives."""
        score = epoch.metrics[self.settings.search.metric]
        self.storage.set_trial_intermediate_value(trial._trial_id, epoch.number, score)

    def _planned(self, batch: Sequence[Asked]) -> list[Planned]:
        budget, epochs = self.settings.search.budget, self.settings.trial.epochs
        first = budget - self._evaluations_left() + 1 + self._alive.index(batch[0])
        return [
            Planned(
                Training(SEARCH, index, budget, point.layout, self._label(point), epochs, self.settings.search.metric),
                Run(point.layout, trial_run(point.layout, self.domain.named(point.values)), TRIAL_SEED),
            )
            for index, (_, point) in enumerate(batch, first)
        ]

    def _label(self, point: Point) -> str:
        settings = briefly(self.domain.named(point.values))
        return " ".join(f"{name}={value}" for name, value in settings.items()) or TRIAL

    # --- tell -----------------------------------------------------------------------------------------------------

    def _tell(self, asking: Asking) -> None:
        """Tell the trials of a batch that is over, in their order, what became of their trainings."""
        outcomes: dict[int, Outcome] = {}
        for places, group in asking.groups:
            outcomes |= dict(zip(places, self.trainings.outcomes(group), strict=True))
            for among, place in enumerate(places):
                self._keep_workers(asking.members[place].trial, group.batch.workers.get(among, []))
        for place, (asked, one) in enumerate(zip(asking.members, asking.planned, strict=True)):
            self._tell_one(asked.trial, one, outcomes[place], untold=len(asking.members) - place - 1)
            self._alive.remove(asked)

    def _tell_one(self, trial: Trial, one: Planned, outcome: Outcome, *, untold: int) -> None:
        """Tell a trial what became of its training; ``untold`` others of its batch are still to be told."""
        if isinstance(outcome, Fit):
            trial.set_user_attr("metrics", outcome.progress.best.metrics)
            trial.set_user_attr("seconds", outcome.seconds)
            trial.set_user_attr("parameters", outcome.parameters)
            trial.set_user_attr("peak_memory", outcome.peak_memory)
            score = self.trainings.score(outcome)
            self.study.tell(trial, score if self.costs is None else [score, self.costs.of(one.run.layout)])
            self.trainings.forget(one.run.name)
            self._tell_finished(one.training, score, outcome.seconds, untold)
        else:
            if not isinstance(outcome, TrainingError):
                self._require_a_success(trial, outcome)
            trial.set_user_attr(REASON, described(outcome))
            self.study.tell(trial, state=TrialState.PRUNED)
            self._tell_finished(one.training, None, 0.0, untold)

    def _tell_finished(self, training: Training, score: float | None, seconds: float, untold: int) -> None:
        scores = {self.domain.point(t.params): float(t.values[0]) for t in self._finished(TrialState.COMPLETE)}
        best = max(scores, key=lambda point: scores[point], default=None)
        top = None if best is None else scores[best]
        trials = max(0, self._evaluations_left() - untold)
        short = trials + confirmation_trainings(self.settings)
        left = self.trainings.seconds_left(short, self.trainings.ahead.finals)
        self.listener.finished(Finished(training, score, top, None if best is None else best.layout, seconds, left))

    def _keep_workers(self, trial: Trial, workers: Sequence[str]) -> None:
        """Where a trial was trained, the last attempt's last; nothing of one that this process trained."""
        if others := elsewhere(workers):
            trial.set_user_attr(WORKERS, [*trial.user_attrs.get(WORKERS, []), *others])

    def _require_a_success(self, trial: Trial, error: Exception) -> None:
        """A training that breaks costs itself alone; but where none has come to its end, the error is the study's.

        The trial goes back to the queue then. If it breaks there again, others are tried.

        Raises:
            Exception: that error.
        """
        again = self.storage.get_trial(trial._trial_id).user_attrs.get(BROKEN)
        if not again and not self._finished(TrialState.COMPLETE):
            trial.set_user_attr(BROKEN, True)
            trial.set_user_attr(REASON, described(error))
            self._release(trial)
            raise error
        self.listener.says(f"given up: {described(error)}")

    def _release(self, trial: Trial) -> None:
        """Back to the queue, to go on from its last epoch."""
        RETRY(self.study, self.storage.get_trial(trial._trial_id))
        self.study.tell(trial, state=TrialState.FAIL)

    @contextmanager
    def _released_if_interrupted(self) -> Iterator[None]:
        """Trials that do not come to their end go back to the queue, in their order."""
        try:
            yield
        except BaseException:
            for trial, _ in self._alive:
                if not self.storage.get_trial(trial._trial_id).state.is_finished():
                    self._release(trial)
            raise

    def _retry_lost_trials(self) -> None:
        """Trials of a killed process go back to the queue and on from their last epoch.

        The study's lock is ours, so any running trial is lost; in a database that knows no such lock, only one without a
        heartbeat is.
        """
        if self.storage.url.startswith(("sqlite", "postgresql")):
            give_back(self.study, self.study.get_trials(states=(TrialState.RUNNING,)), self.domain)
        else:
            with quietly():
                optuna.storages.fail_stale_trials(self.study)

    # --- where it stands ------------------------------------------------------------------------------------------

    def _finished(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states)

    def _evaluations_left(self) -> int:
        return self.settings.search.budget - len(self._finished(TrialState.COMPLETE))

    def _require_progress(self) -> None:
        failed = len(self._finished(TrialState.PRUNED))
        if failed > self.settings.search.budget:
            raise DasearchError(
                f"{failed} trainings diverged or broke, more than the budget; `dasearch status` says why; lower trial.lr, or "
                "mend what broke, and begin again with --set name=NEW"
            )


def _was_training(trial: FrozenTrial, begun: set[int]) -> bool:
    """Whether its batch was sent on its way; of ``begun`` groups or, before there were any, by what it left."""
    return BATCH in trial.user_attrs or trial.user_attrs.get(GROUP) in begun or bool(trial.intermediate_values)


def give_back(study: optuna.Study, lost: Sequence[FrozenTrial], domain: Domain) -> None:
    """Trials that run for nobody go back to the queue; one that was not asked to its end is only ended.

    Whoever is killed here leaves no trial that is neither in the queue nor running, and none twice.
    """
    with quietly():
        queued = {number for trial in study.get_trials(deepcopy=False) for number in RETRY.retry_history(trial)}
    for trial in lost:
        if set(domain.distributions) <= set(trial.params) and trial.number not in queued:
            RETRY(study, trial)
        study.tell(trial.number, state=TrialState.FAIL)


def flat_from(startup: int | None, free: int) -> int:
    """Trials before a search of so many free sites may be called flat: the startup, and some that the surrogate proposed."""
    return (startup_trials(free) if startup is None else startup) + PROPOSED_TRIALS


@contextmanager
def heartbeat(storage: optuna.storages.RDBStorage, batch: Sequence[Asked]) -> Iterator[None]:
    """Record the heartbeats of a batch, which may still grow, from a thread for as long as the block runs."""
    over = threading.Event()

    def beat() -> None:
        while not over.is_set():
            for trial, _ in tuple(batch):
                storage.record_heartbeat(trial._trial_id)
            over.wait(HEARTBEAT_SECONDS)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
