"""The public `Study`: loaded from a file, run, and queried for its status."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dasearch.bayes import Proposal
from dasearch.commands import command
from dasearch.config import (
    Override,
    StudySettings,
    changed,
    extremes,
    load_study,
    parse_study,
    resolve_output,
    with_found,
)
from dasearch.data import Dataset, Rules, load_dataset, sample_users, statistics
from dasearch.errors import SearchSpaceError, StoreError, StudyError, WrongUse
from dasearch.layout import ADAPTER_MODELS, Choice, Join, Layout
from dasearch.models.adapters import AdapterSettings
from dasearch.models.pretrained import pretrained_layers
from dasearch.models.registry import MODELS
from dasearch.models.tiny_opt import TINY_OPT
from dasearch.search.causes import cause_of, failed, workers_of
from dasearch.search.confirmation import OBJECTIVE, ConfirmedLayout, standings
from dasearch.search.domain import Domain, Point
from dasearch.search.events import CONFIRMATION, DONE, FINAL, SEARCH, Listener
from dasearch.search.executors import Workers
from dasearch.search.expected_end import end_expected
from dasearch.search.front import Selection
from dasearch.search.prior import prior_trials
from dasearch.search.progress import heard, libraries_quiet
from dasearch.search.runner import Runner
from dasearch.search.store import (
    Artifact,
    PostSearchTraining,
    PriorTrial,
    Result,
    Store,
    Stored,
    TrialRecord,
    open_store,
    require_writable,
)
from dasearch.search_space import SearchSpace, load_search_space, space_differences
from dasearch.threads import using
from dasearch.training.materials import resolve_device
from dasearch.training.preparation import TRAINING_TASKS
from dasearch.training.progress import Epoch
from dasearch.training.seeds import derive_seed
from dasearch.training.shared import Passing
from dasearch.version import installed_versions

STARTED_IN = "started_in"  # key of the stored data: the folder that relative paths began from

# settings that may change after a study began; a space is identified by its hash, not its name
MAY_CHANGE = {
    "output",
    "device",
    "threads",
    "compile",
    "graphs",
    "recompute",
    "shard",
    "search.budget",
    "search.batch",
    "search.pending",
    "trial.minutes",
    "search.worth",
    "search.stop_when_flat",
    "search.pick",
    "final",
    "comparison",
    "space.name",
}


@dataclass(frozen=True)
class TrialView:
    """A trial as a status shows it.

    Attributes:
        settings: searched besides the layout, by key.
        workers: as in `causes.workers_of`.
        reason: as in `causes.cause_of`.
    """

    number: int
    layout: Layout | None
    state: str
    score: float | None
    seconds: float | None
    parameters: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    workers: tuple[str, ...] = ()
    reason: str | None = None

    @property
    def failed(self) -> bool:
        """Whether its training failed, or it was lost."""
        return failed(self.state, self.reason)


@dataclass(frozen=True)
class Status:
    """Progress and results of a study."""

    name: str
    phase: str
    budget: int
    trials: list[TrialView]
    standings: list[ConfirmedLayout]
    results: list[Result]
    artifacts: list[Artifact]
    space: SearchSpace
    worth: float  # `search.worth` of its settings
    prior: list[PriorTrial]
    metric: str = OBJECTIVE
    selection: Selection | None = None  # in a study with a cost, once costs are counted
    settings_found: Mapping[str, Any] = field(default_factory=dict)  # of `search.also`: the best so far, by key
    later_trainings: Sequence[PostSearchTraining] = ()

    def __repr__(self) -> str:
        done = f"{len(self.completed)} of {self.budget} trials complete"
        best = "" if self.best is None else f", best {self.metric} {self.best.score:.4f} by {self.best.layout!r}"
        return f"Status({self.name!r}: {self.phase}, {done}{best})"

    @property
    def completed(self) -> list[TrialView]:
        """Complete trials, in the order of their numbers."""
        return [trial for trial in self.trials if trial.state == "complete"]

    @property
    def best(self) -> TrialView | None:
        """The best completed trial; the first of equals."""
        return max(self.completed, key=lambda trial: (trial.score or 0.0, -trial.number), default=None)

    @property
    def layouts(self) -> list[Layout]:
        """Distinct layouts of its trials, and of the controls that were trained after the search."""
        searched = (trial.layout for trial in self.trials if trial.layout is not None)
        confirmed = (standing.layout for standing in self.standings)
        return list(dict.fromkeys((*searched, *confirmed, *(training.layout for training in self.later_trainings))))


class Study:
    """A study file bound to the database that stores its trials.

    Args:
        storage: a database URL or an SQLite file; by default ``dasearch.db`` in the study's output folder.

    Examples:
        >>> import dasearch
        >>> study = dasearch.Study.load("quickstart", ["name=small", "search.budget=12", "backbone.layers=2"])
        >>> study
        Study('small': darec over tiny-opt, budget 12, folder runs/small)
        >>> study.space().size
        64
    """

    def __init__(self, settings: StudySettings, *, storage: str | None = None) -> None:
        self.settings = settings
        self.storage = storage

    def __repr__(self) -> str:
        own = self.settings
        what = f"{own.model.label} over {own.backbone.name}"
        return f"Study({own.name!r}: {what}, budget {own.search.budget}, folder {own.output}/{own.name})"

    @classmethod
    def load(cls, name: str | Path, overrides: Iterable[str | Override] = (), *, storage: str | None = None) -> Study:
        """Read a study file by path or shipped name; ``overrides`` are ``key=value``."""
        return cls(load_study(str(name), overrides), storage=storage)

    @property
    def folder(self) -> Path:
        """The study's output folder."""
        return resolve_output(self.settings)

    def space(self) -> SearchSpace:
        """The search space, resolved for the backbone's layers."""
        backbone, space = self.settings.backbone, self.settings.space
        if backbone.name == TINY_OPT:
            layers = backbone.layers or backbone.tiny.layers
        else:
            decoder = MODELS[self.settings.model.kind].decoder_only
            layers = pretrained_layers(backbone.name, layers=backbone.layers, decoder=decoder)
        resolved = load_search_space(
            self.settings.space_name, backbone_layers=layers, replace_every=space.replace_every
        )
        kind = self.settings.model.kind
        if resolved.file.model is not kind:
            raise SearchSpaceError(
                f"search space {resolved.file.name} is of {resolved.file.model} and model.kind is {kind}; set space.name={kind}"
            )
        return resolved

    def dataset(self, source: str | None = None) -> Dataset:
        """The study's data set, or another source read by the study's rules."""
        data, rules = self.settings.data, self.rules()
        dataset = load_dataset(data.source, rules) if source is None else load_dataset(source, rules.elsewhere())
        if data.max_users is None:
            return dataset
        return sample_users(dataset, data.max_users, seed=derive_seed(self.settings.seed, "users") % 2**31)

    def rules(self) -> Rules:
        """The study's rules for reading data."""
        return self.settings.data.rules(derive_seed(self.settings.seed, "ties") % 2**31)

    def run(
        self,
        budget: int | None = None,
        *,
        train: bool = True,
        listener: Listener | None = None,
        progress: bool = True,
        warm_start: str | Path | None = None,
        workers: Workers | None = None,
    ) -> Status:
        """Search until ``budget`` evaluations are complete, confirm, and (``train``) train and test the winner.

        Without a ``listener``, progress is shown on stderr (a line for each training; in a terminal also the running one);
        ``progress=False`` disables it.

        Resumes where an earlier run of the same study stopped. ``warm_start`` starts a new study from the trials of another
        one, in any format that `prior.read_trials` reads. They are stored with the study, so a resumed study uses them
        whether they are given again or not.

        Raises:
            LayoutError: if ``warm_start`` cannot be read, or has another model.
            StudyError, SearchSpaceError: if the stored study began with other settings or another space.
            StoreError: if another process runs this study, or its database cannot be used.
        """
        settings = self.settings if budget is None else with_budget(self.settings, budget)
        with libraries_quiet(), heard(listener, progress=progress) as listening:
            listening.says(Passing("reading the study and its data"))
            space = self.searched_space()
            if warm_start is not None and settings.search.also:
                raise StudyError(
                    "another study's trials have no values for search.also; remove the warm start or search.also"
                )
            prior = None if warm_start is None else prior_trials(str(warm_start), space)
            dataset = self.dataset()
            with closing(open_store(self.storage, settings.output, create=True)) as store:
                require_writable(resolve_output(settings))
                with store.only_runner(settings.name, resolve_output(settings)):
                    before = store.study(settings.name)
                    if _begin(store, settings, space, dataset, prior) != DONE:
                        with _withdrawn_if_refused(store, settings.name, fresh=before is None), using(settings.threads):
                            for remark in dataset.remarks:
                                listening.remarks(remark)
                            if before is not None:
                                listening.remarks(goes_on(status(store, settings.name), before, train=train))
                            with end_expected(store, settings.name, listening) as told:
                                Runner(settings, space, dataset, store, told, workers).run(train=train)
                    return status(store, settings.name)

    def searched_space(self) -> SearchSpace:
        """The search space, checked for something to search under these settings.

        Raises:
            StudyError, SearchSpaceError: if they do not.
        """
        settings = self.settings
        if not settings.model.searchable:
            raise StudyError(
                f"model.variation={settings.model.variation} leaves nothing to search; use `dasearch train` with this study"
            )
        resolve_device(settings.device)
        space = self.space()
        _require_choice(settings, space)
        _require_costs(settings, space)
        _require_unprepared(settings, space)
        return space

    def status(self) -> Status:
        """The study's current status; may be read while another process runs it."""
        with self._reading() as store:
            return status(store, self.settings.name)

    def proposals(self) -> list[Proposal]:
        """Why each trial got its layout, in the order of trials; may be asked as `status`."""
        with self._reading() as store:
            return store.proposals(self.settings.name)

    def epochs(self) -> dict[str, list[Epoch]]:
        """Losses and validation metrics of every epoch, by training; may be asked as `status`.

        A training is called ``trial/LAYOUT``, ``confirm/SEED/LAYOUT`` or ``final/LAYOUT``.
        """
        with self._reading() as store:
            return store.epochs_by_run(self.settings.name)

    def _reading(self) -> closing[Store]:
        return closing(open_store(self.storage, self.settings.output, create=False))


