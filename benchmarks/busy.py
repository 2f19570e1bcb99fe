"""Trainings beside each other on the same cores: what a busy neighbour costs, and what a second core brings.

Run: python benchmarks/busy.py [STUDY] [--against REV]. Every training is a process of its own that prepares first, waits
until all are ready, and then times one trial with default settings: alone, two at once, three at once. The fair share of
n at once is n / cores of the time alone. With ``--against`` the same of another revision, in a git worktree, in turns.
Then, in this revision, K candidates side by side with default settings (stacked on a GPU) against one at a time with one
thread. ``--at-once 1,4 --warm`` on one GPU: four processes that share it, beside four stacked candidates.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
AT_ONCE = "1,2,3"
ONE_THREAD = ("--one-at-a-time", "--set", "threads=1")


def work(given: argparse.Namespace) -> None:
    """Prepare, say so, and time what is asked for when told to begin."""
    from dasearch.data import LeaveOneOut
    from dasearch.search import objective, runner
    from dasearch.search.study import Study
    from dasearch.training import loop
    from dasearch.training.preparation import prepare_study

    data_bo = getattr(objective, "data_bo", None) or runner.data_bo  # where it was before batches
    study = Study.load(given.study, given.changes)
    settings, space = study.settings, study.space()
    dataset = study.dataset()
    development = LeaveOneOut(dataset).development
    materials = prepare_study(settings, dataset, development).on(data_bo(settings, development))
    shared = {"replace_every": space.file.replace_every}  # as earlier revisions take it
    if hasattr(space.file, "structure"):
        shared = {"structure": space.file.structure}
    layout = space.all_serial

    def train() -> None:
        if not given.candidates:  # as every revision trains
            loop.train(settings, materials, layout, settings.trial, **shared)
            return
        candidates = [loop.Candidate(layout, seed) for seed in range(given.candidates)]
        at_once = 1 if given.one_at_a_time else loop.candidates_at_once(settings, materials, settings.trial)
        for start in range(0, len(candidates), at_once):
            group = candidates[start : start + at_once]
            loop.train_together(settings, materials, group, settings.trial, **shared, at_once=at_once)

    if given.warm:
        train()
    print("ready", flush=True)
    sys.stdin.readline()
    started = time.perf_counter()
    train()
    print(json.dumps(time.perf_counter() - started), flush=True)


def together(count: int, command: list[str], root: Path = ROOT) -> list[float]:
    """Seconds of ``count`` processes that begin at one time with the package at ``root``."""
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, *command, "--work"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(count)
    ]
    for process in processes:
        if process.stdout.readline() != "ready\n":
            raise SystemExit(f"a training did not come to its start; see: PYTHONPATH={root} python {__file__} --work")
    for process in processes:
        process.stdin.write("begin\n")
        process.stdin.flush()
    return [json.loads(process.communicate()[0]) for process in processes]


def compare(sides: dict[str, Path], command: list[str], rounds: int, at_once: Sequence[int]) -> None:
    """Each side alone and beside its like, in turns; medians over rounds, of the slowest process of each."""
    found = {(side, count): [] for count in at_once for side in sides}
    for _ in range(rounds):
        for side, count in found:
            found[side, count].append(max(together(count, command, sides[side])))
    medians = {key: statistics.median(seconds) for key, seconds in found.items()}
    for (side, count), seconds in medians.items():
        fair = max(1.0, count / (os.cpu_count() or 1))
        ratio = f"{seconds / medians[side, at_once[0]]:.2f} x alone (fair share of the cores {fair:.2f})"
        other = "".join(
            f", {seconds / medians[rev, count]:.2f} x {rev}" for rev in sides if rev != side and side == "this"
        )
        print(f"{side:<10} {count} at once {seconds:>7.1f} s  {ratio}{other}", flush=True)


def both_cores(command: list[str], candidates: int, rounds: int) -> None:
    """The same trials by default and with one thread, in turns."""
    wanted = [*command, "--candidates", str(candidates)]
    sides = {"default": wanted, "one thread, one at a time": [*wanted, *ONE_THREAD]}
    found = {side: [] for side in sides}
    for _ in range(rounds):
        for side, asked in sides.items():
            found[side] += together(1, asked)
    default, alone = (statistics.median(seconds) for seconds in found.values())
    print(
        f"{candidates} trials: default {default:.1f} s, one thread, one at a time {alone:.1f} s: {default / alone:.2f} x"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", default="quickstart")
    parser.add_argument("--against", metavar="REV", help="a git revision to run beside this one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--at-once", default=AT_ONCE, metavar="N,N", help="processes at a time; first 1")
    parser.add_argument("--warm", action="store_true", help="train once untimed before: compiled, as later trials are")
    parser.add_argument("--candidates", type=int, default=0, help="trials of the second part; 0: four")
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--one-at-a-time", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given)
        return
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}", flush=True)
    command = [given.study, *(part for change in given.changes for part in ("--set", change))]
    command += ["--warm"] if given.warm else []
    at_once = [int(count) for count in given.at_once.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        sides = {"this": ROOT}
        if given.against:
            sides[given.against] = Path(folder) / "against"
            git = ["git", "-C", str(ROOT), "worktree"]
            subprocess.run([*git, "add", "--quiet", "--detach", sides[given.against], given.against], check=True)
        try:
            compare(sides, command, given.rounds, at_once)
        finally:
            if given.against:
                subprocess.run([*git, "remove", "--force", sides[given.against]], check=True)
    both_cores(command, given.candidates or 4, given.rounds)


if __name__ == "__main__":
    main()
