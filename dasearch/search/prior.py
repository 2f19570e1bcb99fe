"""Warm start: the trials of another study as prior trials of a new one.

A file in any format below becomes `TrialsFile`; its layouts are mapped to the new study's depth (`layout.map_to_depth`) and,
where the new space fixes sites, to the nearest layout of that space; a choice that it lacks, to the most similar one.
Dropping all layouts that differ would often leave none. The effect of the difference is part of the other study's noise.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from dasearch.config import parse_study
from dasearch.errors import LayoutError
from dasearch.folders import place_of, write_text
from dasearch.layout import SITES, Depth, Layout, ModelKind, map_to_depth
from dasearch.layout_file import LAYOUT_NAME, ChoiceRecord, LayoutFile, choice_records
from dasearch.search.loop import REASON
from dasearch.search.store import PriorTrial, Store, TrialRecord, open_store
from dasearch.search_space import SearchSpace
from dasearch.versioned import VersionedFile

TRIALS_NAME = "trials.json"
SQLITE = b"SQLite format 3\0"


class ScoredLayout(BaseModel):
    """A layout and its score; more is better."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layout: str = Field(
        description="one letter per site, one group per adapted layer: SPS-PPS; see `choices` of the file"
    )
    score: FiniteFloat
    signal: FiniteFloat | None = Field(
        None,
        description="the signal that the surrogate is fitted to, the mean of the validation curve; null: the score",
    )
    workers: list[str] = Field(
        default_factory=list, exclude=True, description="only in 1.3, as MACHINE:PROCESS; no longer written"
    )


class FailedLayout(BaseModel):
    """A layout whose training failed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layout: str
    reason: str
    workers: list[str] = Field(default_factory=list, exclude=True, description="as in a scored layout")


class TrialsFile(VersionedFile):
    """The contents of ``trials.json``: the complete trials of a study, for the warm start of another, and its failed ones."""

    VERSION = "1.4"
    WHAT = "trials file (trials.json)"

    schema_version: str = Field(
        VERSION, description="MAJOR.MINOR; a minor version only adds fields, or drops optional ones"
    )
    model: ModelKind
    sites: list[str] = Field(description="sites of a layer, in the order of a layout's letters")
    layers: int = Field(ge=1, description="number of layers of the backbone")
    replaced: list[int] = Field(min_length=1, description="the layers that carry adapters, counted from 1, ascending")
    metric: str = Field(description="metric of the scores, on validation data")
    study: str
    dataset: str | None = None
    seed: int
    choices: list[ChoiceRecord] = Field(
        default_factory=choice_records, min_length=1, description="since 1.1: the meaning of the letters"
    )
    trials: list[ScoredLayout] = Field(min_length=1)
    failed: list[FailedLayout] = Field(
        default_factory=list, description="since 1.3: layouts whose training failed; a warm start ignores them"
    )

    @model_validator(mode="after")
    def _whole(self) -> TrialsFile:
        if sorted({layer for layer in self.replaced if 1 <= layer <= self.layers}) != self.replaced:
            raise ValueError(f"replaced must ascend from 1 to at most {self.layers}")
        for trial in self.trials:
            self.parsed(trial).require(len(self.replaced), len(self.sites))
        return self

    def parsed(self, trial: ScoredLayout) -> Layout:
        """A trial's layout, by the file's own letters."""
        return Layout.parse(trial.layout, [record.choice() for record in self.choices])

    @property
    def depth(self) -> Depth:
        """The adapted layers, counted from 0, and the number of layers of the backbone."""
        return Depth(tuple(layer - 1 for layer in self.replaced), self.layers)

    @property
    def source(self) -> str:
        """In words."""
        data = f"{self.dataset}, " if self.dataset else ""
        return f"study {self.study} ({data}{self.layers} layers, seed {self.seed})"


def trials_of(store: Store, name: str) -> TrialsFile:
    """The complete trials of a stored study.

    Raises:
        StoreError: if there is no such study.
        LayoutError: if none of its trials is complete, or they differ in more than layouts.
    """
    stored = store.begun(name)
    settings, space = parse_study(stored.settings, source=f"study {name}"), SearchSpace.from_record(stored.space)
    records = store.trials(name)
    if settings.search.also:
        raise LayoutError(
            f"study {name!r} searched settings beside the layout, so its trials compare more than layouts"
        )
    scored_trials = [scored for trial in records if (scored := _scored(trial, space)) is not None]
    if not scored_trials:
        raise LayoutError(f"study {name!r} has no complete trial yet; run it first")
    return TrialsFile(
        model=space.file.model,
        sites=list(space.sites),
        layers=space.backbone_layers,
        replaced=[layer + 1 for layer in space.replaced],
        metric=settings.search.metric,
        study=name,
        dataset=stored.dataset.get("name"),
        seed=stored.settings["seed"],
        choices=choice_records(*space.file.alphabet),
        trials=scored_trials,
        failed=[failed for trial in records if (failed := _failed(trial, space)) is not None],
    )


def _scored(trial: TrialRecord, space: SearchSpace) -> ScoredLayout | None:
    if trial.state != "complete" or trial.score is None or not space.holds(trial.params):
        return None
    return ScoredLayout(layout=str(space.decode(trial.params)), score=trial.score, signal=trial.surrogate_target)


def _failed(trial: TrialRecord, space: SearchSpace) -> FailedLayout | None:
    """The record of a failed trial; None for one that was only interrupted, which is trained again."""
    if trial.state != "pruned" or REASON not in trial.attributes or not space.holds(trial.params):
        return None
    return FailedLayout(layout=str(space.decode(trial.params)), reason=str(trial.attributes[REASON]))


def write_trials(store: Store, name: str, path: Path) -> Path:
    """Write a stored study's ``trials.json``; errors as in `trials_of`."""
    file = trials_of(store, name)
    write_text(path, file.text())
    return path