def _require_choice(settings: StudySettings, space: SearchSpace) -> None:
    """Reject free sites without effect, which would waste the budget, and choices wider than the model's adapters."""
    for choice in space.file.alphabet:
        reason = settings.model.too_wide(choice) if isinstance(settings.model, AdapterSettings) else None
        if reason is not None:
            raise SearchSpaceError(f"choice {choice.name!r} of search space {space.file.name} {reason}")
    for site, cause in settings.inert_sites.items():
        if any(name.endswith(f".{site}") for name in space.free):
            raise SearchSpaceError(
                f"{cause} leaves the site {site} nothing to choose; give a search space file with "
                f'fixed: {{"*.{site}": serial}} as space.name'
            )


def _require_costs(settings: StudySettings, space: SearchSpace) -> None:
    """Reject a cost objective in which all layouts are equal."""
    cost = settings.search.cost
    if cost is None or any(
        len({_costing(choice, settings) for choice in space.choices[name]}) > 1 for name in space.free
    ):
        return
    able = space.file.model in ADAPTER_MODELS
    such = f"choose a space with none or widths, such as space.name={space.file.model}-none"
    fix = such if able else "set it to the metric alone"
    raise StudyError(
        f"every layout of search space {space.file.name} has the same {cost.words}, so search.objective has no front to find; "
        f"{fix}"
    )


