"""Whether large logs fit: seconds of reading, filtering and splitting a plain folder, and the peak of resident memory.

``python benchmarks/read_scale.py`` makes 10 million interactions of 1 million users, seeded, in a temporary folder, and
reads them in a process of its own, so that the memory is the reading's alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from dasearch.data import Core, LeaveOneOut, Rules, Ties
from dasearch.data.assembly import assemble
from dasearch.data.readers.plain import COLUMNS, INTERACTIONS, ITEMS, read_folder

BOUND_GB = 8
WORDS = 5000  # of which titles are made
CHUNK = 500_000  # interactions written at once
GB = 1024**2  # of ru_maxrss, which Linux gives in KiB

T = TypeVar("T")


def generate(folder: Path, *, users: int, items: int, interactions: int, seed: int) -> None:
    """A log in order of time: every user alike active, items by a power law."""
    rng = np.random.default_rng(seed)
    popularity = 1 / np.arange(1, items + 1) ** 0.8
    popularity /= popularity.sum()
    with (folder / INTERACTIONS).open("w") as file:
        file.write("\t".join(COLUMNS) + "\n")
        for start in range(0, interactions, CHUNK):
            size = min(CHUNK, interactions - start)
            who, what = rng.integers(users, size=size), rng.choice(items, size, p=popularity)
            when = 1_600_000_000 + start + np.arange(size)
            rows = zip(who.tolist(), what.tolist(), when.tolist(), strict=True)
            file.writelines(f"user{u:07d}\titem{i:06d}\t{t}\n" for u, i, t in rows)
    with (folder / ITEMS).open("w") as file:
        for item in range(items):
            title = " ".join(f"word{word}" for word in rng.integers(WORDS, size=8))
            file.write(json.dumps({"item_id": f"item{item:06d}", "attributes": {"title": title, "brand": "b"}}) + "\n")


def measure(folder: Path, rules: Rules) -> dict[str, float]:
    """Seconds of each step, what came out, and this process's peak memory in GB."""
    seconds: dict[str, float] = {}

    def timed(name: str, step: Callable[[], T]) -> T:
        wall, processor = time.perf_counter(), time.process_time()
        result = step()
        seconds[f"seconds_{name}"] = round(time.perf_counter() - wall, 1)
        seconds[f"of_processor_{name}"] = round(time.process_time() - processor, 1)
        return result

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    raw = timed("read", lambda: read_folder(folder))
    read = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    dataset = timed("filter_and_order", lambda: assemble(raw, rules))
    split = timed("split", lambda: LeaveOneOut(dataset))
    counts = {
        "users": len(dataset.users),
        "items": len(dataset.items),
        "interactions": sum(map(len, dataset.sequences)),
        "train_interactions": sum(map(len, split.development.train)),
    }
    peaks = (before, read, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    names = ("gb_imports", "gb_peak_read", "gb_peak")
    return {**counts, **seconds, **{name: round(peak / GB, 2) for name, peak in zip(names, peaks, strict=True)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--interactions", type=int, default=10_000_000)
    parser.add_argument("--min-item-interactions", type=int, default=4)
    parser.add_argument("--core", type=Core, default=Core.ONE_PASS, choices=list(Core))
    parser.add_argument("--ties", type=Ties, default=Ties.SHUFFLE, choices=list(Ties))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="read this plain folder, and generate nothing")
    arguments = parser.parse_args()
    if arguments.folder:
        rules = Rules(ties=arguments.ties, min_item_interactions=arguments.min_item_interactions, core=arguments.core)
        print(json.dumps(measure(arguments.folder, rules)))
        return
    with tempfile.TemporaryDirectory() as folder:
        size = {name: getattr(arguments, name) for name in ("users", "items", "interactions", "seed")}
        generate(Path(folder), **size)
        child = [sys.executable, __file__, *sys.argv[1:], "--folder", folder]
        found = json.loads(subprocess.run(child, check=True, capture_output=True, text=True).stdout)
    for name, value in found.items():
        print(f"{name.replace('_', ' '):<32}{value:>14,}")
    print(f"within {BOUND_GB} GB: {'yes' if found['gb_peak'] < BOUND_GB else 'NO'}")


if __name__ == "__main__":
    main()
