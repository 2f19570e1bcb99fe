"""Ablations: the study's model with one thing changed at a time, trained with the same seeds, compared by seed.

Liu et al. 2024, sec. 3.3 to 3.7. Validation data only; the test split is not read. Every training is stored when it
ends, so that the same command resumes after an interruption.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from dasearch.config import Recipe, StudySettings, changed, resolve_output
from dasearch.data import Development, LeaveOneOut
from dasearch.errors import StudyError, suggestion
from dasearch.layout import SERIAL, Layout, ModelKind, Structure
from dasearch.search.confirmation import ALL_SERIAL, OBJECTIVE, t_interval
from dasearch.search.events import ABLATION, Listener, Training
from dasearch.search.executors import Executor, Workers
from dasearch.search.executors.chosen import executor_of
from dasearch.search.objective import Objective, Prepared, Run, Users, checkpoint_name, data_bo
from dasearch.search.single import named_layout
from dasearch.search.store import AblationTraining, Store, open_store
from dasearch.search.study import Study, settings_differences
from dasearch.search.trainings import Ledger, Planned, Trainer
from dasearch.shipped import find_shipped, shipped
from dasearch.threads import using
from dasearch.training.loop import objective_hash
from dasearch.training.materials import StudyContext, resolve_device
from dasearch.training.metrics import Interval
from dasearch.training.preparation import prepare_study
from dasearch.training.progress import Fit
from dasearch.training.shared import Passing
from dasearch.yaml_files import read_yaml

FOLDER = "studies/ablations"
WHOLE = "the study itself"
LAYOUT = "layout"  # besides settings, a variant may name the layout it trains


class AblationFile(BaseModel):
    """``studies/ablations/NAME.yaml``: groups of named changes to a study."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelKind
    groups: dict[str, dict[str, dict[str, Any]]]


@dataclass(frozen=True)
class Variant:
    """A study with one thing changed; ``group`` is empty for the study itself.

    ``recipe`` is its training recipe, where it differs from the study's.
    """

    group: str
    name: str
    settings: StudySettings
    layout: Layout
    replace_every: int
    recipe: Recipe | None = None

    @property
    def title(self) -> str:
        """The group and the name, as tables show the variant."""
        return f"{self.group}: {self.name}" if self.group else self.name

    @property
    def key(self) -> str:
        """Hash of everything but the seed that determines its result: 16 hexadecimal digits."""
        content: list[Any] = [objective_hash(self.settings), str(self.layout), self.replace_every]
        if self.recipe is not None:
            content.append(self.recipe.record())
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Scored:
    """A variant's validation metrics over seeds, and the study's gain over it, paired by seed.

    Attributes:
        metric: the study's selection metric, which is the unit of the gain.
    """

    variant: Variant
    metrics: dict[str, Interval]
    gain: Interval | None
    parameters: int
    seeds: int
    metric: str = OBJECTIVE


