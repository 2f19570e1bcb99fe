"""What the tables of real trainings say: effects against seed noise, shared effects, interactions, gain over all-serial.

Run: python benchmarks/read_tables.py. Variances come from a two-way analysis (layouts, seeds): what is left after both is seed
noise, and is taken off the variance of layout means. Effects and interactions are Walsh coefficients of the means, those of
one order added up, less what noise alone would give. The gain is that of the layout which looks best without a seed,
measured on that seed, against all-serial on the same seed: free of the winner's curse.
"""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path

import torch
from torch import Tensor

from dasearch.bench.landscapes import OUTPUTS, read_table

TABLES = Path(__file__).parent / "tables"


def walsh(codes: Tensor, means: Tensor) -> dict[tuple[int, ...], float]:
    """The coefficient of every product of bits, as -1 and 1."""
    x = 2 * codes - 1
    bits = range(codes.shape[1])
    sets = [s for order in range(codes.shape[1] + 1) for s in itertools.combinations(bits, order)]
    return {s: float((means * x[:, list(s)].prod(1)).mean()) for s in sets}


def main() -> None:
    for path in sorted(TABLES.glob("*.jsonl")):
        table = read_table(path)
        codes = torch.tensor(table.layouts).double()
        layouts, seeds = table.outputs["MRR"].shape
        print(f"\n{path.stem}: {layouts} layouts, {seeds} seed(s)")
        noise = 0.0
        for name in OUTPUTS:
            values = table.outputs[name]
            means = values.mean(1)
            if seeds < 2:
                print(f"  {name:10s} mean {means.mean():.4f}, sd over layouts {means.std():.5f} (noise included)")
                continue
            left = values - means[:, None] - values.mean(0) + values.mean()
            variance = float(left.square().sum()) / ((layouts - 1) * (seeds - 1))
            true = max(0.0, float(means.var()) - variance / seeds)
            noise = variance if name == "MRR" else noise
            sds = f"sd of layouts {true**0.5:.5f}, of seeds {variance**0.5:.5f}, ratio {(true / variance) ** 0.5:.2f}"
            print(f"  {name:10s} mean {means.mean():.4f}, {sds}")
        show_effects(walsh(codes, table.means), table.names, noise / seeds / layouts)
        show_gain(table.outputs["MRR"], table.layouts)


def show_effects(coefficients: dict[tuple[int, ...], float], names: list[str], noise: float) -> None:
    """``noise`` is the variance of one coefficient."""
    kinds = {"single sites": range(1, 2), "pairs": range(2, 3), "three and more": range(3, len(names) + 1)}
    shares = {
        kind: max(0.0, sum(v**2 - noise for s, v in coefficients.items() if len(s) in orders))
        for kind, orders in kinds.items()
    }
    total = sum(shares.values()) or 1.0
    print("  variance by order: " + ", ".join(f"{kind} {share / total:.0%}" for kind, share in shares.items()))
    error = f"standard error {2 * noise**0.5:.5f}" if noise else "one seed: noise is part of every share"
    print(f"  parallel instead of serial, averaged over the rest ({error}):")
    for i, name in enumerate(names):
        print(f"    {name:24s} {2 * coefficients[i,]:+.5f}")
    pairs = sorted((s for s in coefficients if len(s) == 2), key=lambda s: -abs(coefficients[s]))[:3]
    print("  strongest pairs: " + ", ".join(f"{names[i]} x {names[j]} {4 * coefficients[i, j]:+.5f}" for i, j in pairs))


def show_gain(values: Tensor, layouts: list[tuple[int, ...]]) -> None:
    best = int(values.mean(1).argmax())
    letters = "".join("SP"[bit] for bit in layouts[best])
    serial, parallel, top = (float(values[i].mean()) for i in (0, -1, best))
    print(f"  all-serial {serial:.4f}, all-parallel {parallel:.4f}, best mean {top:.4f} ({letters})")
    gains = []
    for seed in range(values.shape[1] if values.shape[1] > 1 else 0):
        others = [s for s in range(values.shape[1]) if s != seed]
        chosen = int(values[:, others].mean(1).argmax())
        gains.append(float(values[chosen, seed] - values[0, seed]))
    if gains:
        each = ", ".join(f"{gain:+.4f}" for gain in gains)
        print(f"  gain of the best of the other seeds over all-serial: {statistics.fmean(gains):+.4f} ({each})")


if __name__ == "__main__":
    main()
