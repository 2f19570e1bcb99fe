"""Trials a minute with one worker and with two, in turns.

Run: python benchmarks/workers.py [STUDY] [--workers 1,2] [--trials N] [--rounds R] [--gpus-per-worker SHARE] [--set KEY=VALUE].
Every line is the search of the study by so many workers on Ray, each with one core, or with its share of a GPU; the time is
that from the end of as many first trials as there are workers to the end of the last, so that neither preparation nor the
start of the workers counts. ``--stacked`` adds as many trials in this process, side by side as `search.batch` is by default.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from contextlib import suppress

from dasearch.search.events import Finished, Listener
from dasearch.search.executors import Workers
from dasearch.search.study import Study


class Clock(Listener):
    """When each trial ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def finished(self, finished: Finished) -> None:
        if finished.training.phase == "search":
            self.ends.append(time.perf_counter())

    def pace(self, skipped: int) -> float:
        """Trials a minute, the first ones left out."""
        return 60 * (len(self.ends) - skipped) / (self.ends[-1] - self.ends[skipped - 1])


def searched(given: argparse.Namespace, workers: Workers | None, trials: int) -> Clock:
    """The search alone of a fresh study."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        batch = [] if workers is None else ["search.batch=1"]
        fixed = [f"output={folder}", "search.stop_when_flat=false", f"search.budget={trials}", *batch]
        study = Study.load(given.study, [*given.changes, *fixed])
        with suppress(_Over):
            study.run(train=False, listener=_Until(clock, trials), workers=workers)
    return clock


class _Over(Exception):
    """All trials of the search have ended."""


class _Until(Listener):
    """Stops the study before its confirmation."""

    def __init__(self, clock: Clock, trials: int) -> None:
        self.clock, self.trials = clock, trials

    def finished(self, finished: Finished) -> None:
        self.clock.finished(finished)
        if len(self.clock.ends) == self.trials:
            raise _Over


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", default="quickstart")
    parser.add_argument("--workers", default="1,2", metavar="N,N")
    parser.add_argument("--trials", type=int, default=10, help="of each search; the first of every worker warms it up")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--gpus-per-worker", type=float, default=0.0)
    parser.add_argument("--stacked", action="store_true", help="the same trials in this process too")
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    counts = [int(count) for count in given.workers.split(",")]
    sides = {f"{n} workers": Workers(n, cpus=1, gpus=given.gpus_per_worker) for n in counts}
    found: dict[str, list[float]] = {side: [] for side in sides}
    if given.stacked:
        found["this process"] = []
    for turn in range(given.rounds):
        for side in found:
            clock = searched(given, sides.get(side), given.trials)
            found[side].append(clock.pace(skipped=max(counts)))
            print(f"round {turn + 1}, {side}: {found[side][-1]:.1f} trials a minute", flush=True)
    base = statistics.median(next(iter(found.values())))
    for side, paces in found.items():
        pace = statistics.median(paces)
        print(f"{side:<14} {pace:6.1f} trials a minute, {pace / base:.2f} x")


if __name__ == "__main__":
    main()
