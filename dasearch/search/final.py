"""The final evaluation: the one place that reads the test split."""

from __future__ import annotations

from collections.abc import Mapping

from dasearch.data import IntArray, LeaveOneOut
from dasearch.search.store import Result
from dasearch.training.baselines import markov_ranks, popularity_ranks
from dasearch.training.evaluation import final_ranks
from dasearch.training.loop import Trained
from dasearch.training.materials import Materials
from dasearch.training.metrics import bootstrap_interval, per_user
from dasearch.training.seeds import generator_for

POPULARITY, MARKOV = "popularity", "Markov"


def evaluate_finally(
    trained: Mapping[str, Trained], materials: Materials, split: LeaveOneOut, *, seed: int
) -> list[Result]:
    """Test metrics with 95% bootstrap intervals over users, for trained models and the two baselines.

    Raises:
        TestSplitError: if this split was opened before.
    """
    test = split.open_test()
    development = materials.development
    ranks: dict[str, IntArray] = {}
    for name, model in trained.items():
        ranks[name] = final_ranks(model.model, materials.catalogue, test, model.model.layout_tensor(model.layout))
    ranks |= materials.method.baseline_ranks(test.users, test.history, test.target)
    ranks[POPULARITY] = popularity_ranks(development, test.target)
    ranks[MARKOV] = markov_ranks(development, test.history, test.target)
    layouts = {name: str(model.layout) for name, model in trained.items()}
    return [row for name, found in ranks.items() for row in _rows(name, layouts.get(name), found, seed)]


def _rows(name: str, layout: str | None, ranks: IntArray, seed: int) -> list[Result]:
    rows = []
    for metric, values in per_user(ranks).items():
        interval = bootstrap_interval(values, generator=generator_for(seed, "bootstrap"))
        rows.append(Result(name, layout, metric, interval.mean, interval.low, interval.high))
    return rows
