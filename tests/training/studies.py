"""A study small enough for a test: toy purchases, one tiny-opt layer pair, seconds in all."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dasearch.config import StudySettings, parse_study
from dasearch.data import LeaveOneOut
from dasearch.layout import Layout
from dasearch.training.loop import train
from dasearch.training.materials import StudyContext
from dasearch.training.preparation import prepare_study
from dasearch.training.recommender import Recommender, load, save_recommender
from tests.conftest import toy_dataset, write_folder

SMALL: dict[str, Any] = {
    "name": "toy",
    "device": "cpu",
    "data": {"source": "toy", "bo_fraction": 0.5, "max_items": 5, "item_tokens": 4, "hard_negative_fraction": 0.2},
    "backbone": {
        "name": "tiny-opt",
        "tiny": {
            "layers": 2,
            "width": 16,
            "heads": 2,
            "ffn": 32,
            "vocabulary": 300,
            "max_tokens": 64,
            "steps": 3,
            "row_tokens": 32,
        },
    },
    "model": {"bottleneck": 4, "cf_width": 8},
    "cf": {"epochs": 2},
    "trial": {"epochs": 2, "batch_size": 16, "lr": 5e-3},
    "final": {"epochs": 2, "batch_size": 16, "lr": 5e-3},
    "comparison": {"seeds": 2, "encoders": ["gru4rec"], "encoder": {"width": 8, "epochs": 1, "history": 6}},
    "search": {"budget": 4, "startup": 3, "candidates": 1, "confirm_seeds": 2},
}


ENCODER: dict[str, Any] = {"name": "sasrec", "width": 8, "epochs": 2, "history": 6, "interests": 2}


def kind_changes(kind: str) -> dict[str, Any]:
    """What makes `SMALL` a study of another model."""
    if kind == "darec":
        return {}
    if kind == "e4s-rec":
        return {"model": {"kind": kind, "bottleneck": 4}, "encoder": ENCODER}
    recipe = {"batch_size": 16}
    return {
        "model": {"kind": kind, "prefix": 3},
        "encoder": ENCODER,
        "examples": {"per_user": 2},
        "trial": recipe,
        "final": recipe,
    }


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``changes`` over ``base``, section by section."""
    found = dict(base)
    for key, value in changes.items():
        found[key] = merged(found.get(key, {}), value) if isinstance(value, dict) else value
    return found


def small_settings(**changes: Any) -> StudySettings:
    """`SMALL` with changes; ``model={"kind": ...}`` makes it a study of another model."""
    kind = changes.get("model", {}).get("kind", "darec")
    base = (
        SMALL
        if kind == "darec"
        else merged({k: v for k, v in SMALL.items() if k not in ("model", "cf")}, kind_changes(kind))
    )
    return parse_study(merged(base, changes))


def small_study(folder: Path, **changes: Any) -> StudySettings:
    """Settings whose data and output are in ``folder``."""
    source = folder / "toy"
    if not source.is_dir():
        write_folder(source, toy_dataset(60, 40))
    return small_settings(**merged({"output": str(folder / "runs"), "data": {"source": str(source)}}, changes))


@lru_cache(maxsize=3)
def recommender(kind: str) -> Recommender:
    """A trained model of 60 users and 40 items, opened from its folder; ``"kind + encoder"``: with an encoder's scores."""
    kind, *added = kind.split(" + ")
    changes = {"encoder_scores": 0.7} if added else {}
    settings = small_settings(model={"kind": kind, **changes}, **({"encoder": ENCODER} if added else {}))
    ready = materials(settings)
    trained = train(settings, ready, Layout.parse("SPS-PPS"), settings.trial)
    with TemporaryDirectory() as folder:
        return load(
            save_recommender(Path(folder) / "model", trained, settings, ready, toy_dataset(60, 40)), device="cpu"
        )


def materials(settings: StudySettings) -> StudyContext:
    """Prepared once per process for equal settings."""
    return _materials(settings.model_dump_json())


@lru_cache(maxsize=32)
def _materials(record: str) -> StudyContext:
    settings = parse_study(json.loads(record))
    dataset = toy_dataset(60, 40)
    return prepare_study(settings, dataset, LeaveOneOut(dataset).development)