def prior_trials(source: str, space: SearchSpace) -> list[PriorTrial]:
    """The prior trials of a file, as layouts of ``space``.

    Raises:
        LayoutError: if it cannot be read, or has another model or other sites.
        StoreError: for a database that cannot be opened.
    """
    file = read_trials(source)
    if (file.model, tuple(file.sites)) != (space.file.model, space.sites):
        raise LayoutError(
            f"{source} holds layouts of {file.model} [{', '.join(file.sites)}] and this study searches those of "
            f"{space.file.model} [{', '.join(space.sites)}]; give --warm-start a study of {space.file.model}"
        )
    return [
        PriorTrial(
            space.nearest(map_to_depth(file.parsed(trial), file.depth, space.depth)),
            trial.score if trial.signal is None else trial.signal,
            file.source,
        )
        for trial in file.trials
    ]


def read_trials(source: str) -> TrialsFile:
    """A ``trials.json``, a model's ``layout.json`` or folder, or a database: ``FILE:STUDY`` where it holds several studies.

    Raises:
        LayoutError: for a file that is none of these, or holds no scored layout.
        StoreError: for a database that cannot be opened, or does not hold the study.
    """
    path, study = _file_and_study(source)
    path = path / LAYOUT_NAME if path.is_dir() else path
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LayoutError(f"{path} cannot be read ({error.strerror}); check --warm-start") from None
    if content.startswith(SQLITE):
        return _stored(path, study)
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        record = None
    form = next((key for key in FORMS if isinstance(record, dict) and key in record), None)
    if form is None or study is not None:
        raise LayoutError(f"{source} is not a trials.json, layout.json or study database; check --warm-start")
    return FORMS[form](record, str(path))


def _file_and_study(source: str) -> tuple[Path, str | None]:
    path, study = Path(source), None
    if not os.path.exists(path) and ":" in source:
        before, study = source.rsplit(":", 1)
        path = Path(before)
    return place_of(path, LayoutError), study


def _stored(path: Path, study: str | None) -> TrialsFile:
    with closing(open_store(str(path), str(path.parent), create=False)) as store:
        names = store.study_names() if study is None else [study]
        if len(names) != 1:
            known = ", ".join(names) or "none"
            raise LayoutError(
                f"{path} does not hold exactly one study; name it as in {path}:STUDY (studies there: {known})"
            )
        return trials_of(store, names[0])


def _of_layout(record: dict[str, Any], source: str) -> TrialsFile:
    """The layout of a trained model as the only trial."""
    file = LayoutFile.of_record(record, source)
    if file.metric is None:
        raise LayoutError(
            f"{source} has no metric, so its layout has no score; give the layout.json of a model that dasearch trained"
        )
    validated = file.metric.split == "validation"  # the search never reads test scores
    return TrialsFile(
        model=next(kind for kind, sites in SITES.items() if list(sites) == file.sites),  # file.model is a variation
        metric=file.metric.name,
        trials=[ScoredLayout(layout=file.layout, score=file.metric.value if validated else 0.0)],
        **file.model_dump(include={"sites", "layers", "replaced", "study", "seed", "choices"}),
    )


FORMS: dict[str, Callable[[dict[str, Any], str], TrialsFile]] = {  # by a key that each has
    "trials": TrialsFile.of_record,
    "layout": _of_layout,
}
