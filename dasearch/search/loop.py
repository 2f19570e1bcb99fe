"""Ask, train, tell: the search for a layout. Liu et al. 2024 (DARec), alg. 1.

A batch of trials is asked for, one after another and each with those before it believed to run, trained side by side, and
told in the order of its numbers. A batch that was interrupted goes on as a batch, so that a study comes out the same.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from dasearch.bayes import Observation, PRSampler, SpaceExhausted, curve_mean, startup_trials
from dasearch.errors import DasearchError, TrainingError, first_line
from dasearch.models.cost import SiteCosts, cost_of_choices
from dasearch.search.domain import Domain, Point, briefly, suggested, trial_run
from dasearch.search.events import SEARCH, TRIAL, Finished, Training
from dasearch.search.objective import TRIAL_SEED, Outcome, Run
from dasearch.search.store import HEARTBEAT_SECONDS, RETRY
from dasearch.search.trainings import Planned, Trainings, confirmation_trainings, final_trainings
from dasearch.search.worth import UNLIKELY, chance_of_gain
from dasearch.training.loop import Trained
from dasearch.training.stack import Epoch

# attributes of a trial
BROKEN = "broken"  # its training raised an error
BATCH = "batch"  # how many trials train side by side, itself among them; from when all of them are asked for

PROPOSED_TRIALS = 4  # of the surrogate, before its landscape is called flat


class Asked(NamedTuple):
    """A trial with the point that was proposed for it."""

    trial: Trial
    point: Point


class Search:
    """The search phase of one study, in one process.

    Args:
        costs: of a study with a cost, what its layouts cost.
    """

    def __init__(self, domain: Domain, trainings: Trainings, costs: SiteCosts | None = None) -> None:
        self.domain, self.space, self.trainings, self.costs = domain, domain.space, trainings, costs
        self.settings, self.store, self.listener = trainings.settings, trainings.store, trainings.listener
        self.storage = self.store.optuna_storage()
        self.prior = self.store.prior(self.settings.name)
        self.study = self._optuna_study()

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
        return optuna.load_study(study_name=self.settings.name, storage=self.storage, sampler=sampler)

    def run(self) -> None:
        """Until the budget of completed evaluations is met or every layout is known."""
        self._retry_lost_trials()
        if self.prior:
            self.listener.says(f"warm start: {self.prior[0].source}, layouts: {len(self.prior)}")
        exhausted = False
        while self._evaluations_left() > 0 and not exhausted and not self._flat():
            self._require_progress()
            batch: list[Asked] = []
            with self._released_if_interrupted(batch), beating(self.storage, batch):
                exhausted = not self._fill(batch)
                if batch:
                    self._evaluate(batch)
        if exhausted:
            self.listener.says(f"all {self.domain.choices.count} {self._points} are evaluated")

    def _flat(self) -> bool:
        """Whether the search may stop, because hardly any layout can be worth having; it is said in one sentence."""
        search = self.settings.search
        if (
            self.costs is not None or self.domain.also
        ):  # where no layout is better, one may be cheaper, or a setting better
            return False
        if not search.stop_when_flat or self._waiting():  # what was asked for is trained, interrupted or not
            return False
        signals = self.signals()
        if len(signals) < flat_from(search.startup, len(self.space.free)):
            return False
        chance = chance_of_gain(self.domain, signals, margin=search.worth, seed=self.settings.seed)
        if chance >= UNLIKELY:
            return False
        self.listener.says(
            f"flat after {len(signals)} of {search.budget} trials: the chance that any layout beats all-serial by "
            f"{search.worth:.0%} is {chance:.1%}; to search on, --set search.stop_when_flat=false"
        )
        return True

    def signals(self) -> dict[Point, float]:
        """What the surrogate learned from every evaluated point."""
        return {self.domain.point(t.params): curve_mean(t) for t in self._finished(TrialState.COMPLETE)}

    @property
    def _points(self) -> str:
        return "layouts with every setting" if self.domain.also else "layouts"

    # --- ask ------------------------------------------------------------------------------------------------------

    def _fill(self, batch: list[Asked]) -> bool:
        """Ask for a batch; False if no layout is left. A batch that was interrupted while it trained gets no new ones."""
        size = min(self.trainings.short.at_once, self._evaluations_left())
        # one that trained when there were no batches is known by its epochs
        goes_on = any(BATCH in trial.user_attrs or trial.intermediate_values for trial in self._waiting())
        while len(batch) < size and (not goes_on or self._waiting()):
            if batch and self.domain.also and not self._waiting():  # trained side by side, all have one recipe
                self.study.enqueue_trial(self.domain.named(batch[0].point.values))
            trial = self.study.ask()
            self.storage.record_heartbeat(trial._trial_id)  # a worker that dies before its training is missed as well
            try:
                point = self._suggested(trial)
            except SpaceExhausted as error:
                self.study.tell(trial, state=TrialState.FAIL)
                if batch and self.domain.also:  # every layout under its settings is known
                    return True
                if len(self._taken(batch)) == self.domain.choices.count:
                    return False
                self.listener.says(f"an enqueued trial is left out: {error}")  # only what it was given is used up
                continue
            if point in self._taken(batch):  # enqueued by hand; a layout is trained once
                self.study.tell(trial, state=TrialState.PRUNED)
            else:
                batch.append(Asked(trial, point))
        return True

    def _suggested(self, trial: Trial) -> Point:
        """What the sampler proposes.

        Raises:
            SpaceExhausted: where nothing is left to propose.
        """
        able = self.domain.distributions
        return self.domain.point({name: suggested(trial, name, distribution) for name, distribution in able.items()})

    def _waiting(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))

    def _taken(self, batch: Sequence[Asked]) -> set[Point]:
        """The points that were trained or are about to be."""
        done = self._finished(TrialState.COMPLETE, TrialState.PRUNED)
        tried = {self.domain.point(t.params) for t in done if set(self.domain.distributions) <= set(t.params)}
        return tried | {point for _, point in batch}

    # --- train ----------------------------------------------------------------------------------------------------

    def _evaluate(self, batch: Sequence[Asked]) -> None:
        for trial, _ in batch:
            trial.set_user_attr(BATCH, len(batch))
        planned = self._planned(batch)
        for values in dict.fromkeys(point.values for _, point in batch):  # one, but for what was enqueued by hand
            self._train([place for place, (_, point) in enumerate(batch) if point.values == values], batch, planned)

    def _train(self, places: Sequence[int], batch: Sequence[Asked], planned: Sequence[Planned]) -> None:
        """Train those of a batch that have one recipe, side by side."""
        reported = [set(self.storage.get_trial(trial._trial_id).intermediate_values) for trial, _ in batch]

        def report(among: int, epoch: Epoch) -> None:
            place = places[among]
            if epoch.number not in reported[place]:
                reported[place].add(epoch.number)
                self._report(batch[place].trial, epoch)

        objective = self.trainings.trying(self.domain.named(batch[places[0]].point.values))
        outcomes = self.trainings.together(objective, [planned[place] for place in places], report)
        for place, outcome in zip(places, outcomes, strict=False):
            self._tell(batch[place].trial, planned[place], outcome, untold=len(batch) - place - 1)

    def _report(self, trial: Trial, epoch: Epoch) -> None:
        """A point of the trial's curve; not by `Trial.report`, which refuses studies of two objectives."""
        score = epoch.metrics[self.settings.search.metric]
        self.storage.set_trial_intermediate_value(trial._trial_id, epoch.number, score)

    def _planned(self, batch: Sequence[Asked]) -> list[Planned]:
        budget, epochs = self.settings.search.budget, self.settings.trial.epochs
        first = budget - self._evaluations_left() + 1
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

    def _tell(self, trial: Trial, one: Planned, outcome: Outcome, *, untold: int) -> None:
        """Tell a trial what became of its training; ``untold`` others of its batch are still to be told."""
        if isinstance(outcome, Trained):
            trial.set_user_attr("metrics", outcome.progress.best.metrics)
            trial.set_user_attr("seconds", outcome.seconds)
            trial.set_user_attr("parameters", outcome.parameters)
            trial.set_user_attr("peak_memory", outcome.peak_memory)
            score = self.trainings.score(outcome)
            self.study.tell(trial, score if self.costs is None else [score, self.costs.of(one.run.layout)])
            self.trainings.short.forget(one.run.name)
            self._tell_finished(one.training, score, outcome.seconds, untold)
        elif isinstance(outcome, TrainingError):
            trial.set_user_attr("reason", str(outcome))
            self.study.tell(trial, state=TrialState.PRUNED)
            self._tell_finished(one.training, None, 0.0, untold)
        else:
            self._tell_broken(trial, outcome)
            raise outcome

    def _tell_finished(self, training: Training, score: float | None, seconds: float, untold: int) -> None:
        scores = {self.domain.point(t.params): float(t.values[0]) for t in self._finished(TrialState.COMPLETE)}
        best = max(scores, key=lambda point: scores[point], default=None)
        top = None if best is None else scores[best]
        trials = max(0, self._evaluations_left() - untold)
        left = self.trainings.seconds_left(
            trials + confirmation_trainings(self.settings), final_trainings(self.settings)
        )
        self.listener.finished(Finished(training, score, top, None if best is None else best.layout, seconds, left))

    def _tell_broken(self, trial: Trial, error: Exception) -> None:
        """Back to the queue; one that breaks again is pruned, so that others go on."""
        if self.storage.get_trial(trial._trial_id).user_attrs.get(BROKEN):
            trial.set_user_attr("reason", f"{type(error).__name__}: {first_line(error)}")
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            trial.set_user_attr(BROKEN, True)
            self._release(trial)

    def _release(self, trial: Trial) -> None:
        """Back to the queue, to go on from its last epoch."""
        self.study.tell(trial, state=TrialState.FAIL)
        RETRY(self.study, self.storage.get_trial(trial._trial_id))

    @contextmanager
    def _released_if_interrupted(self, batch: Sequence[Asked]) -> Iterator[None]:
        """Trials of a batch that does not come to its end go back to the queue, in their order."""
        try:
            yield
        except BaseException:
            for trial, _ in batch:
                if not self.storage.get_trial(trial._trial_id).state.is_finished():
                    self._release(trial)
            raise

    def _retry_lost_trials(self) -> None:
        """Trials of a killed process go back to the queue and on from their last epoch.

        The study's lock is ours, so on a database of this machine any running trial is lost; elsewhere only one
        without a heartbeat is.
        """
        if self.storage.url.startswith("sqlite"):
            for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
                self.study.tell(trial.number, state=TrialState.FAIL)
                if set(self.domain.distributions) <= set(trial.params):
                    RETRY(self.study, trial)
        else:
            optuna.storages.fail_stale_trials(self.study)

    # --- where it stands ------------------------------------------------------------------------------------------

    def _finished(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states)

    def _evaluations_left(self) -> int:
        return self.settings.search.budget - len(self._finished(TrialState.COMPLETE))

    def _require_progress(self) -> None:
        diverged = len(self._finished(TrialState.PRUNED))
        if diverged > self.settings.search.budget:
            raise DasearchError(f"{diverged} trainings diverged; lower trial.lr and begin again with --set name=NEW")


def flat_from(startup: int | None, free: int) -> int:
    """Trials before a search of so many free sites may be called flat: the startup, and some that the surrogate proposed."""
    return (startup_trials(free) if startup is None else startup) + PROPOSED_TRIALS


@contextmanager
def beating(storage: optuna.storages.RDBStorage, batch: Sequence[Asked]) -> Iterator[None]:
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
