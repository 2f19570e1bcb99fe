"""Shell completion: candidates that match the typed prefix.

Reads only names of files and folders, and imports nothing slow.
"""

from __future__ import annotations

from pathlib import Path

import typer

from dasearch.commands import OUTPUT
from dasearch.shipped import is_yaml, shipped_names

LAYOUTS = ("all-parallel", "all-serial", "best")


def any_study(context: typer.Context, incomplete: str) -> list[str]:
    """Stored studies, shipped ones, and study files."""
    return sorted({*_stored(context), *shipped_names("studies"), *_files(incomplete)})


def stored_study(context: typer.Context, incomplete: str) -> list[str]:
    """Stored studies: each has a folder in the output folder."""
    return sorted({*_stored(context), *_files(incomplete)})


def trained_model(context: typer.Context) -> list[str]:
    """Studies that have a trained model."""
    output = _output(context)
    return sorted(name for name in _stored(context) if (output / name / "model" / "config.json").is_file())


def layout() -> list[str]:
    """Named layouts."""
    return list(LAYOUTS)


def _output(context: typer.Context) -> Path:
    return Path(context.params.get("output") or OUTPUT).expanduser()


def _stored(context: typer.Context) -> list[str]:
    output = _output(context)
    return [path.name for path in output.iterdir() if path.is_dir()] if output.is_dir() else []


def _files(incomplete: str) -> list[str]:
    """Study files and folders next to the typed path; none for an empty one."""
    folder = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
    if not incomplete or not folder.is_dir():
        return []
    folders = [f"{path}/" for path in folder.iterdir() if path.is_dir()]
    return [*folders, *(str(path) for path in folder.iterdir() if is_yaml(path.name))]
