"""The results table: its rows, their training, and the only code that reads the test split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from dasearch.config import StudySettings
from dasearch.data import IntArray, LeaveOneOut, TestSplit
from dasearch.layout import Layout
from dasearch.models.id_encoders import IDEncoder
from dasearch.search.confirmation import RANDOM, WINNER, controls
from dasearch.search.events import FINAL, Training
from dasearch.search.objective import Objective, Run
from dasearch.search.runs import RunId, RunPhase
from dasearch.search.store import FinalTraining, Result
from dasearch.search.trainings import Planned, Trainings
from dasearch.search_space import SearchSpace
from dasearch.training.baselines import markov_ranks, popularity_ranks
from dasearch.training.encoders import encoder_ranks
from dasearch.training.evaluation import final_ranks
from dasearch.training.loop import Trained
from dasearch.training.materials import StudyContext
from dasearch.training.metrics import bootstrap_interval, per_user, summarise
from dasearch.training.seeds import generator_for
from dasearch.training.significance import FloatArray, holm, paired_lead, paired_p

POPULARITY, MARKOV = "popularity", "Markov"


class Model(NamedTuple):
    """A model of the results table: a layout, under the study's own model or one of its variations."""

    layout: Layout
    variation: str | None = None


@dataclass(frozen=True)
class FinalModels:
    """Everything that is evaluated on the test split.

    Attributes:
        rows: the model of each name; several names may share a model.
        trained: trainings of each model, one per seed.
        encoders: trained ID encoders by title, one per seed.
    """

    rows: Mapping[str, Model]
    trained: Mapping[Model, list[Trained]]
    encoders: Mapping[str, list[IDEncoder]]


def final_rows(settings: StudySettings, space: SearchSpace, winner: Layout) -> dict[str, Model]:
    """The winner, the controls, and the study's variations, by their names in the table."""
    rows = {WINNER: Model(winner)}
    for control in controls(space, settings.seed):
        if control.role != RANDOM or settings.comparison.random:
            rows[control.role] = Model(control.layout)
    return rows | {name: Model(space.all_serial, name) for name in settings.compared_variations}


def train_rows(trainings: Trainings, rows: Mapping[str, Model]) -> dict[Model, list[Trained]]:
    """Train every row on all users, with every seed; the trainings of one variation run side by side.

    A model other than the winner is dropped if one of its trainings fails.
    """
    planned = _planned(trainings.settings, rows)
    variations = dict.fromkeys(model.variation for model, _ in planned)
    parts = [
        (_objective(trainings, variation), [one for model, one in planned if model.variation == variation])
        for variation in variations
    ]
    winners = {one.run.name for model, one in planned if model == rows[WINNER]}
    kept = trainings.later(parts, needed=lambda one: one.run.name in winners)
    failed = {model for model, one in planned if one.run.name not in kept}
    trained: dict[Model, list[Trained]] = {}
    for model, one in planned:
        if model not in failed:
            trained.setdefault(model, []).append(kept[one.run.name].trained(trainings.executor))
    return trained


def _planned(settings: StudySettings, rows: Mapping[str, Model]) -> list[tuple[Model, Planned]]:
    """Every model with every seed, grouped by variation."""
    models = dict.fromkeys(rows.values())
    variations, seeds = dict.fromkeys(model.variation for model in models), range(settings.comparison.seeds)
    each = [(model, seed) for own in variations for seed in seeds for model in models if model.variation == own]
    planned = []
    for index, (model, seed) in enumerate(each, start=1):
        names = " = ".join(name for name, named in rows.items() if named == model)
        label = f"{names}, seed {seed}"
        training = Training(FINAL, index, len(each), model.layout, label, settings.final.epochs, settings.search.metric)
        planned.append((model, Planned(training, Run(model.layout, _run_name(model, seed), seed))))
    return planned


def _run_name(model: Model, seed: int) -> str:
    return str(RunId(RunPhase.FINAL, str(model.variation or model.layout), seed))