@dataclass(frozen=True)
class Ablation:
    """An ablation: the variants, their recipe and their users.

    Args:
        short: trials on Data_BO by the trial recipe, instead of final trainings on all users.
        workers: None: the trainings run in this process.
    """

    study: Study
    variants: Sequence[Variant]
    seeds: int
    short: bool = False
    listener: Listener = field(default_factory=Listener)
    workers: Workers | None = None

    def run(self) -> list[Scored]:
        """Train what is not stored yet and return the scores of all variants, in order.

        Raises:
            Exception: the cause of a failed training, after all others are stored.
        """
        settings = self.study.settings
        resolve_device(settings.device)
        store = open_store(self.study.storage, settings.output, create=True)
        try:
            with store.only_runner(settings.name, self.study.folder), using(settings.threads):
                self._train_missing(store)
            trainings = store.ablations(self._run_key())
            return scores(self.variants, [training for training in trainings if training.seed <= self.seeds])
        finally:
            store.close()

    def _run_key(self) -> str:
        """Key of comparable trainings: the same study, recipe and users."""
        recipe = recipe_of(self.study.settings, short=self.short).record()
        content = [objective_hash(self.study.settings), recipe, self.short]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def _train_missing(self, store: Store) -> None:
        settings, distinct = self.study.settings, dict[str, Variant]()
        for variant in self.variants:
            distinct.setdefault(variant.key, variant)
        seeds = range(1, self.seeds + 1)
        each = [(variant, seed) for variant in distinct.values() for seed in seeds]
        done = {(training.variant, training.seed) for training in store.ablations(self._run_key())}
        missing = [(variant, seed) for variant, seed in each if (variant.key, seed) not in done]
        first = len(each) - len(missing) + 1
        if missing and first > 1:
            self.listener.remarks(f"resuming at training {first} of {len(each)}; {first - 1} done")
        planned = [(one[0].key, self._planned(*one, place, len(each))) for place, one in enumerate(missing, first)]
        if planned:
            with closing(executor_of(settings, self.workers, self.listener)) as executor:
                self._train(store, executor, [distinct[key] for key in dict.fromkeys(k for k, _ in planned)], planned)
                executor.forget_all(self._checkpoints)

    def _planned(self, variant: Variant, seed: int, place: int, total: int) -> Planned:
        epochs = recipe_of(variant.settings, short=self.short).epochs
        title, metric = f"{variant.title}, seed {seed}", self.study.settings.search.metric
        training = Training(ABLATION, place, total, variant.layout, title, epochs, metric)
        return Planned(training, Run(variant.layout, f"{self._run_key()}/{variant.key}/{seed}", seed))

    def _train(
        self, store: Store, executor: Executor, variants: Sequence[Variant], planned: Sequence[tuple[str, Planned]]
    ) -> None:
        """Train the seeds of each variant, side by side as memory allows; each is stored when it ends."""
        trainer = Trainer(executor, Ledger(), self.listener, self.study.settings.search.metric)
        prepared = Preparations(self.study, self.listener, executor)
        keys = {one.run.name: key for key, one in planned}

        def keep(one: Planned, fit: Fit) -> None:
            metrics, key = fit.metrics.record(), keys[one.run.name]
            record = AblationTraining(self._run_key(), key, one.run.seed, metrics, fit.parameters, fit.seconds)
            store.add_ablation(record)
            executor.forget(self._checkpoints / checkpoint_name(one.run.name))

        parts = (
            (self._objective(prepared, variant, executor), [one for key, one in planned if key == variant.key])
            for variant in variants
        )
        trainer.later(parts, keep, needed=lambda one: True)

    @property
    def _checkpoints(self) -> Path:
        return resolve_output(self.study.settings) / "ablation-checkpoints"

    def _objective(self, preparations: Preparations, variant: Variant, executor: Executor) -> Objective:
        materials, prepared = preparations.of(variant.settings)
        users = Users.DATA_BO if self.short else Users.EVERYONE
        if self.short:
            materials = materials.on(data_bo(variant.settings, materials.development))
        recipe = recipe_of(variant.settings, short=self.short)
        objective = Objective(
            variant.settings,
            materials,
            recipe,
            Structure(variant.replace_every),
            self._checkpoints,
            users=users,
            prepared=prepared,
        )
        return replace(objective, counted=executor.width(objective.at_once))


class Preparations:
    """Inputs shared by trainings, prepared once for all variants that do not change them, and passed to the executor."""

    def __init__(self, study: Study, listener: Listener, executor: Executor) -> None:
        self.listener, self.executor = listener, executor
        self.variation = study.settings.model.variation.value
        listener.says(Passing("reading the data"))
        self.dataset = study.dataset()
        for remark in self.dataset.remarks:
            listener.remarks(remark)
        self.development: Development = LeaveOneOut(self.dataset).development
        self._ready: list[tuple[StudySettings, StudyContext, Prepared]] = []

    def of(self, settings: StudySettings) -> tuple[StudyContext, Prepared]:
        """Inputs for these settings; an earlier variant's, where no setting that preparation reads differs."""
        for earlier, materials, prepared in self._ready:
            before, after = earlier.model_dump(mode="json"), settings.model_dump(mode="json")
            if not any(materials.method.prepared_by(key) for key in settings_differences(before, after)):
                return materials.under(settings), prepared
        said, whole = self.listener, settings.varied(self.variation)  # a variation prepares less than the whole model
        materials = prepare_study(
            whole, self.dataset, self.development, say=said.says, language_model=said.language_model
        )
        prepared = self.executor.prepare(materials)
        self._ready.append((whole, materials, prepared))
        return materials.under(settings), prepared


