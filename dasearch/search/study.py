"""A study from its file to its answer: search, confirmation, final training, one look at the test split.

Each step is recorded before the next begins, so that a killed study goes on where it stopped. Liu et al. 2024 (DARec),
alg. 1 and sec. 2.4.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.storages._heartbeat import get_heartbeat_thread
from optuna.trial import FrozenTrial, Trial, TrialState

from dasearch.bayes import PRSampler, SpaceExhausted
from dasearch.config import StudySettings, load_study, parse_study, resolve_output
from dasearch.data import DATASETS, Dataset, Development, LeaveOneOut, load_dataset
from dasearch.errors import DasearchError, SearchSpaceError, StoreError, StudyError, TrainingError
from dasearch.layout import CHOICES, Layout, Metric
from dasearch.models.backbone import pretrained_layers
from dasearch.search.confirmation import (
    OBJECTIVE,
    Contender,
    Standing,
    contenders,
    controls,
    standings,
)
from dasearch.search.events import CONFIRMATION, DONE, FINAL, SEARCH, Finished, Listener, Training
from dasearch.search.final import evaluate_finally
from dasearch.search.objective import TRIAL_SEED, Objective
from dasearch.search.store import Artifact, Confirmation, Result, Store, Stored, open_store, require_writable
from dasearch.search_space import SearchSpace, SearchSpaceFile, find_shipped, load_search_space, space_differences
from dasearch.training.loop import Trained
from dasearch.training.materials import TINY_OPT, Materials, build_catalogue, open_backbone, prepare, resolve_device
from dasearch.training.recommender import save_recommender, sha256
from dasearch.training.seeds import derive_seed, generator_for

MAY_CHANGE = {"output", "device", "search.budget", "final"}  # of a study that has begun; the rest would mix objectives
WINNER = "winner"


@dataclass(frozen=True)
class TrialView:
    """A trial as people read it."""

    number: int
    layout: Layout | None
    state: str
    score: float | None
    seconds: float | None


@dataclass(frozen=True)
class Status:
    """Where a study stands."""

    name: str
    phase: str
    budget: int
    trials: list[TrialView]
    standings: list[Standing]
    results: list[Result]
    artifacts: list[Artifact]
    baseline: Layout | None

    @property
    def completed(self) -> list[TrialView]:
        return [trial for trial in self.trials if trial.state == "complete"]

    @property
    def best(self) -> TrialView | None:
        """The best completed trial; the first of equals."""
        return max(self.completed, key=lambda trial: (trial.score or 0.0, -trial.number), default=None)


class Study:
    """A study file bound to the database that keeps its trials.

    Args:
        storage: a database URL or an SQLite file; by default ``dasearch.db`` in the study's output folder.
    """

    def __init__(self, settings: StudySettings, *, storage: str | None = None) -> None:
        self.settings = settings
        self.storage = storage

    @classmethod
    def load(cls, name: str | Path, overrides: Iterable[str] = (), *, storage: str | None = None) -> Study:
        """Read a study file by path or shipped name; ``overrides`` are ``key=value``."""
        return cls(load_study(str(name), overrides), storage=storage)

    @property
    def folder(self) -> Path:
        return resolve_output(self.settings)

    def space(self) -> SearchSpace:
        """The search space, resolved for the backbone's layers."""
        backbone, space = self.settings.backbone, self.settings.space
        if backbone.name == TINY_OPT:
            layers = backbone.layers or backbone.tiny.layers
        else:
            layers = pretrained_layers(backbone.name, layers=backbone.layers)
        return load_search_space(space.name, backbone_layers=layers, replace_every=space.replace_every)

    def dataset(self) -> Dataset:
        data = self.settings.data
        return load_dataset(
            data.source,
            ties=data.ties,
            seed=derive_seed(self.settings.seed, "ties") % 2**31,
            min_item_interactions=data.min_item_interactions,
        )

    def run(self, budget: int | None = None, *, train: bool = True, listener: Listener | None = None) -> Status:
        """Search until ``budget`` evaluations are complete, confirm, and (``train``) train and test the winner.

        Goes on where an earlier run of the same study stopped.

        Raises:
            StudyError, SearchSpaceError: if the study in the database was begun with other settings or another space.
            StoreError: if another process runs this study, or its database cannot be used.
        """
        settings = self.settings if budget is None else with_budget(self.settings, budget)
        if not settings.model.searchable:
            raise StudyError(
                f"model.variation={settings.model.variation} leaves nothing to search; use `dasearch train` with this study"
            )
        resolve_device(settings.device)
        space, dataset = self.space(), self.dataset()
        store = open_store(self.storage, settings.output, create=True)
        try:
            require_writable(resolve_output(settings))
            with only_runner(resolve_output(settings)):
                if _begin(store, settings, space, dataset) != DONE:
                    _Runner(settings, space, dataset, store, listener or Listener()).run(train=train)
                return status(store, settings.name)
        finally:
            store.close()

    def status(self) -> Status:
        """Where the study stands; may be asked while another process runs it."""
        store = open_store(self.storage, self.settings.output, create=False)
        try:
            return status(store, self.settings.name)
        finally:
            store.close()


