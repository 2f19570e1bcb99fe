"""Train every layout of a small study with several seeds, and keep all validation outputs of every epoch as a table.

Run: python benchmarks/train_table.py STUDY --out FILE.jsonl [--seeds N] [--first SEED] [--set key=value ...]. Each training is
the study's trial on Data_BO; it is written as a line when it ends, and the same command goes on where an interrupted one
stopped. The first line says what made the table. Seeds are the outer loop, so that a table cut short has every layout equally
often; parts of other seeds (`--first`) are joined by appending their lines but the first.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from importlib.metadata import version
from pathlib import Path

import torch

from dasearch.data import LeaveOneOut
from dasearch.layout import Layout
from dasearch.search.objective import data_bo
from dasearch.search.study import Study
from dasearch.training.loop import train
from dasearch.training.preparation import prepare_study

PACKAGES = ("dasearch", "torch", "transformers")
OUTPUTS = ("MRR", "Recall@10", "NDCG@10", "loss")
DIGITS = 6


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=1, help="seed to begin with: parts made side by side, then joined")
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    torch.set_num_threads(1)  # such models do not use two cores well, and two tables can be made side by side
    study = Study.load(given.study, given.changes)
    space, settings = study.space(), study.settings
    header = {
        "study": given.study,
        "changes": given.changes,
        "sites": list(space.sites),
        "names": list(space.free),
        "letters": ["".join(choice.letter for choice in space.choices[name]) for name in space.free],
        "versions": {name: version(name) for name in PACKAGES},
        "threads": 1,
    }
    done = begun(given.out, header)
    dataset = study.dataset()
    development = LeaveOneOut(dataset).development
    materials = prepare_study(settings, dataset, development).on(data_bo(settings, development))
    codes = itertools.product(*(range(len(space.choices[name])) for name in space.free))
    layouts = [space.decode_codes(chosen) for chosen in codes]
    planned = [(seed, layout) for seed in range(given.first, given.first + given.seeds) for layout in layouts]
    for index, (seed, layout) in enumerate(planned, start=1):
        if (seed, str(layout)) in done:
            continue
        started = time.perf_counter()
        trained = train(settings, materials, layout, settings.trial, structure=space.file.structure, seed=seed)
        row = line(layout, seed, trained.progress.epochs, trained.progress.best_epoch, time.perf_counter() - started)
        with given.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(
            f"{index}/{len(planned)} {layout} seed {seed} MRR {trained.metrics.mrr:.4f} {row['seconds']} s", flush=True
        )


def begun(path: Path, header: dict[str, object]) -> set[tuple[int, str]]:
    """Write the first line of a new table, or check an old one's; what it holds already."""
    if not path.is_file():
        path.write_text(json.dumps(header) + "\n", encoding="utf-8")
        return set()
    first, *rest = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    if first != header:
        raise SystemExit(f"{path} was made by another command or version; give another --out")
    return {(row["seed"], row["layout"]) for row in rest}


def line(layout: Layout, seed: int, epochs: list, best: int, seconds: float) -> dict[str, object]:
    curves = {name: [round(epoch.metrics[name], DIGITS) for epoch in epochs] for name in OUTPUTS}
    return {"layout": str(layout), "seed": seed, "seconds": round(seconds, 2), "best_epoch": best, **curves}


if __name__ == "__main__":
    main()
