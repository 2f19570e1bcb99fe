"""Ask, train, tell: the search for a layout. Liu et al. 2024 (DARec), alg. 1.

The trials of a batch are asked for one by one, each with the earlier ones as pending, trained side by side, and told in the
order of their numbers; with several workers as many batches run at once. Interrupted trials resume in their former
batches, so that a study gives the same results.
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
BROKEN = "broken"  # the trial's training raised an error
BATCH = "batch"  # batch size, set once all of its trials are asked for
GROUP = "group"  # id of the batch: the number of its first trial when asked

REASON = "reason"  # why its training failed
WORKERS = "workers"  # workers, ``machine:process``, one per attempt

PROPOSED_TRIALS = 4  # proposals of the surrogate before its landscape may be called flat


class Asked(NamedTuple):
    """A trial with the point that was proposed for it."""

    trial: Trial
    point: Point


@dataclass(frozen=True)
class Asking:
    """A submitted batch.

    Attributes:
        groups: for every recipe the positions of its trials in the batch, and their trainings.
    """

    members: Sequence[Asked]
    planned: Sequence[Planned]
    groups: Sequence[tuple[Sequence[int], Group]]

    @property
    def over(self) -> bool:
        """Whether every group of the batch is finished."""
        return all(group.over for _, group in self.groups)


class Search:
    """The search phase of one study; one process asks and tells, wherever the trainings run.

    Args:
        costs: the costs of layouts, in a study with a cost.
    """

    def __init__(self, domain: Domain, trainings: Trainings, costs: SiteCosts | None = None) -> None:
        self.domain, self.space, self.trainings, self.costs = domain, domain.space, trainings, costs
        self.settings, self.store, self.listener = trainings.settings, trainings.store, trainings.listener
        self.storage = self.store.optuna_storage()
        self.prior = self.store.prior(self.settings.name)
        self.study = self._optuna_study()
        self._alive: list[Asked] = []  # asked but not told
        self._ready = deque[Asked]()  # those of them that join the next batch
        self._exhausted = False  # every layout was proposed

    def _optuna_study(self) -> optuna.Study:
        sampler = PRSampler(
            seed=self.settings.seed,
            n_startup=self.settings.search.startup,
            search_space=self.domain.distributions,
            prior=[Observation(self.space.encode(trial.layout), trial.value) for trial in self.prior],
            signal=curve_mean,  # predicts MRR under other seeds better than the best epoch does: benchmarks/further_outputs.py
            cost=None if self.costs is None else cost_of_choices(self.space, self.costs),
            on_proposal=lambda proposal: self.store.add_proposal(self.settings.name, proposal),
        )
        study = optuna.load_study(study_name=self.settings.name, storage=self.storage, sampler=sampler)
        cost = self.settings.search.cost
        names = [self.settings.search.metric, *([] if cost is None else [cost.words])]
        if study.metric_names != names:  # names that Optuna's tools show
            with quietly():
                study.set_metric_names(names)
        return study

    def run(self) -> None:
        """Run until the budget of completed evaluations is spent or every layout is evaluated.

        The order is strict, whichever batch ends first: a batch is asked for when the one `search.pending` before it has
        been told, so that the number of workers affects the time of a search and not its result.
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
                f"{search.worth:.0%} is {chance:.1%}; to continue, --set search.stop_when_flat=false"
            )

    def _small_chance(self) -> float | None:
        """The probability that some layout is worth having, where it is low enough to stop the search; else None."""
        search = self.settings.search
        if self.costs is not None or self.domain.also:  # a layout may be cheaper, or a setting better
            return None
        if not search.stop_when_flat or self._waiting():  # trials that were asked for are trained, even if interrupted
            return None
        signals = self.signals()
        if len(signals) < flat_from(search.startup, len(self.space.free)):
            return None
        chance = chance_of_gain(self.domain, signals, margin=search.worth, seed=self.settings.seed)
        return chance if chance < UNLIKELY else None

    def signals(self) -> dict[Point, float]:
        """The signal of every evaluated point, which the surrogate is fitted to."""
        return {self.domain.point(t.params): curve_mean(t) for t in self._finished(TrialState.COMPLETE)}

    @property
    def _points(self) -> str:
        return "layouts with every setting" if self.domain.also else "layouts"

    # --- ask ------------------------------------------------------------------------------------------------------

    def _interrupted(self) -> list[list[Asked]]:
        """Trials that were training when the search was interrupted, by batch; the others stay in the queue.

        Batches recorded before groups existed count as one, and trials recorded before batches by their epochs.
        """
        batches: dict[int, list[Asked]] = {}
        begun = self._begun()
        while any(_was_training(trial, begun) for trial in self._waiting()):
            asked = None
            with suppress(SpaceExhausted):  # enqueued manually when no trial is left
                asked = self._next_asked()
            if asked is None:
                continue
            kept = self.storage.get_trial(asked.trial._trial_id)
            if _was_training(kept, begun):
                batches.setdefault(kept.user_attrs.get(GROUP, -1), []).append(asked)
            else:
                self._ready.append(asked)
        return [batches[group] for group in sorted(batches)]

    def _begun(self) -> set[int]:
        """The groups of submitted batches: at least one trial of each has the batch size."""
        every = self.study.get_trials(deepcopy=False)
        return {trial.user_attrs[GROUP] for trial in every if {GROUP, BATCH} <= set(trial.user_attrs)}

    def _ask(self) -> list[Asked]:
        """The next batch; empty where the budget is submitted, no layout is left, or the landscape is flat."""
        size = min(self.trainings.short.at_once, self._evaluations_left() - len(self._alive) + len(self._ready))
        if size <= 0 or self._exhausted or (not self._ready and self._small_chance() is not None):
            return []
        batch = [self._ready.popleft() for _ in range(min(size, len(self._ready)))]
        while len(batch) < size and not self._exhausted:
            confined = bool(batch and self.domain.also)  # trials trained side by side share a recipe
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
        """A trial and its point; None for an enqueued one that is not in the space.

        Args:
            confined: to the settings of its batch.

        Raises:
            SpaceExhausted: where no point is left to propose.
        """
        with quietly():
            trial = self.study.ask()
        self.storage.record_heartbeat(trial._trial_id)  # so that a trial lost before its training is noticed
        try:
            point = self._suggested(trial)
        except SpaceExhausted as error:
            self.study.tell(trial, state=TrialState.FAIL)
            if confined or len(self._taken()) == self.domain.choices.count:
                raise
            self.listener.says(f"an enqueued trial is skipped: {error}")  # only its enqueued parameters are used up
            return None
        if point in self._taken():  # enqueued manually; a layout is trained once
            self.study.tell(trial, state=TrialState.PRUNED)
            return None
        asked = Asked(trial, point)
        self._alive.append(asked)
        return asked

    def _suggested(self, trial: Trial) -> Point:
        """The point that the sampler proposes for a trial.

        Raises:
            SpaceExhausted: where no point is left to propose.
        """
        able = self.domain.distributions
        return self.domain.point({name: suggested(trial, name, distribution) for name, distribution in able.items()})

    def _waiting(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))

    def _taken(self) -> set[Point]:
        """The points that were trained or are submitted."""
        done = self._finished(TrialState.COMPLETE, TrialState.PRUNED)
        tried = {self.domain.point(t.params) for t in done if set(self.domain.distributions) <= set(t.params)}
        return tried | {point for _, point in self._alive}

    # --- train ----------------------------------------------------------------------------------------------------

    def _begin(self, members: Sequence[Asked]) -> Asking:
        """Submit a batch: trials of one recipe train side by side, which are all but those enqueued manually."""
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
        """A callback that records each epoch of some trials once, given the trial's position."""
        reported = [set(self.storage.get_trial(trial._trial_id).intermediate_values) for trial in trials]

        def report(place: int, epoch: Epoch) -> None:
            if epoch.number not in reported[place]:
                reported[place].add(epoch.number)
                self._report(trials[place], epoch)

        return report

    def _report(self, trial: Trial, epoch: Epoch) -> None:
        """Record a point of the trial's curve; `Trial.report` does not support studies of two objectives."""
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
        """Tell the outcomes of a finished batch, in the order of its trials."""
        outcomes: dict[int, Outcome] = {}
        for places, group in asking.groups:
            outcomes |= dict(zip(places, self.trainings.outcomes(group), strict=True))
            for among, place in enumerate(places):
                self._keep_workers(asking.members[place].trial, group.batch.workers.get(among, []))
        for place, (asked, one) in enumerate(zip(asking.members, asking.planned, strict=True)):
            self._tell_one(asked.trial, one, outcomes[place], untold=len(asking.members) - place - 1)
            self._alive.remove(asked)

    def _tell_one(self, trial: Trial, one: Planned, outcome: Outcome, *, untold: int) -> None:
        """Tell the outcome of a trial; ``untold`` others of its batch are still to be told."""
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
        """Record the workers of a trial, the last attempt last; none for one that this process trained."""
        if others := elsewhere(workers):
            trial.set_user_attr(WORKERS, [*trial.user_attrs.get(WORKERS, []), *others])

    def _require_a_success(self, trial: Trial, error: Exception) -> None:
        """Give up a trial whose training raised an error; where no training has succeeded yet, raise it.

        The trial then returns to the queue. If it fails again, others are tried.

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
        """Return a trial to the queue, to resume from its last epoch."""
        RETRY(self.study, self.storage.get_trial(trial._trial_id))
        self.study.tell(trial, state=TrialState.FAIL)

    @contextmanager
    def _released_if_interrupted(self) -> Iterator[None]:
        """Return unfinished trials to the queue, in order, if the block raises."""
        try:
            yield
        except BaseException:
            for trial, _ in self._alive:
                if not self.storage.get_trial(trial._trial_id).state.is_finished():
                    self._release(trial)
            raise

    def _retry_lost_trials(self) -> None:
        """Return trials of a killed process to the queue, to resume from their last epoch.

        This process holds the study's lock, so any running trial is lost; in a database without such a lock, only one
        without a heartbeat is.
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
    """Whether its batch was submitted: by the ``begun`` groups or, in older studies, by its epochs."""
    return BATCH in trial.user_attrs or trial.user_attrs.get(GROUP) in begun or bool(trial.intermediate_values)


def give_back(study: optuna.Study, lost: Sequence[FrozenTrial], domain: Domain) -> None:
    """Return lost trials to the queue; one that has no complete parameters is only ended.

    A kill in here loses no trial and duplicates none: each is in the queue or running.
    """
    with quietly():
        queued = {number for trial in study.get_trials(deepcopy=False) for number in RETRY.retry_history(trial)}
    for trial in lost:
        if set(domain.distributions) <= set(trial.params) and trial.number not in queued:
            RETRY(study, trial)
        study.tell(trial.number, state=TrialState.FAIL)


def flat_from(startup: int | None, free: int) -> int:
    """Number of trials before a search may stop as flat, by free sites: the startup, and some proposals of the surrogate."""
    return (startup_trials(free) if startup is None else startup) + PROPOSED_TRIALS


@contextmanager
def heartbeat(storage: optuna.storages.RDBStorage, batch: Sequence[Asked]) -> Iterator[None]:
    """Record the heartbeats of a batch, which may still grow, from a thread while the block runs."""
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
