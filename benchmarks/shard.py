"""Ranks that hold a part of each frozen layer against ranks that hold all: bytes of the layers on each, seconds of a step.

Run: python benchmarks/shard.py [STUDY] [--ranks N] [--steps N] [--set KEY=VALUE]. It starts torchrun. Both sides train the same
steps in turns in the same processes, and their trained parameters are compared at the end.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dasearch.config import Sharding
from dasearch.data import LeaveOneOut
from dasearch.search.study import Study
from dasearch.training.materials import resolve_device
from dasearch.training.preparation import prepare_study
from dasearch.training.ranks import Peers, joined, started
from dasearch.training.sharding import held_bytes
from dasearch.training.stack import Candidate, Ground, Run, Stack

ROOT = Path(__file__).parents[1]
TENS_OF_MILLIONS = (
    "backbone.name=smollm2-135m",
    "backbone.layers=12",
    "data.max_users=300",
)  # 42 million in the layers
SIDES = (Sharding.NONE, Sharding.LAYERS)
MIB = 2**20


@dataclass
class Side:
    """One way of holding the frozen layers, with the seconds of its steps."""

    stack: Stack
    groups: Any
    seconds: list[float] = field(default_factory=list)

    def step(self) -> None:
        group = next(self.groups)
        torch.distributed.barrier()
        began = time.perf_counter()
        self.stack.take(group)
        if self.stack.materials.device.type == "cuda":
            torch.cuda.synchronize()
        torch.distributed.barrier()
        self.seconds.append(time.perf_counter() - began)


def side_of(study: Study, sharding: Sharding, peers: Peers) -> Side:
    settings, space, dataset = study.settings.model_copy(update={"shard": sharding}), study.space(), study.dataset()
    materials = prepare_study(settings, dataset, LeaveOneOut(dataset).development, peers=peers)
    ground = Ground(settings, materials, settings.final, space.file.structure, peers=peers)
    stack = Stack(ground, [Run.begin(ground, Candidate(space.all_serial), 0, {})])
    batches = itertools.chain.from_iterable(stack.batches() for _ in itertools.count())
    return Side(stack, iter(lambda: list(itertools.islice(batches, settings.final.accumulate)), []))


def train(given: argparse.Namespace) -> None:
    """One rank."""
    study = Study.load(given.study, [*TENS_OF_MILLIONS, f"final.accumulate={started().size}", *given.changes])
    with joined(resolve_device(study.settings.device)) as peers:
        sides = {sharding: side_of(study, sharding, peers) for sharding in SIDES}
        for _ in range(given.steps + 1):  # the first warms up
            for side in sides.values():
                side.step()
        report(sides, peers)


def report(sides: dict[Sharding, Side], peers: Peers) -> None:
    medians = {sharding: statistics.median(side.seconds[1:]) for sharding, side in sides.items()}
    for sharding, side in sides.items():
        backbone = side.stack.materials.catalogue.backbone
        own = torch.tensor(held_bytes(backbone), device=side.stack.materials.device)
        held = ", ".join(f"{int(one) / MIB:.1f}" for one in peers.in_order([own], peers.size, own))
        ratio = f"{medians[sharding] / medians[Sharding.NONE]:.2f} x"
        if peers.first:
            print(
                f"shard={sharding:<6} MiB of layers per rank: {held}; {medians[sharding]:.3f} s a step, {ratio}",
                flush=True,
            )
    whole, parts = (side.stack.parameters.matrix for side in sides.values())
    if peers.first:
        print(
            f"the same trained parameters: {torch.equal(whole, parts)}; load average {os.getloadavg()[0]:.1f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("study", nargs="?", default="quickstart")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="KEY=VALUE")
    given = parser.parse_args()
    if started().size > 1:
        train(given)
        return
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(given.ranks)]
    sys.exit(subprocess.run([*torchrun, "-m", "benchmarks.shard", *sys.argv[1:]], cwd=ROOT, check=False).returncode)


if __name__ == "__main__":
    main()
