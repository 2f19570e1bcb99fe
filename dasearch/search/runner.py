"""One process working on one study: search, confirmation, final training.

Each step is recorded before the next begins, so that a killed study goes on where it stopped. Liu et al. 2024 (DARec),
alg. 1 and sec. 2.4.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from dasearch.bayes import Observation, PRSampler, SpaceExhausted, curve_mean
from dasearch.config import Recipe, StudySettings, resolve_output
from dasearch.data import Dataset, Development, LeaveOneOut
from dasearch.errors import DasearchError, TrainingError
from dasearch.layout import CHOICES, Layout
from dasearch.layout_file import Metric
from dasearch.search.confirmation import OBJECTIVE, Contender, Standing, contenders, standings
from dasearch.search.events import CONFIRMATION, FINAL, SEARCH, Finished, Listener, Training
from dasearch.search.final import WINNER, Finalists, Model, evaluate_finally, final_rows, train_encoders
from dasearch.search.objective import TRIAL_SEED, Objective
from dasearch.search.store import (
    HEARTBEAT_SECONDS,
    RETRY,
    Artifact,
    Confirmation,
    FinalTraining,
    LaterTraining,
    Result,
    Store,
)
from dasearch.search_space import SearchSpace
from dasearch.training.loop import Epoch, Trained
from dasearch.training.materials import Materials
from dasearch.training.preparation import prepare_study
from dasearch.training.recommender import save_recommender, sha256
from dasearch.training.seeds import generator_for

BROKEN = "broken"  # attribute of a trial whose training raised an error
CONTROLS = 3  # all serial, all parallel, random


class Runner:
    """One process working on one study."""

    def __init__(
        self, settings: StudySettings, space: SearchSpace, dataset: Dataset, store: Store, listener: Listener
    ) -> None:
        self.settings, self.space, self.store, self.listener = settings, space, store, listener
        self.dataset = dataset
        self.split = LeaveOneOut(dataset)
        self.storage = store.optuna_storage()
        self.prior = store.prior(settings.name)
        self.study = self._optuna_study()
        self.pace = 0.0  # seconds a user and epoch
        self.materials = prepare_study(
            settings,
            dataset,
            self.split.development,
            say=listener.says,
            language_model=listener.language_model,
        )
        self.checkpoints = resolve_output(settings) / "checkpoints"
        subset = data_bo(settings, self.split.development)
        self.short = self._objective(self.materials.on(subset), settings.trial)
        self.full = self._objective(self.materials, settings.final)

    def _objective(self, materials: Materials, recipe: Recipe) -> Objective:
        return Objective(self.settings, materials, recipe, self.space.file.replace_every, self.checkpoints)

    def _optuna_study(self) -> optuna.Study:
        distribution = optuna.distributions.CategoricalDistribution(CHOICES)
        sampler = PRSampler(
            seed=self.settings.seed,
            n_startup=self.settings.search.startup,
            search_space=dict.fromkeys(self.space.free, distribution),
            prior=[Observation(self.space.encode(trial.layout), trial.value) for trial in self.prior],
            signal=curve_mean,  # predicts other seeds' MRR better than the best epoch: benchmarks/further_outputs.py
            on_proposal=lambda proposal: self.store.add_proposal(self.settings.name, proposal),
        )
        return optuna.load_study(study_name=self.settings.name, storage=self.storage, sampler=sampler)

    def run(self, *, train: bool) -> None:
        name = self.settings.name
        self.store.enter_phase(name, SEARCH)
        self.search()
        self.store.enter_phase(name, CONFIRMATION)
        ranked = self.confirm()
        if train:
            self.store.enter_phase(name, FINAL)
            self.train_finally(ranked)
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    # --- search ---------------------------------------------------------------------------------------------------

    def search(self) -> None:
        """Ask, train, tell, until the budget of completed evaluations is met or every layout is known."""
        self._retry_lost_trials()
        if self.prior:
            self.listener.says(f"warm start: {self.prior[0].source}, layouts: {len(self.prior)}")
        while len(self._scores()) < self.settings.search.budget:
            self._require_progress()
            trial = self.study.ask()
            self.storage.record_heartbeat(trial._trial_id)  # a worker that dies before its training is missed as well
            try:
                layout = self.space.decode({n: trial.suggest_categorical(n, CHOICES) for n in self.space.free})
            except SpaceExhausted as error:
                self.study.tell(trial, state=TrialState.FAIL)
                if len(self._tried()) < self.space.size:  # only what this trial was enqueued with is used up
                    self.listener.says(f"an enqueued trial is left out: {error}")
                    continue
                self.listener.says(f"all {self.space.size} layouts are evaluated")
                return
            with self._released_if_broken(trial):
                self._evaluate(trial, layout)

    def _evaluate(self, trial: Trial, layout: Layout) -> None:
        if layout in self._tried():  # enqueued by hand; a layout is trained once
            self.study.tell(trial, state=TrialState.PRUNED)
            return
        run = f"trial/{layout}"
        training = Training(
            SEARCH, len(self._scores()) + 1, self.settings.search.budget, layout, "trial", self.settings.trial.epochs
        )
        with beating(self.storage, trial._trial_id):
            try:
                trained = self._train(self.short, training, run, TRIAL_SEED, trial)
            except TrainingError as error:
                trial.set_user_attr("reason", str(error))
                self.study.tell(trial, state=TrialState.PRUNED)
                self._tell_finished(training, None, 0.0)
                return
        trial.set_user_attr("metrics", trained.progress.best.metrics)
        trial.set_user_attr("seconds", trained.seconds)
        trial.set_user_attr("parameters", trained.parameters)
        trial.set_user_attr("peak_memory", trained.peak_memory)
        self.study.tell(trial, trained.metrics.mrr)
        self.short.forget(run)
        self._tell_finished(training, trained.metrics.mrr, trained.seconds)

    def _train(
        self, objective: Objective, training: Training, run: str, seed: int, trial: Trial | None = None
    ) -> Trained:
        self.listener.started(training)

        reported = set(self.storage.get_trial(trial._trial_id).intermediate_values) if trial is not None else set()

        def record(epoch: Epoch) -> None:
            self.store.add_epoch(self.settings.name, run, epoch)
            if trial is not None and epoch.number not in reported:
                reported.add(epoch.number)
                trial.report(epoch.metrics[OBJECTIVE], epoch.number)

        def heard(epoch: Epoch) -> None:
            record(epoch)
            self.listener.epoch(training, epoch)

        started = time.perf_counter()
        trained = objective.train(training.layout, run=run, seed=seed, on_epoch=heard)
        for epoch in trained.progress.epochs:  # one that was checkpointed in the moment of a kill was not recorded then
            record(epoch)
        elapsed = time.perf_counter() - started
        pace = max(elapsed, trained.seconds) / objective.work
        self.pace = pace if not self.pace else 0.7 * self.pace + 0.3 * pace
        return trained

    def _train_later(self, objective: Objective, training: Training, run: str, seed: int) -> Trained:
        """A training after the search, with its times: Optuna keeps those of trials alone."""
        name, place = self.settings.name, (training.index, training.total)
        began = datetime.now(UTC)
        self.store.begin_training(
            name, LaterTraining(run, training.phase, training.label, training.layout, *place, began)
        )
        trained = self._train(objective, training, run, seed)
        self.store.end_training(name, run, datetime.now(UTC))
        return trained

    def _tell_finished(self, training: Training, score: float | None, seconds: float) -> None:
        scores = self._scores()
        best = max(scores, key=lambda layout: scores[layout], default=None)
        top = None if best is None else scores[best]
        self.listener.finished(Finished(training, score, top, best, seconds, self.seconds_left()))

    def _finished_trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states)

    def _scores(self) -> dict[Layout, float]:
        """Every evaluated layout and its validation MRR, in the order of evaluation."""
        return {self.space.decode(t.params): float(t.values[0]) for t in self._finished_trials(TrialState.COMPLETE)}

    def _signals(self) -> dict[Layout, float]:
        """What the surrogate learned from every evaluated layout."""
        return {self.space.decode(t.params): curve_mean(t) for t in self._finished_trials(TrialState.COMPLETE)}

    def _tried(self) -> set[Layout]:
        done = self._finished_trials(TrialState.COMPLETE, TrialState.PRUNED)
        return {self.space.decode(t.params) for t in done if set(self.space.free) <= set(t.params)}

    def _require_progress(self) -> None:
        diverged = len(self._finished_trials(TrialState.PRUNED))
        if diverged > self.settings.search.budget:
            raise DasearchError(f"{diverged} trainings diverged; lower trial.lr and begin again with --set name=NEW")

    def _retry_lost_trials(self) -> None:
        """Trials of a killed process go back to the queue and on from their last epoch.

        The study's lock is ours, so on a database of this machine any running trial is lost; elsewhere only one
        without a heartbeat is.
        """
        if self.storage.url.startswith("sqlite"):
            for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
                self.study.tell(trial.number, state=TrialState.FAIL)
                if set(self.space.free) <= set(trial.params):
                    RETRY(self.study, trial)
        else:
            optuna.storages.fail_stale_trials(self.study)

    @contextmanager
    def _released_if_broken(self, trial: Trial) -> Iterator[None]:
        """An interrupted or broken trial goes back to the queue; one that breaks again is pruned, so that others go on."""
        try:
            yield
        except BaseException as error:
            frozen = self.storage.get_trial(trial._trial_id)
            if not frozen.state.is_finished():
                if isinstance(error, Exception) and frozen.user_attrs.get(BROKEN):
                    trial.set_user_attr("reason", f"{type(error).__name__}: {error}")
                    self.study.tell(trial, state=TrialState.PRUNED)
                    raise
                if isinstance(error, Exception):
                    trial.set_user_attr(BROKEN, True)
                self.study.tell(trial, state=TrialState.FAIL)
                RETRY(self.study, self.storage.get_trial(trial._trial_id))
            raise

    # --- confirmation ---------------------------------------------------------------------------------------------

    def confirm(self) -> list[Standing]:
        """Train the best layouts and the controls again with fresh seeds, the same for each."""
        seeds = range(1, self.settings.search.confirm_seeds + 1)
        found = self._contenders()
        planned = [(contender, seed) for seed in seeds for contender in found]
        done = {(c.layout, c.seed) for c in self.store.confirmations(self.settings.name)}
        for index, (contender, seed) in enumerate(planned, start=1):
            if (contender.layout, seed) in done:
                continue
            run = f"confirm/{seed}/{contender.layout}"
            label = f"{contender.role}, seed {seed}"
            training = Training(CONFIRMATION, index, len(planned), contender.layout, label, self.settings.trial.epochs)
            trained = self._train_later(self.short, training, run, seed)
            record = Confirmation(contender.layout, contender.role, seed, trained.metrics.record(), trained.seconds)
            self.store.add_confirmation(self.settings.name, record)
            self.short.forget(run)
            self.listener.finished(
                Finished(
                    training, trained.metrics.mrr, None, None, trained.seconds, self.seconds_left(len(planned) - index)
                )
            )
        return self._standings()

    def _contenders(self) -> list[Contender]:
        search = self.settings.search
        return contenders(self.space, self._signals(), candidates=search.candidates, seed=self.settings.seed)

    def _standings(self) -> list[Standing]:
        baseline = self.space.all_serial
        current = {contender.layout for contender in self._contenders()}
        rows = [c for c in self.store.confirmations(self.settings.name) if c.layout in current]
        return standings(rows, baseline)

    # --- final training -------------------------------------------------------------------------------------------

    def train_finally(self, ranked: list[Standing]) -> None:
        """Train every row of the final table on everyone, then read the test split, once, for all of them."""
        rows = final_rows(self.settings, self.space, ranked[0].layout)
        models = list(dict.fromkeys(rows.values()))
        planned = [(seed, model) for seed in range(self.settings.comparison.seeds) for model in models]
        trained: dict[Model, list[Trained]] = {model: [] for model in models}
        for index, (seed, model) in enumerate(planned, start=1):
            names = " = ".join(name for name, named in rows.items() if named == model)
            left = len(planned) - index
            trained[model].append(self._train_model(model, seed, index, len(planned), f"{names}, seed {seed}", left))
        encoders = train_encoders(self.settings, self.materials, self.listener.says)
        self.listener.says("reading the test split, once")
        finalists = Finalists(rows, trained, encoders)
        results, trainings = evaluate_finally(finalists, self.materials, self.split, seed=self.settings.seed)
        saved = self._save(trained[rows[WINNER]][0], results, trainings)
        self.store.finish(self.settings.name, results, [saved], trainings)
        self.listener.results(results)

    def _train_model(self, model: Model, seed: int, index: int, total: int, label: str, left: int) -> Trained:
        objective, run = self.full, f"final/{model.layout}"
        if model.variation is not None:
            varied = self.settings.varied(model.variation)
            objective = replace(self.full, settings=varied, materials=self.materials.under(varied))
            run = f"final/{model.variation}"
        if seed != TRIAL_SEED:
            run = f"{run}/{seed}"
        training = Training(FINAL, index, total, model.layout, label, self.settings.final.epochs)
        trained = self._train_later(objective, training, run, seed)
        seconds_left = self.seconds_left(0, left)
        self.listener.finished(Finished(training, trained.metrics.mrr, None, None, trained.seconds, seconds_left))
        return trained

    def _save(self, winner: Trained, results: list[Result], trainings: list[FinalTraining]) -> Artifact:
        """Save the winner of the first seed: ``layout.json`` tells the layout's mean, the model's own metrics stand beside."""
        (mrr,) = (result for result in results if (result.name, result.metric) == (WINNER, OBJECTIVE))
        (own,) = (training for training in trainings if (training.name, training.seed) == (WINNER, 0))
        folder = save_recommender(
            resolve_output(self.settings) / "model",
            winner,
            self.settings,
            self.materials,
            self.dataset,
            metric=Metric(name=OBJECTIVE, value=mrr.value, low=mrr.low, high=mrr.high, split="test"),
            results={"test": own.metrics},
        )
        return Artifact("model", str(folder), sha256(folder))

    def seconds_left(self, confirmations: int | None = None, finals: int | None = None) -> float:
        """A guess from the pace so far; ``confirmations`` and ``finals`` are what is still to come of each.

        Without ``confirmations`` the search still runs, and all of them are to come. ID models are not counted.
        """
        search, trials = self.settings.search, 0
        if finals is None:
            finals = final_trainings(self.settings)
        if confirmations is None:
            trials = max(0, search.budget - len(self._scores()))
            confirmations = (search.candidates + CONTROLS) * search.confirm_seeds
        return self.pace * ((trials + confirmations) * self.short.work + finals * self.full.work)


def final_trainings(settings: StudySettings) -> int:
    """How many trainings the final table needs at most: the winner, the controls and the variations, with every seed."""
    controls = CONTROLS if settings.comparison.random else CONTROLS - 1
    return (1 + controls + len(settings.compared_variations)) * settings.comparison.seeds


@contextmanager
def beating(storage: optuna.storages.RDBStorage, trial_id: int) -> Iterator[None]:
    """Record a trial's heartbeat from a thread for as long as the block runs."""
    over = threading.Event()

    def beat() -> None:
        while not over.is_set():
            storage.record_heartbeat(trial_id)
            over.wait(HEARTBEAT_SECONDS)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def data_bo(settings: StudySettings, development: Development) -> Development:
    """Data_BO: a seeded share of the users, the whole catalogue kept (DARec sec. 3.1.1)."""
    return development.sample_users(settings.data.bo_fraction, generator_for(settings.seed, "Data_BO"))
