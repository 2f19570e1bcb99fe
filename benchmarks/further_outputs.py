"""Do further outputs of a training help the surrogate to predict MRR? On the real tables, by the other seeds' MRR.

Run: python benchmarks/further_outputs.py. A surrogate sees some layouts of a table as one seed trained them, under each target
below; its posterior mean at every layout is compared with the mean MRR of the other seeds by rank correlation. Differences
to plain MRR are paired by draw and seed. Targets are combined after standardisation over what is seen.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from scipy.stats import spearmanr
from torch import Tensor

from dasearch.bayes import Choices, Surrogate
from dasearch.bench.landscapes import Table, read_table

TABLES = Path(__file__).parent / "tables"
DRAWS, SEEN = 40, (12, 24)
Outputs = dict[str, Tensor]  # of some layouts and one seed: (layouts, epochs), and under "kept MRR" (layouts,)


def standard(values: Tensor) -> Tensor:
    return (values - values.mean()) / values.std().clamp(min=1e-12)


def last(values: Tensor) -> Tensor:
    return values[:, -1]


TARGETS: dict[str, Callable[[Outputs], Tensor]] = {
    "MRR": lambda o: o["kept MRR"],
    "MRR, mean of epochs": lambda o: o["MRR"].mean(1),
    "MRR, Recall and NDCG": lambda o: sum(standard(last(o[k])) for k in ("MRR", "Recall@10", "NDCG@10")),
    "MRR and loss": lambda o: standard(o["kept MRR"]) - standard(last(o["loss"])),
    "MRR and a little loss": lambda o: standard(o["kept MRR"]) - 0.3 * standard(last(o["loss"])),
    "loss": lambda o: -last(o["loss"]),
}


def of_seed(table: Table, seed: int) -> Outputs:
    return {**{name: curve[:, seed] for name, curve in table.curves.items()}, "kept MRR": table.outputs["MRR"][:, seed]}


def main() -> None:
    for path in sorted(TABLES.glob("*.jsonl")):
        table = read_table(path)
        codes = torch.tensor(table.layouts).double()
        choices = Choices.named(table.sizes)
        seeds = [of_seed(table, seed) for seed in range(table.outputs["MRR"].shape[1])]
        if len(seeds) < 2:
            continue
        for n in SEEN:
            print(f"{path.stem}, {n} layouts seen: rank correlation with the other seeds' MRR")
            found: dict[str, list[float]] = {name: [] for name in TARGETS}
            for draw in range(DRAWS):
                chosen = torch.randperm(len(codes), generator=torch.Generator().manual_seed(draw))[:n]
                for seed, outputs in enumerate(seeds):
                    truth = torch.stack([o["kept MRR"] for k, o in enumerate(seeds) if k != seed]).mean(0)
                    for name, target in TARGETS.items():
                        seen = {key: values[chosen] for key, values in outputs.items()}
                        mean = Surrogate.fit(codes[chosen], target(seen), choices).posterior(codes).mean
                        found[name].append(float(spearmanr(mean, truth).statistic) if mean.std() > 1e-12 else 0.0)
            for name, values in found.items():
                gains = [a - b for a, b in zip(values, found["MRR"], strict=True)]
                error = statistics.stdev(gains) / math.sqrt(len(gains))
                gain = statistics.fmean(gains)
                print(f"  {name:24s} {statistics.fmean(values):+.3f}   against MRR {gain:+.3f} ± {error:.3f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
