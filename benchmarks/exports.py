"""How far the scores of exported models are from those of the model they came from, on real histories.

Run: python benchmarks/exports.py MODEL [--histories N], MODEL the folder of a trained model whose data can be read here. Every
form is opened in a fresh process in which dasearch cannot be imported (tests/export/open_exports.py). Half of the histories
belong to known users, half are asked without a user.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dasearch.data import LeaveOneOut
from dasearch.export import FORMATS, ExportOptions, export
from dasearch.search.study import Study
from dasearch.training.recommender import Recommender, load

FORMS = ("torch", "hf", "pt2", "onnx")
OPENER = Path(__file__).parents[1] / "tests" / "export" / "open_exports.py"
TOP = 10
Question = tuple[list[str], str | None]


def questions(recommender: Recommender, count: int) -> list[Question]:
    """Training histories of the data set's first users; every second one with its user."""
    development = LeaveOneOut(Study(recommender.settings).dataset()).development
    names, found = list(recommender.users), []
    for k, (user, history) in enumerate(zip(development.users[:count].tolist(), development.train, strict=False)):
        found.append(([recommender.items[item].identifier for item in history], names[user] if k % 2 else None))
    return found


def ours(recommender: Recommender, asked: Sequence[Question]) -> Tensor:
    """Scores ``(histories, items)``, each history by itself."""
    place = {item.identifier: k for k, item in enumerate(recommender.items)}
    scores = torch.empty(len(asked), len(place))
    for row, (history, user) in zip(scores, asked, strict=True):
        for one in recommender.recommend(history, len(place), user=user):
            row[place[one.item]] = one.score
    return scores


def theirs(form: str, folder: Path, asked: Sequence[Question]) -> Tensor:
    """The same from the exported folder, in a process of its own."""
    bare = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, str(OPENER), f"{form}={folder}"],
        input=json.dumps(asked), capture_output=True, text=True, check=False,
        env={**bare, "HF_MODULES_CACHE": str(folder.parent / "modules")},
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{form} could not be opened: {done.stderr.strip().splitlines()[-1]}")
    return torch.tensor(json.loads(done.stdout)["scores"][0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--histories", type=int, default=200)
    arguments = parser.parse_args()
    recommender = load(arguments.model, device="cpu")
    asked = questions(recommender, arguments.histories)
    wanted = ours(recommender, asked)
    print(f"{len(asked)} histories, {wanted.shape[1]} items, scores from {wanted.min():.2f} to {wanted.max():.2f}")
    print("form   largest difference  histories with the same top 10 in the same order      MiB")
    for form in FORMS:
        with tempfile.TemporaryDirectory() as place:
            options = ExportOptions(top=wanted.shape[1]) if "top" in FORMATS[form].supported_options else None
            folder = export(recommender, form, Path(place) / form, options)
            found = theirs(form, folder, asked)
            mib = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20
        same = (found.topk(TOP).indices == wanted.topk(TOP).indices).all(1).sum()
        apart = float((found - wanted).abs().max())
        print(f"{form:<6} {apart:18.1e} {int(same):>50} / {len(asked)} {mib:8.1f}", flush=True)


if __name__ == "__main__":
    main()