def _require_unprepared(settings: StudySettings, space: SearchSpace) -> None:
    """Reject searched settings that are read before training, or whose values do not fit the space."""
    for key, able in settings.searched.items():
        if TRAINING_TASKS[settings.model.kind].prepared_by(key):
            raise StudyError(
                f"search.also: {key} is read once per study, before any training; compare its values with `dasearch ablate`"
            )
        if settings.search.cost is not None and key.startswith("model."):
            raise StudyError(
                f"search.also: {key} may change what layouts cost; search it without a cost in search.objective"
            )
        for value in extremes(able):
            _require_choice(with_found(settings, {key: value}), space)


def _costing(choice: Choice, settings: StudySettings) -> Choice:
    """A choice reduced to what affects its cost: without its name, its placement, and its join."""
    whole = settings.model.most(choice) if isinstance(settings.model, AdapterSettings) else None
    return replace(choice, name="", letter="A", parallel=False, join=Join.MODEL, width=choice.width or whole)


def with_budget(settings: StudySettings, budget: int) -> StudySettings:
    """The settings with another ``search.budget``, as set by ``--budget``."""
    return changed(settings, {"search.budget": budget}, source="--budget")


def status(store: Store, name: str) -> Status:
    """The status of a stored study."""
    stored = store.begun(name)
    settings = parse_study(stored.settings, source=f"study {name}")
    space = stored_space(stored)
    domain, records = Domain.of(settings, space), store.trials(name)
    trials = [_view(trial, domain) for trial in records]
    ranked = standings(store.confirmations(name), space.all_serial, settings.search.metric)
    return Status(
        name=name,
        phase=stored.phase,
        budget=settings.search.budget,
        trials=trials,
        standings=ranked,
        results=store.results(name),
        artifacts=store.artifacts(name),
        space=space,
        worth=settings.search.worth,
        prior=store.prior(name),
        metric=settings.search.metric,
        selection=Selection.of(settings.search, store.costs(name)),
        settings_found=domain.named(domain.best_values(signals_of(records, domain))),
        later_trainings=store.later_trainings(name),
    )


