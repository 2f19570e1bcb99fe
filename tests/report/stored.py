"""Studies in a database whose trials were never trained."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import optuna

from dasearch.bayes import Proposal
from dasearch.config import parse_study
from dasearch.layout import PLACEMENTS, Layout
from dasearch.search.store import Store, open_store
from dasearch.search.store.engines import shown
from dasearch.training.progress import Epoch
from tests.report.views import space

NAMES = [choice.name for choice in PLACEMENTS]

NAME = "toy"


def empty_study(folder: Path, *, layers: int = 2, name: str = NAME, source: str = "toy data") -> Store:
    """A study that has just begun; the caller closes the store."""
    store = open_store(None, str(folder), create=True)
    settings = parse_study({"name": name, "output": str(folder)})
    store.begin(
        name,
        settings=settings.model_dump(mode="json"),
        space=space(layers).record(),
        space_hash=space(layers).hash,
        dataset={"name": source, "fingerprint": "ab12"},
        versions={"dasearch": "0.1.0"},
    )
    return store


def optuna_study(store: Store, name: str = NAME) -> optuna.Study:
    return optuna.load_study(study_name=name, storage=store.optuna_storage())


def evaluate(store: Store, layout: str, score: float, name: str = NAME, workers: Sequence[str] = ()) -> int:
    """A trial of two epochs as the runner leaves it; its number."""
    study = optuna_study(store, name)
    trial = study.ask(dict.fromkeys(space().free, optuna.distributions.CategoricalDistribution(NAMES)))
    study._storage.set_trial_user_attr(trial._trial_id, "seconds", 8.5)
    for key, value in space().encode(Layout.parse(layout)).items():
        _set_param(store, trial._trial_id, key, value)
    for epoch, value in enumerate((score - 0.02, score)):
        trial.report(value, epoch)
        store.add_epoch(name, f"trial/{layout}", Epoch(epoch, {"total": 3.0 - epoch}, {"MRR": value}, 4.0))
    trial.set_user_attr("parameters", 1234)
    trial.set_user_attr("peak_memory", 2**20)
    if workers:
        trial.set_user_attr("workers", list(workers))
    study.tell(trial, score)
    return trial.number


def give_up(store: Store, layout: str, reason: str, workers: Sequence[str] = ()) -> int:
    """A trial whose training failed, as the runner leaves it; its number."""
    study = optuna_study(store)
    trial = study.ask(dict.fromkeys(space().free, optuna.distributions.CategoricalDistribution(NAMES)))
    for key, value in space().encode(Layout.parse(layout)).items():
        _set_param(store, trial._trial_id, key, value)
    trial.set_user_attr("workers", list(workers))
    trial.set_user_attr("reason", reason)
    study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    return trial.number


def _set_param(store: Store, trial: int, key: str, value: str) -> None:
    """Over the random one that was asked."""
    with sqlite3.connect(shown(store.url)) as connection:
        connection.execute(
            "update trial_params set param_value = ? where trial_id = ? and param_name = ?",
            (NAMES.index(value), trial, key),
        )


def large_study(folder: Path, *, trials: int, layers: int) -> Store:
    """Many complete trials, written row by row, for Optuna takes minutes over them; three epochs and a proposal each."""
    store = empty_study(folder, layers=layers)
    rng = random.Random(0)
    bits = [[rng.randrange(2) for _ in space(layers).free] for _ in range(trials)]
    scores = [0.1 + 0.01 * sum(own[:4]) + rng.gauss(0, 0.01) for own in bits]
    with sqlite3.connect(shown(store.url)) as connection:
        _write_trials(connection, space(layers).free, bits, scores)
        _write_epochs(connection, bits)
        _write_proposals(connection, space(layers).free, bits, scores)
    return store


def _insert(connection: sqlite3.Connection, table: str, columns: str, rows: list[tuple[object, ...]]) -> None:
    marks = ", ".join("?" * len(columns.split(",")))
    connection.executemany(f"insert into {table}({columns}) values ({marks})", rows)


def _write_trials(
    connection: sqlite3.Connection, names: Sequence[str], bits: list[list[int]], scores: list[float]
) -> None:
    categorical = optuna.distributions.CategoricalDistribution(NAMES)
    distribution = optuna.distributions.distribution_to_json(categorical)
    begun, ended = "2026-01-01 00:00:00.000000", "2026-01-01 00:00:09.000000"
    trials = [(n + 1, n, 1, "COMPLETE", begun, ended) for n in range(len(bits))]
    _insert(connection, "trials", "trial_id, number, study_id, state, datetime_start, datetime_complete", trials)
    params = [
        (n + 1, name, float(bit), distribution)
        for n, own in enumerate(bits)
        for name, bit in zip(names, own, strict=True)
    ]
    _insert(connection, "trial_params", "trial_id, param_name, param_value, distribution_json", params)
    values = [(n + 1, 0, score, "FINITE") for n, score in enumerate(scores)]
    _insert(connection, "trial_values", "trial_id, objective, value, value_type", values)
    curve = [(n + 1, e, score - 0.01 * (2 - e), "FINITE") for n, score in enumerate(scores) for e in range(3)]
    columns = "trial_id, step, intermediate_value, intermediate_value_type"
    _insert(connection, "trial_intermediate_values", columns, curve)


def _write_epochs(connection: sqlite3.Connection, bits: list[list[int]]) -> None:
    layouts = dict.fromkeys(str(Layout.from_bits(own, sites=3)) for own in bits)
    losses, metrics = json.dumps({"total": 5.0}), json.dumps({"MRR": 0.1})
    rows = [(1, f"trial/{layout}", e, losses, metrics, 3.0) for layout in layouts for e in range(3)]
    _insert(connection, "dasearch_epoch", "study_id, run, number, losses, metrics, seconds", rows)


def _write_proposals(
    connection: sqlite3.Connection, names: Sequence[str], bits: list[list[int]], scores: list[float]
) -> None:
    rows: list[tuple[object, ...]] = []
    for n, (own, score) in enumerate(zip(bits, scores, strict=True)):
        layout = json.dumps({name: NAMES[bit] for name, bit in zip(names, own, strict=True)})
        likely = json.dumps({name: [0.1 + 0.8 * bit] for name, bit in zip(names, own, strict=True)})
        rows.append((1, n, "reparameterization", layout, likely, -2.0, score, 0.01, 0.1))
    columns = "study_id, trial_number, source, layout, probabilities, acquisition, mean, sd, seconds"
    _insert(connection, "dasearch_proposal", columns, rows)


def proposal(number: int, layout: Layout) -> Proposal:
    return Proposal(number, "startup", space().encode(layout), None, None, None, None, 0.1)


def evaluate_elsewhere(store: Store) -> None:
    """A trial that a plain Optuna program began the study with, three choices a site; Optuna then refuses other choices."""
    three = optuna.distributions.CategoricalDistribution(("none", *NAMES))
    study = optuna_study(store)
    study.enqueue_trial(dict.fromkeys(space().free, "none"))
    trial = study.ask(dict.fromkeys(space().free, three))
    trial.report(0.4, 0)
    study.tell(trial, 0.5)


def later_space(folder: Path) -> None:
    """Give the study a search space that only a later version may know."""
    with sqlite3.connect(folder / "dasearch.db") as connection:
        (record,) = connection.execute("select space from dasearch_study").fetchone()
        changed = json.dumps({**json.loads(record), "choices": ["serial", "parallel", "sideways"]})
        connection.execute("update dasearch_study set space = ?", (changed,))
