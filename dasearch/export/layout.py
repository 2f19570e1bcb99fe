"""``layout`` and ``trials``: JSON files with their JSON Schemas."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from dasearch.export.options import ExportOptions
from dasearch.export.pick import Picked
from dasearch.layout_file import LAYOUT_NAME, LayoutFile
from dasearch.search.prior import TRIALS_NAME, TrialsFile, write_trials
from dasearch.search.store import Store
from dasearch.training.recommender import Recommender
from dasearch.versioned import VersionedFile

SCHEMAS: dict[str, type[VersionedFile]] = {
    "layout": LayoutFile,
    "trials": TrialsFile,
}  # published in dasearch/export/schemas


def schema_name(name: str) -> str:
    """File name of a published schema, as in ``layout-1.0.schema.json``."""
    return f"{name}-{SCHEMAS[name].VERSION}.schema.json"


def published_schema(name: str) -> dict[str, Any]:
    """The published JSON Schema of a file format."""
    text = (files("dasearch.export") / "schemas" / schema_name(name)).read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def schema_text(name: str) -> str:
    """The content of a schema to be published."""
    return json.dumps(SCHEMAS[name].json_schema(), indent=2) + "\n"


def write_layout(recommender: Recommender, folder: Path, options: ExportOptions) -> None:
    """``layout.json`` and ``layout-1.0.schema.json``."""
    write_layout_file(recommender, folder)
    _write_schema("layout", folder)


def write_picked_layout(picked: Picked, folder: Path) -> None:
    """The same for a confirmed layout without a trained model."""
    (folder / LAYOUT_NAME).write_text(picked.layout_file.text(), encoding="utf-8")
    _write_schema("layout", folder)


def write_layout_file(recommender: Recommender, folder: Path) -> None:
    """``layout.json`` alone."""
    (folder / LAYOUT_NAME).write_text(recommender.layout_file.text(), encoding="utf-8")


def write_study_trials(store: Store, name: str, folder: Path) -> None:
    """``trials.json`` and ``trials-1.0.schema.json``."""
    write_trials(store, name, folder / TRIALS_NAME)
    _write_schema("trials", folder)


def _write_schema(name: str, folder: Path) -> None:
    (folder / schema_name(name)).write_text(schema_text(name), encoding="utf-8")