def goes_on(found: Status, before: Stored, *, train: bool) -> str:
    """A sentence on where a study resumes and how much of it is done.

    Args:
        found: its status, with the budget of this run.
        before: as it was stored until now.
        train: whether its final training is to follow.
    """
    done, failed = len(found.completed), sum(trial.failed for trial in found.trials)
    trials = f"{done} done{f', {failed} failed' if failed else ''}"
    searching = before.phase == SEARCH or found.budget > before.settings["search"]["budget"]
    if searching and done < found.budget:
        return f"study {found.name} resumes at trial {done + 1} of {found.budget}; {trials}"
    phase, name = (FINAL, "final training") if found.phase == FINAL and train else (CONFIRMATION, "confirmation")
    ended = sum(one.phase == phase and one.ended is not None and one.reason is None for one in found.later_trainings)
    return f"study {found.name} resumes with the {name}, {ended} of its trainings done; trials: {trials}"


def signals_of(records: Iterable[TrialRecord], domain: Domain) -> dict[Point, float]:
    """The signal of every complete trial, which the surrogate is fitted to."""
    complete = (trial for trial in records if trial.state == "complete" and domain.holds(trial.params))
    signals = {domain.point(trial.params): trial.surrogate_target for trial in complete}
    return {point: signal for point, signal in signals.items() if signal is not None}


def stored_space(stored: Stored) -> SearchSpace:
    """The search space that a study began with.

    Raises:
        StoreError: if this version cannot read it.
    """
    try:
        return SearchSpace.from_record(stored.space)
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ").removeprefix("Value error, ")
        raise StoreError(
            f"the search space of study {stored.name!r} cannot be read ({reason}); it began with dasearch "
            f"{stored.versions.get('dasearch', 'of another version')}, which can"
        ) from None


def _view(trial: TrialRecord, domain: Domain) -> TrialView:
    point = domain.point(trial.params) if domain.holds(trial.params) else None
    layout, settings = (None, {}) if point is None else (point.layout, domain.named(point.values))
    score = trial.score if trial.state == "complete" else None
    parameters = trial.attributes.get("parameters")
    annotations = (workers_of(trial), cause_of(trial, domain))
    return TrialView(trial.number, layout, trial.state, score, trial.seconds, parameters, settings, *annotations)