def load_variants(
    study: Study, file: str | None = None, *, layout: str = ALL_SERIAL, only: Iterable[str] = (), short: bool = False
) -> list[Variant]:
    """The study itself and the variants of an ablation file, by path or shipped name (its model's own by default).

    Args:
        study: that is ablated.
        file: path or shipped name of the ablation file; None: the shipped one of the study's model.
        layout: as `named_layout` reads it; a variant that adapts fewer layers takes its layers' groups.
        only: groups to keep, by prefixes of their names.
        short: as of `Ablation`.

    Raises:
        StudyError: for a file that is missing, malformed or of another model, or a group that it does not have.
    """
    ablations = _read(file or study.settings.model.kind.value)
    if ablations.model is not study.settings.model.kind:
        raise StudyError(
            f"the ablations are of {ablations.model} and the study of {study.settings.model.kind}; name others"
        )
    if not study.settings.model.searchable:
        raise StudyError(
            f"model.variation={study.settings.model.variation} is already a variation; ablate the whole model"
        )
    space = study.space()
    whole = Variant("", WHOLE, study.settings, named_layout(layout, study, space), space.file.replace_every)
    groups = _chosen(ablations.groups, list(only))
    return [
        whole,
        *(
            _variant(study, whole, group, name, changes, short=short)
            for group, named in groups.items()
            for name, changes in named.items()
        ),
    ]


def recipe_of(settings: StudySettings, *, short: bool) -> Recipe:
    """The recipe that trains an ablation of these settings."""
    return settings.trial if short else settings.final


def _variant(
    study: Study, whole: Variant, group: str, name: str, changes: Mapping[str, Any], *, short: bool
) -> Variant:
    settings = changed(study.settings, {key: value for key, value in changes.items() if key != LAYOUT}, source=name)
    own = Study(settings, storage=study.storage)
    space = own.space()
    there = space.file.replace_every
    layout = _on_layers(whole, there, space.layers)
    if LAYOUT in changes:
        layout = named_layout(str(changes[LAYOUT]), own, space)
    recipe = recipe_of(settings, short=short)
    own_way = None if recipe == recipe_of(study.settings, short=short) else recipe
    return Variant(group, name, settings, layout, there, own_way)


def _on_layers(whole: Variant, replace_every: int, layers: int) -> Layout:
    """The study's layout on the layers that a variant adapts; layers without adapters in the study are serial."""
    groups = {whole.replace_every * (index + 1): group for index, group in enumerate(whole.layout.groups)}
    plain = (SERIAL,) * whole.layout.sites
    return Layout(tuple(groups.get(replace_every * (index + 1), plain) for index in range(layers)))


def _read(name: str) -> AblationFile:
    path = find_shipped(name, FOLDER)
    if path is None:
        known = sorted(p.stem for p in shipped(FOLDER).glob("*.yaml"))
        raise StudyError(
            f"there is no ablation file {name!r}{suggestion(name, known)}; shipped ones: {', '.join(known)}"
        )
    try:
        return AblationFile.model_validate(read_yaml(path, StudyError))
    except ValidationError as error:
        first = error.errors()[0]
        raise StudyError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg'].lower()}") from None


def _chosen(groups: Mapping[str, Any], only: list[str]) -> dict[str, Any]:
    for wanted in only:
        if not any(_begins(group, wanted) for group in groups):
            raise StudyError(f"there is no group {wanted!r} of ablations; choose among {'; '.join(groups)}")
    return {group: named for group, named in groups.items() if not only or any(_begins(group, one) for one in only)}


def _begins(group: str, wanted: str) -> bool:
    return group.lower().startswith(wanted.lower())


def scores(variants: Sequence[Variant], trainings: Iterable[AblationTraining]) -> list[Scored]:
    """Means over seeds with 95% t intervals; the first variant is the baseline."""
    by_variant: dict[str, dict[int, AblationTraining]] = {}
    for training in trainings:
        by_variant.setdefault(training.variant, {})[training.seed] = training
    whole = by_variant[variants[0].key]
    metric = variants[0].settings.search.metric
    return [_score(variant, by_variant[variant.key], whole, metric) for variant in variants]


def _score(
    variant: Variant, own: Mapping[int, AblationTraining], whole: Mapping[int, AblationTraining], metric: str
) -> Scored:
    names = next(iter(own.values())).metrics
    metrics = {name: t_interval([training.metrics[name] for training in own.values()]) for name in names}
    shared = sorted(set(own) & set(whole))
    gain = None
    if variant.group:
        gain = t_interval([whole[seed].metrics[metric] - own[seed].metrics[metric] for seed in shared])
    return Scored(variant, metrics, gain, next(iter(own.values())).parameters, len(own), metric)
