"""Histories answered in a second, one at a time and in batches, and what a file of them takes.

``python benchmarks/serving.py MODEL`` asks a trained model for the best ten items after seeded histories of 1 to
``data.max_items`` items: all in one process, in turns, the median of three. Then `dasearch recommend --from` answers
files of short histories, a process each, for its peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch

from dasearch.training.recommender import Recommender, load

BATCHES = (1, 8, 32, 128)
ROUNDS = 3
SHORT = 3  # items of a file's histories, so that reading and writing count
MB = 1024  # of ru_maxrss, which Linux gives in KiB


def histories(recommender: Recommender, count: int, longest: int, seed: int) -> list[list[str]]:
    """Lengths and items uniform."""
    rng = np.random.default_rng(seed)
    names = [item.identifier for item in recommender.items]
    return [[names[i] for i in rng.integers(len(names), size=rng.integers(1, longest + 1))] for _ in range(count)]


class Pace(NamedTuple):
    """Histories a second, and a second of this process's processor time, which others share less in; page faults."""

    wall: float
    processor: float
    faults: float


def pace(recommender: Recommender, asked: list[list[str]], batch: int) -> Pace:
    wall, processor, faults = time.perf_counter(), time.process_time(), page_faults()
    if batch == 1:
        for history in asked:
            recommender.recommend(history)
    else:
        recommender.recommend_many(asked, batch_size=batch)
    seconds = time.perf_counter() - wall, time.process_time() - processor
    return Pace(len(asked) / seconds[0], len(asked) / seconds[1], page_faults() - faults)


def page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def peak_memory(device: str) -> str:
    """Of this process so far, or of the GPU since the last look."""
    if device == "cpu":
        return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MB:,.0f} MiB"
    found = torch.cuda.max_memory_allocated() / 2**20
    torch.cuda.reset_peak_memory_stats()
    return f"{found:,.0f} MiB of the GPU"


def compare(model: Path, device: str, count: int, seed: int) -> None:
    recommender = load(model, device=device)
    asked = histories(recommender, count, recommender.settings.data.max_items, seed)
    recommender.recommend_many(asked[:32])  # what is made once
    found: dict[int, list[Pace]] = {batch: [] for batch in BATCHES}
    memory: dict[int, str] = {}
    for _ in range(ROUNDS):
        for batch in BATCHES:
            found[batch].append(pace(recommender, asked, batch))
            memory.setdefault(batch, peak_memory(device))
    medians = {batch: Pace(*map(statistics.median, zip(*paces, strict=True))) for batch, paces in found.items()}
    for batch, (wall, processor, faults) in medians.items():
        speed = f"{wall:>7,.0f} a second, of processor {processor:>7,.0f}"
        ratios = f"{wall / medians[1].wall:.1f} x, of processor {processor / medians[1].processor:.1f} x"
        print(f"{device:<5} batch {batch:>4} {speed}  {ratios}  {memory[batch]}  {faults:,.0f} page faults")


def answer_files(model: Path, device: str, rows: int, seed: int) -> None:
    """Files of ``rows`` and of ten times as many."""
    recommender = load(model, device="cpu")
    for form in (".jsonl", ".parquet"):
        for count in (rows, 10 * rows):
            asked = histories(recommender, count, SHORT, seed)
            with tempfile.TemporaryDirectory() as folder:
                source, out = Path(folder) / f"in{form}", Path(folder) / f"out{form}"
                if form == ".jsonl":
                    source.write_text("".join(json.dumps({"history": history}) + "\n" for history in asked))
                else:
                    pl.DataFrame({"history": asked}).write_parquet(source)
                print(f"{device:<5} {form:<9}{count:>9,} rows  {_answered(model, device, source, out)}")


def _answered(model: Path, device: str, source: Path, out: Path) -> str:
    command = [sys.executable, "-m", "dasearch.cli", "recommend", str(model), "--json", "--device", device]
    child = subprocess.Popen([*command, "--from", str(source), "--out", str(out)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    record = json.loads(child.stdout.read())
    _, _, usage = os.wait4(child.pid, 0)
    return f"{record['answered'] / record['seconds']:>8,.0f} a second   {usage.ru_maxrss / MB:,.0f} MiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the folder of a trained model")
    parser.add_argument("--histories", type=int, default=512)
    parser.add_argument("--rows", type=int, default=2000, help="of the smaller file; 0 leaves the files out")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.1f}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for device in devices:
        compare(arguments.model, device, arguments.histories, arguments.seed)
        if arguments.rows:
            answer_files(arguments.model, device, arguments.rows, arguments.seed)
    if "cuda" not in devices:
        print("cuda  left out: torch finds no CUDA device here")


if __name__ == "__main__":
    main()
