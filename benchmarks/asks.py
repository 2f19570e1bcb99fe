"""An ask of PRSampler in this revision and another: seconds, and whether both propose the same.

Run: python benchmarks/asks.py --against REV [--sites 36,90] [--choices 2,3,5] [--cost] [--asks N].

Both sides are processes of one thread that tell the same trials, random layouts of the `independent` family, and are asked in
turns; the other revision lies in a git worktree. What is asked for is told before the next ask. With ``--cost`` there is a
second objective that is known, the sum of a layout's choices. Acquisition values are compared while the layouts are the same.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]


def serve(size: str, told: int, cost: bool) -> None:
    """For every line on standard input an ask, answered in JSON; ``size`` as in `dasearch.bench.samplers.planted`."""
    import optuna
    import torch

    from dasearch.bayes import PRSampler
    from dasearch.bench.samplers import ask, planted, random_codes, space_of

    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    generator = torch.Generator().manual_seed(0)
    landscape = planted(f"independent/{size}", generator)
    space, proposals = space_of(landscape.sizes), []
    known = (lambda params: float(sum(params.values()))) if cost else None
    sampler = PRSampler(seed=0, search_space=space, cost=known, on_proposal=proposals.append)
    study = optuna.create_study(directions=["maximize", "minimize"][: 1 + cost], sampler=sampler)

    def values(codes: tuple[int, ...]) -> list[float]:
        return [landscape.observe(codes, generator)[-1], float(sum(codes))][: 1 + cost]

    for _ in range(told):
        codes = random_codes(space, generator)
        params = dict(zip(space, codes, strict=True))
        study.add_trial(optuna.trial.create_trial(params=params, distributions=dict(space), values=values(codes)))
    for _ in sys.stdin:
        asked = ask(study, space)
        study.tell(asked.trial, values(asked.codes))
        answer = {"seconds": asked.seconds, "layout": asked.codes, "acquisition": proposals[-1].acquisition}
        print(json.dumps(answer), flush=True)


class Served:
    """A process that answers; see `serve`."""

    def __init__(self, root: Path, *options: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, *options],
            env={**os.environ, "PYTHONPATH": str(root)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self) -> dict[str, Any]:
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("an ask did not come to its end")
        return json.loads(line)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


class Compared(NamedTuple):
    """Median seconds of both sides, how many layouts came out alike, and how far their acquisition values differ."""

    seconds: tuple[float, float]
    alike: int
    difference: float


def compared(roots: tuple[Path, Path], asks: int, *options: str) -> Compared:
    """The first ask of each side warms up."""
    sides = [Served(root, *options) for root in roots]
    answers = [[side.ask() for side in sides] for _ in range(asks + 1)]
    for side in sides:
        side.close()
    alike, difference = 0, 0.0
    for mine, theirs in answers:
        if mine["layout"] != theirs["layout"]:
            break
        alike += 1
        values = mine["acquisition"], theirs["acquisition"]
        difference = max(difference, abs(values[0] - values[1]) / abs(values[1]))
    first, second = ([answer[side]["seconds"] for answer in answers[1:]] for side in range(2))
    return Compared((statistics.median(first), statistics.median(second)), alike, difference)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="REV")
    parser.add_argument("--sites", default="36,90", metavar="N,N")
    parser.add_argument("--choices", default="2,3,5", metavar="N,N")
    parser.add_argument("--told", type=int, default=30, help="trials before the first ask")
    parser.add_argument("--asks", type=int, default=3, help="timed, after one to warm up")
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--serve", metavar="SIZE", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve, given.told, given.cost)
        return
    if not given.against:
        parser.error("say which revision to compare with: --against REV")
    common = ["--told", str(given.told), *(["--cost"] if given.cost else [])]
    with tempfile.TemporaryDirectory() as folder:
        there, git = Path(folder) / "against", ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", there, given.against], check=True)
        try:
            for sites in given.sites.split(","):
                for choices in given.choices.split(","):
                    found = compared((ROOT, there), given.asks, "--serve", f"{sites}/{choices}", *common)
                    this, other = found.seconds
                    print(
                        f"{sites} sites, {choices} choices: {this:.3f} s against {other:.3f} s, {other / this:.1f} times as "
                        f"fast; {found.alike} of {given.asks + 1} layouts alike, acquisition within {found.difference:.0e}",
                        flush=True,
                    )
        finally:
            subprocess.run([*git, "remove", "--force", there], check=True)


if __name__ == "__main__":
    main()