def with_budget(settings: StudySettings, budget: int) -> StudySettings:
    content = settings.model_dump(mode="json")
    content["search"]["budget"] = budget
    return parse_study(content, source="--budget")


def status(store: Store, name: str) -> Status:
    """Where a stored study stands."""
    stored = store.study(name)
    if stored is None:
        known = ", ".join(store.study_names()) or "none"
        raise StoreError(f"there is no study {name!r} in this database; studies there: {known}")
    settings = parse_study(stored.settings, source=f"study {name}")
    space = stored_space(stored)
    study = optuna.load_study(study_name=name, storage=store.optuna_storage(), sampler=optuna.samplers.RandomSampler())
    trials = [_view(trial, space) for trial in study.get_trials(deepcopy=False)]
    baseline = space.nearest(Layout.all_serial(space.layers, len(space.sites)))
    ranked = standings(store.confirmations(name), baseline)
    return Status(
        name, stored.phase, settings.search.budget, trials, ranked, store.results(name), store.artifacts(name), baseline
    )


def stored_space(stored: Stored) -> SearchSpace:
    """The search space that a study began with."""
    record = dict(stored.space)
    layers = int(record.pop("backbone_layers"))
    return SearchSpace(SearchSpaceFile.model_validate(record), layers)


def _view(trial: FrozenTrial, space: SearchSpace) -> TrialView:
    layout = space.decode(trial.params) if set(space.free) <= set(trial.params) else None
    seconds = trial.duration.total_seconds() if trial.duration is not None else None
    score = trial.value if trial.state is TrialState.COMPLETE else None
    return TrialView(trial.number, layout, trial.state.name.lower(), score, trial.user_attrs.get("seconds", seconds))


@contextmanager
def only_runner(folder: Path) -> Iterator[None]:
    """Hold the study's lock; the operating system drops it with the process."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StoreError(
            f"another process runs this study; watch it with `dasearch status`, or wait until it ends ({folder})"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _begin(store: Store, settings: StudySettings, space: SearchSpace, dataset: Dataset) -> str:
    """Record a new study, or check that the stored one is this one; its phase."""
    stored = store.study(settings.name)
    record = settings.model_dump(mode="json")
    if stored is None:
        store.begin(
            settings.name,
            settings=record,
            space=space.record(),
            space_hash=space.hash,
            dataset={"name": dataset.name, "fingerprint": dataset.fingerprint},
            versions={
                name: version(name) for name in ("dasearch", "torch", "transformers", "botorch", "gpytorch", "optuna")
            },
        )
        return SEARCH
    if stored.space_hash != space.hash:
        difference = space_differences(stored.space, space.record())
        raise SearchSpaceError(
            f"study {settings.name!r} began with another search space ({difference}); restore it or pass --set name=NEW"
        )
    if stored.dataset["fingerprint"] != dataset.fingerprint:
        raise StudyError(
            f"the data of study {settings.name!r} changed since it began; restore them or pass --set name=NEW"
        )
    changed = [key for key in settings_differences(stored.settings, record) if not _may_change(key)]
    if changed:
        raise StudyError(f"study {settings.name!r} began with another {changed[0]}; restore it or pass --set name=NEW")
    if stored.phase == DONE and record["search"]["budget"] > stored.settings["search"]["budget"]:
        raise StudyError(
            f"study {settings.name!r} has read its test split, so its search is closed; pass --set name=NEW for a larger budget"
        )
    store.update_settings(settings.name, record)
    return stored.phase


def settings_differences(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ."""
    found: list[str] = []
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += settings_differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}")
    return found


