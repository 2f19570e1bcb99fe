"""What it costs to open SmolLM2: the first conversion, later openings, and its first layers alone.

Run: python benchmarks/backbones.py, with the extra smollm2. Every figure is of a fresh process, so that its peak memory is
its own; seconds do not count imports. Opened weights are read once from end to end, because safetensors maps a file and
reads nothing until asked. The last line is the ratio of all layers to the first four.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from os import environ
from typing import NamedTuple

LAYERS = 4
REPEATS = 5


class Cost(NamedTuple):
    """Of opening the model in one process; ``mib`` is the rise of peak memory, ``weights`` bytes."""

    seconds: float
    mib: float
    weights: int


def measure(layers: int | None) -> Cost:
    """In this process, imports and a first allocation done before."""
    from dasearch.models.pretrained import load_pretrained

    before = peak_mib()
    started = time.perf_counter()
    model, _ = load_pretrained("smollm2-135m", layers=layers)
    for parameter in model.parameters():
        parameter.sum()
    seconds = time.perf_counter() - started
    return Cost(seconds, peak_mib() - before, sum(p.numel() * p.element_size() for p in model.parameters()))


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_fresh_process(layers: int | None, cache: str) -> Cost:
    command = [sys.executable, __file__, "measure", "all" if layers is None else str(layers)]
    done = subprocess.run(
        command, env={**environ, "DASEARCH_CACHE": cache}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
    )
    return Cost(*json.loads(done.stdout))


def median(layers: int | None, cache: str) -> Cost:
    """Of several processes, by seconds."""
    return sorted(in_fresh_process(layers, cache) for _ in range(REPEATS))[REPEATS // 2]


def show(what: str, cost: Cost) -> None:
    print(f"{what}: {cost.seconds:.2f} s, peak memory +{cost.mib:.0f} MiB, weights {cost.weights / 2**20:.0f} MiB")


def main() -> None:
    with tempfile.TemporaryDirectory() as cache:
        show("first opening, with the conversion", in_fresh_process(None, cache))
        whole, first = median(None, cache), median(LAYERS, cache)
    show(f"all layers, median of {REPEATS}", whole)
    show(f"the first {LAYERS}, median of {REPEATS}", first)
    print(
        f"ratio: seconds {whole.seconds / first.seconds:.1f}, peak memory {whole.mib / first.mib:.1f}, "
        f"weights {whole.weights / first.weights:.1f}"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(measure(None if sys.argv[2] == "all" else int(sys.argv[2]))))
    else:
        main()
