"""A worker of `test_bundle`: prepares or trains in a separate process, as a JSON file specifies."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from dasearch.config import StudySettings, parse_study
from dasearch.data import LeaveOneOut
from dasearch.layout import Layout, ModelKind
from dasearch.threads import using
from dasearch.training.bundle import load_bundle, save_bundle
from dasearch.training.checkpoints import save_tensors
from dasearch.training.loop import train
from dasearch.training.materials import StudyContext
from dasearch.training.preparation import prepare_study
from tests.conftest import toy_dataset

PREPARING, TRAINING = 2, 1  # threads


def layout_of(settings: StudySettings) -> Layout:
    """Two layers of serial and parallel adapters."""
    return Layout.parse("SP-PS" if settings.model.kind is ModelKind.E4S_REC else "SPS-PPS")


def prepared(settings: StudySettings) -> StudyContext:
    """On 60 users and 40 items, as another number of threads than trains does it."""
    dataset = toy_dataset(60, 40)
    with using(PREPARING):
        return prepare_study(settings, dataset, LeaveOneOut(dataset).development)


def write_trained(path: Path, settings: StudySettings, materials: StudyContext, **more: Any) -> None:
    """All tensors of a trained model with its epochs' losses and metrics."""
    with using(TRAINING):
        trained = train(settings, materials, layout_of(settings), settings.trial)
    epochs = [[epoch.losses, epoch.metrics] for epoch in trained.progress.epochs]
    save_tensors(path, trained.model.own_tensors(), {"epochs": epochs, **more})


def main(job: Path) -> None:
    for one in json.loads(job.read_text()):
        settings, folder = parse_study(one["settings"]), Path(one["folder"])
        materials = load_bundle(folder, one["bundle"], settings)
        names = {
            "again": save_bundle(materials, folder / "again"),
            "prepared_here": save_bundle(prepared(settings), folder / "here"),
        }
        write_trained(Path(one["trained"]), settings, materials, **names)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