def _may_change(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in MAY_CHANGE)


class _Runner:
    """One process working on one study."""

    def __init__(
        self, settings: StudySettings, space: SearchSpace, dataset: Dataset, store: Store, listener: Listener
    ) -> None:
        self.settings, self.space, self.store, self.listener = settings, space, store, listener
        self.dataset = dataset
        self.split = LeaveOneOut(dataset)
        self.storage = store.optuna_storage()
        self.study = self._optuna_study()
        self.pace = 0.0  # seconds a user and epoch
        listener.says("loading the language model")
        backbone, tokenizer = open_backbone(settings, dataset, progress=listener.language_model)
        catalogue = build_catalogue(settings, dataset, backbone, tokenizer)
        self.materials = prepare(settings, catalogue, self.split.development, say=listener.says)
        self.checkpoints = resolve_output(settings) / "checkpoints"
        subset = data_bo(settings, self.split.development)
        self.trials = self._objective(self.materials.on(subset), settings.trial)
        self.final = self._objective(self.materials, settings.final)

    def _objective(self, materials: Materials, recipe: Any) -> Objective:
        return Objective(self.settings, materials, recipe, self.space.file.replace_every, self.checkpoints)

    def _optuna_study(self) -> optuna.Study:
        distribution = optuna.distributions.CategoricalDistribution(CHOICES)
        sampler = PRSampler(
            seed=self.settings.seed,
            n_startup=self.settings.search.startup,
            search_space=dict.fromkeys(self.space.free, distribution),
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
        while len(self._scores()) < self.settings.search.budget:
            self._require_progress()
            trial = self.study.ask()
            try:
                layout = self.space.decode({n: trial.suggest_categorical(n, CHOICES) for n in self.space.free})
            except SpaceExhausted:
                self.study.tell(trial, state=TrialState.FAIL)
                self.listener.says(f"all {self.space.size} layouts are evaluated")
                return
            with self._released_if_interrupted(trial):
                self._evaluate(trial, layout)

    def _evaluate(self, trial: Trial, layout: Layout) -> None:
        if layout in self._tried():  # enqueued by hand; a layout is trained once
            self.study.tell(trial, state=TrialState.PRUNED)
            return
        run = f"trial/{layout}"
        training = Training(
            SEARCH, len(self._scores()) + 1, self.settings.search.budget, layout, "trial", self.settings.trial.epochs
        )
        with get_heartbeat_thread(trial._trial_id, self.storage):
            try:
                trained = self._train(self.trials, training, run, TRIAL_SEED, trial)
            except TrainingError as error:
                trial.set_user_attr("reason", str(error))
                self.study.tell(trial, state=TrialState.PRUNED)
                self._tell_finished(training, None, 0.0)
                return
        trial.set_user_attr("metrics", trained.metrics.record())
        trial.set_user_attr("seconds", trained.seconds)
        trial.set_user_attr("parameters", trained.parameters)
        trial.set_user_attr("peak_memory", trained.peak_memory)
        self.study.tell(trial, trained.metrics.mrr)
        self.trials.forget(run)
        self._tell_finished(training, trained.metrics.mrr, trained.seconds)

    def _train(
        self, objective: Objective, training: Training, run: str, seed: int, trial: Trial | None = None
    ) -> Trained:
        self.listener.started(training)

        def heard(epoch: Any) -> None:
            self.store.add_epoch(self.settings.name, run, epoch)
            if trial is not None:
                trial.report(epoch.metrics[OBJECTIVE], epoch.number)
            self.listener.epoch(training, epoch)

        started = time.perf_counter()
        trained = objective.train(training.layout, run=run, seed=seed, on_epoch=heard)
        elapsed = time.perf_counter() - started
        pace = max(elapsed, trained.seconds) / objective.work
        self.pace = pace if not self.pace else 0.7 * self.pace + 0.3 * pace
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
            retry = optuna.storages.RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)
            for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
                self.study.tell(trial.number, state=TrialState.FAIL)
                if set(self.space.free) <= set(trial.params):
                    retry(self.study, trial)
        else:
            optuna.storages.fail_stale_trials(self.study)

    @contextmanager
    def _released_if_interrupted(self, trial: Trial) -> Iterator[None]:
        """An interrupted or broken trial goes back to the queue."""
        try:
            yield
        except BaseException:
            frozen = self.storage.get_trial(trial._trial_id)
            if not frozen.state.is_finished():
                self.study.tell(trial, state=TrialState.FAIL)
                optuna.storages.RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)(self.study, frozen)
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
            trained = self._train(self.trials, training, run, seed)
            record = Confirmation(contender.layout, contender.role, seed, trained.metrics.record(), trained.seconds)
            self.store.add_confirmation(self.settings.name, record)
            self.trials.forget(run)
            self.listener.finished(
                Finished(
                    training, trained.metrics.mrr, None, None, trained.seconds, self.seconds_left(len(planned) - index)
                )
            )
        return self._standings()

    def _contenders(self) -> list[Contender]:
        search = self.settings.search
        return contenders(self.space, self._scores(), candidates=search.candidates, seed=self.settings.seed)

    def _standings(self) -> list[Standing]:
        baseline = self.space.nearest(Layout.all_serial(self.space.layers, len(self.space.sites)))
        current = {contender.layout for contender in self._contenders()}
        rows = [c for c in self.store.confirmations(self.settings.name) if c.layout in current]
        return standings(rows, baseline)

    # --- final training -------------------------------------------------------------------------------------------

    def train_finally(self, ranked: list[Standing]) -> None:
        """Train the winner and the controls on everyone, then read the test split, once, for all of them."""
        names = {WINNER: ranked[0].layout, **{c.role: c.layout for c in controls(self.space, self.settings.seed)}}
        layouts = list(dict.fromkeys(names.values()))
        trained: dict[Layout, Trained] = {}
        for index, layout in enumerate(layouts, start=1):
            label = " = ".join(name for name, named in names.items() if named == layout)
            training = Training(FINAL, index, len(layouts), layout, label, self.settings.final.epochs)
            trained[layout] = self._train(self.final, training, f"final/{layout}", TRIAL_SEED)
            left = self.seconds_left(0, len(layouts) - index)
            self.listener.finished(
                Finished(training, trained[layout].metrics.mrr, None, None, trained[layout].seconds, left)
            )
        self.listener.says("reading the test split, once")
        results = evaluate_finally(
            {name: trained[layout] for name, layout in names.items()},
            self.materials,
            self.split,
            seed=self.settings.seed,
        )
        self.store.finish(self.settings.name, results, [self._save(trained[ranked[0].layout], results)])

    def _save(self, winner: Trained, results: list[Result]) -> Artifact:
        own = {result.metric: result for result in results if result.name == WINNER}
        metrics = {metric: [result.value, result.low, result.high] for metric, result in own.items()}
        mrr = own[OBJECTIVE]
        folder = save_recommender(
            resolve_output(self.settings) / "model",
            winner,
            self.settings,
            self.materials,
            self.dataset,
            metric=Metric(name=OBJECTIVE, value=mrr.value, low=mrr.low, high=mrr.high, split="test"),
            results={"test": metrics},
        )
        return Artifact("model", str(folder), sha256(folder))

    def seconds_left(self, confirmations: int | None = None, finals: int | None = None) -> float:
        """A guess from the pace so far: trials, confirmation and final training that are still to come."""
        search = self.settings.search
        trials = max(0, search.budget - len(self._scores())) if confirmations is None and finals is None else 0
        waiting = (search.candidates + 3) * search.confirm_seeds if confirmations is None else confirmations
        last = 4 if finals is None else finals
        return self.pace * (
            (trials + (0 if finals is not None else waiting)) * self.trials.work + last * self.final.work
        )


def data_bo(settings: StudySettings, development: Development) -> Development:
    """Data_BO: a seeded share of the users, the whole catalogue kept (DARec sec. 3.1.1)."""
    return development.sample_users(settings.data.bo_fraction, generator_for(settings.seed, "Data_BO"))


def named_dataset(source: str) -> Dataset:
    """A data set by its name, its folder, or the study that uses it."""
    if source in DATASETS or Path(source).is_dir() or find_shipped(source, "studies") is None:
        return load_dataset(source)
    return Study.load(source).dataset()