def _objective(trainings: Trainings, variation: str | None) -> Objective:
    full = trainings.full
    if variation is None:
        return full
    varied = trainings.settings.varied(variation)
    return replace(full, settings=varied, materials=full.materials.under(varied))


def evaluate_finally(
    finalists: FinalModels, materials: StudyContext, split: LeaveOneOut, *, seed: int
) -> tuple[list[Result], list[FinalTraining]]:
    """Evaluate every row on the test split, once: metrics, intervals over users, standard deviations, the winner's lead.

    Raises:
        TestSplitError: if the split was read before.
    """
    test = split.open_test()
    ranks = _model_ranks(finalists, materials, test) | _baseline_ranks(finalists, materials, test)
    layouts = {name: str(model.layout) for name, model in finalists.rows.items() if model.variation is None}
    others = [name for name in ranks if finalists.rows.get(name) != finalists.rows[WINNER]]
    metrics = {name: _by_metric(found) for name, found in ranks.items()}
    results = [
        result
        for metric in metrics[WINNER]
        for result in _results(metric, {name: found[metric] for name, found in metrics.items()}, others, layouts, seed)
    ]
    order = list(ranks)
    return sorted(results, key=lambda result: order.index(result.name)), _trainings(finalists, ranks, layouts)


def _model_ranks(finalists: FinalModels, materials: StudyContext, test: TestSplit) -> dict[str, list[IntArray]]:
    ranks = {
        model: [
            final_ranks(t.model, materials.catalogue, test, t.model.layout_tensor(t.layout))
            for t in finalists.trained[model]
        ]
        for model in dict.fromkeys(finalists.rows.values())
    }
    return {name: ranks[model] for name, model in finalists.rows.items()}


def _baseline_ranks(finalists: FinalModels, materials: StudyContext, test: TestSplit) -> dict[str, list[IntArray]]:
    by_name = {
        title: [encoder_ranks(encoder, test.users, test.history, test.target) for encoder in encoders]
        for title, encoders in finalists.encoders.items()
    }
    own = materials.method.baseline_ranks(test.users, test.history, test.target)
    by_name |= {f"{title} of the study" if title in by_name else title: [ranks] for title, ranks in own.items()}
    by_name[POPULARITY] = [popularity_ranks(materials.development, test.target)]
    by_name[MARKOV] = [markov_ranks(materials.development, test.history, test.target)]
    return by_name


def _by_metric(ranks: list[IntArray]) -> dict[str, FloatArray]:
    """Per-user values of each metric, ``(seeds, users)``."""
    each = [per_user(found) for found in ranks]
    return {metric: np.stack([values[metric] for values in each]) for metric in each[0]}


def _results(
    metric: str, values: Mapping[str, FloatArray], others: list[str], layouts: Mapping[str, str], seed: int
) -> list[Result]:
    """One metric of every row, and the winner's lead over the ``others``, with p values corrected for their number."""
    winner = values[WINNER]
    corrected = dict(zip(others, holm([paired_p(winner, values[name]) for name in others]), strict=True))
    rows = []
    for name, found in values.items():
        users = bootstrap_interval(found.mean(0), generator=generator_for(seed, "bootstrap"))
        lead = paired_lead(winner, found, generator=generator_for(seed, "lead")) if name in corrected else None
        sd = float(found.mean(1).std(ddof=1)) if len(found) > 1 else None
        rows.append(
            Result(name, layouts.get(name), metric, *users, seeds=len(found), sd=sd, lead=lead, p=corrected.get(name))
        )
    return rows


def _trainings(
    finalists: FinalModels, ranks: Mapping[str, list[IntArray]], layouts: Mapping[str, str]
) -> list[FinalTraining]:
    """Every training of the table, by name and seed."""
    return [
        FinalTraining(
            name,
            layouts.get(name),
            seed,
            summarise(found).record(),
            trained.parameters,
            trained.seconds,
            trained.peak_memory,
        )
        for name, model in finalists.rows.items()
        for seed, (found, trained) in enumerate(zip(ranks[name], finalists.trained[model], strict=True))
    ]
