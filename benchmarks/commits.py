"""The commits of a trial in SQLite: how many, and their seconds, synced one by one and at checkpoints only.

Run: python benchmarks/commits.py [--layers 4,30] [--trials N] [--folder DIR]; the folder says which disk is measured.

A trial is what a search records of one: asked, its sites, epochs, attributes, told. Both ways take turns, a trial each.
"""

from __future__ import annotations

import argparse
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import optuna
from sqlalchemy import Engine, event

from dasearch.layout import PLACEMENTS
from dasearch.search.store import Store, open_store
from dasearch.search_space import load_search_space
from dasearch.training.progress import Epoch

WAYS = {"every commit": "FULL", "checkpoints": "NORMAL"}
NAME, EPOCHS = "commits", 4
ATTRIBUTES = ("metrics", "seconds", "parameters", "peak_memory")


class Recorder:
    """A study in a database of its own, whose trials are recorded and never trained."""

    def __init__(self, folder: Path, layers: int, synchronous: str) -> None:
        space = load_search_space("darec", backbone_layers=layers)
        self.sites, self.commits = list(space.free), 0
        self.store: Store = open_store(None, str(folder), create=True)
        given = {"settings": {}, "space": space.record(), "space_hash": space.hash, "dataset": {}, "versions": {}}
        self.store.begin(NAME, **given)
        storage = self.store.optuna_storage()
        for engine in (self.store._engine, storage.engine):
            self._count(engine, synchronous)
        self.study = optuna.load_study(study_name=NAME, storage=storage)

    def _count(self, engine: Engine, synchronous: str) -> None:
        engine.dispose()

        @event.listens_for(engine, "connect")
        def synced(raw: sqlite3.Connection, _: object) -> None:
            raw.execute(f"PRAGMA synchronous={synchronous}")

        @event.listens_for(engine, "commit")
        def counted(_: object) -> None:
            self.commits += 1

    def record(self, number: int) -> float:
        """Record one trial; its seconds."""
        began = time.perf_counter()
        trial = self.study.ask()
        for site in self.sites:
            trial.suggest_categorical(site, [choice.name for choice in PLACEMENTS])
        for epoch in range(EPOCHS):
            self.store.add_epoch(NAME, f"trial/{number}", Epoch(epoch, {"total": 1.0}, {"MRR": 0.1}, 2.0))
            trial.report(0.1, epoch)
        for key in ATTRIBUTES:
            trial.set_user_attr(key, 1.0)
        self.study.tell(trial, 0.1)
        return time.perf_counter() - began


def measure(layers: int, trials: int, folder: Path | None) -> None:
    """Print a row for each way."""
    with ExitStack() as stack:
        recorders, seconds = {}, {way: list[float]() for way in WAYS}
        for way, synchronous in WAYS.items():
            own = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
            recorders[way] = Recorder(own, layers, synchronous)
            stack.enter_context(closing(recorders[way].store))
        for number in range(trials):
            for way, recorder in recorders.items():
                seconds[way].append(recorder.record(number))
        for way, recorder in recorders.items():
            median, most = statistics.median(seconds[way]), max(seconds[way])
            commits = recorder.commits / trials
            print(f"{layers:6}  {way:12}  {commits:13.0f}  {median:14.3f}  {most:8.3f}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", default="4,30")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print("layers  synced        commits/trial  median seconds  the most")
    for layers in given.layers.split(","):
        measure(int(layers), given.trials, given.folder)


if __name__ == "__main__":
    main()