@contextmanager
def _withdrawn_if_refused(store: Store, name: str, *, fresh: bool) -> Iterator[None]:
    """Remove a new study whose settings fail in preparation, so that corrected ones may begin it."""
    try:
        yield
    except StoreError:  # nothing was prepared yet
        raise
    except WrongUse:
        if fresh and not status(store, name).completed:
            store.delete_study(name)
        raise


def _begin(
    store: Store, settings: StudySettings, space: SearchSpace, dataset: Dataset, prior: Sequence[PriorTrial] | None
) -> str:
    """Record a new study, or check that the stored one has the same settings; return its phase."""
    stored = store.study(settings.name)
    record = settings.model_dump(mode="json")
    if stored is None:
        _record(store, settings, space, dataset, prior or ())
        return SEARCH
    _require_same_inputs(stored, space, dataset)
    if prior is not None:
        _require_same_prior(settings.name, store.prior(settings.name), prior)
    _require_same_settings(stored, record)
    store.update_settings(settings.name, record)
    return stored.phase


def _record(
    store: Store, settings: StudySettings, space: SearchSpace, dataset: Dataset, prior: Sequence[PriorTrial]
) -> None:
    """Record a new study, as it is resolved now."""
    store.begin(
        settings.name,
        settings=settings.model_dump(mode="json"),
        space=space.record(),
        space_hash=space.hash,
        dataset={
            "name": dataset.name,
            "fingerprint": dataset.fingerprint,
            "statistics": asdict(statistics(dataset)),
            STARTED_IN: os.getcwd(),
        },
        versions=installed_versions(("dasearch", "torch", "transformers", "botorch", "gpytorch", "optuna")),
        prior=prior,
        costly=settings.search.cost is not None,
    )


def _require_same_inputs(stored: Stored, space: SearchSpace, dataset: Dataset) -> None:
    """Reject another search space or other data than those that the study began with."""
    if stored.space_hash != space.hash:
        difference = space_differences(stored.space, space.record())
        raise SearchSpaceError(
            f"study {stored.name!r} began with another search space ({difference}); restore it or pass --set name=NEW"
        )
    if stored.dataset["fingerprint"] != dataset.fingerprint:
        raise StudyError(
            f"the data of study {stored.name!r} changed since it began; restore them or pass --set name=NEW"
        )


def _require_same_settings(stored: Stored, record: dict[str, Any]) -> None:
    """Reject changes of settings that a study keeps, and a larger budget after its end."""
    name = stored.name
    before = parse_study(stored.settings, source=f"study {name}")  # new settings have defaults
    differences = settings_differences(before.model_dump(mode="json"), record)
    fixed = [key for key in differences if not _may_change(key)]
    if fixed:
        raise StudyError(
            f"study {name!r} began with another {fixed[0]}; restore it or pass --set name=NEW; "
            f"`{command('resume', name)}` goes on with its own settings"
        )
    if stored.phase == DONE and record["search"]["budget"] > stored.settings["search"]["budget"]:
        raise StudyError(
            f"study {name!r} has read its test split, so its search is closed; pass --set name=NEW for a larger budget"
        )


def _require_same_prior(name: str, before: Sequence[PriorTrial], given: Sequence[PriorTrial]) -> None:
    """Reject another warm start than the one that the study began with, wherever its file is now."""
    if [trial[:2] for trial in before] != [trial[:2] for trial in given]:
        began = f"with another warm start, {before[0].source}" if before else "without a warm start"
        raise StudyError(f"study {name!r} began {began}; remove --warm-start to resume it, or pass --set name=NEW")


def settings_differences(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ."""
    differences: list[str] = []
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            differences += settings_differences(old, new, f"{prefix}{key}.")
        elif old != new:
            differences.append(f"{prefix}{key}")
    return differences


def _may_change(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in MAY_CHANGE)
