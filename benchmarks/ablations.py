"""Train a model's ablations with several seeds on all users and print a table; the test split stays closed.

Run: python benchmarks/ablations.py idle|ra-rec --out FILE.jsonl [--seeds N] [--set key=value ...]. Variants stand in
benchmarks/ablations.yaml. Each training is the study's final recipe; it is written as a line when it ends, and the same
command goes on where an interrupted one stopped. Seeds are the outer loop, and the same for every variant.
"""

from __future__ import annotations

import argparse
import json
import statistics
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml

from dasearch.data import LeaveOneOut
from dasearch.search.confirmation import t_interval
from dasearch.search.single import named_layout
from dasearch.search.study import Study
from dasearch.training.loop import train
from dasearch.training.materials import Materials
from dasearch.training.metrics import summarise
from dasearch.training.preparation import prepare_study

METRICS = ("MRR", "Recall@10", "NDCG@10")
VARIANTS = Path(__file__).with_name("ablations.yaml")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=sorted(yaml.safe_load(VARIANTS.read_text(encoding="utf-8"))))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    torch.set_num_threads(1)  # two tables can be made side by side
    plan = yaml.safe_load(VARIANTS.read_text(encoding="utf-8"))[given.model]
    done = rows(given.out)
    for seed in range(1, given.seeds + 1):
        for name, settings in plan["variants"].items():
            if (name, seed) in {(row["variant"], row["seed"]) for row in done}:
                continue
            changes = [*given.changes, *(f"{key}={json.dumps(value)}" for key, value in settings.items())]
            row = {"variant": name, "seed": seed, **trained(plan, changes, seed)}
            done.append(row)
            with given.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(f"seed {seed}  {name}  MRR {row['MRR']:.4f}  {row['seconds']:.0f} s", flush=True)
    print(table(done, list(plan["variants"])))


def rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@cache
def prepared(name: str, changes: tuple[str, ...]) -> tuple[Study, Materials]:
    """A variant's study and what its trainings share, whatever their seed."""
    study = Study.load(name, changes)
    dataset = study.dataset()
    return study, prepare_study(study.settings, dataset, LeaveOneOut(dataset).development)


def trained(plan: dict[str, Any], changes: list[str], seed: int) -> dict[str, Any]:
    """Validation metrics of one training, and of the ID encoder by itself."""
    study, materials = prepared(plan["study"], tuple(changes))
    space, development = study.space(), materials.development
    layout = named_layout(plan["layout"], study, space)
    every = space.file.replace_every
    found = train(study.settings, materials, layout, study.settings.final, replace_every=every, seed=seed)
    alone = materials.method.baseline_ranks(development.users, development.train, development.valid)
    encoder = {name: summarise(ranks).record() for name, ranks in alone.items()}
    record = found.metrics.record()
    return {**record, "parameters": found.parameters, "seconds": round(found.seconds, 1), "encoder": encoder}


def table(done: list[dict[str, Any]], names: list[str]) -> str:
    """Means and standard deviations over seeds; gains of the whole model, paired by seed, with 95% t intervals."""
    lines = [
        f"| variant | {' | '.join(METRICS)} | parameters | whole model's gain in MRR |",
        "|---|---|---|---|---|---|",
    ]
    whole = {row["seed"]: row["MRR"] for row in done if row["variant"] == names[-1]}
    for name in names:
        own = [row for row in done if row["variant"] == name]
        cells = [spread([row[metric] for row in own]) for metric in METRICS]
        pairs = [whole[row["seed"]] - row["MRR"] for row in own if row["seed"] in whole]
        gain = "" if name == names[-1] or not pairs else str(t_interval(pairs))
        lines.append(f"| {name} | {' | '.join(cells)} | {own[0]['parameters']:,} | {gain} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """``mean ± sd``."""
    sd = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.4f} ± {sd:.4f}"


if __name__ == "__main__":
    main()
