"""The search spaces and studies shipped with dasearch."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path


def shipped(folder: str) -> Path:
    """The folder of shipped search spaces or studies: next to the package in a checkout, inside it in a wheel."""
    package = Path(str(resources.files("dasearch")))
    inside = package / "_shipped" / folder
    return inside if inside.is_dir() else package.parent / folder


def shipped_names(folder: str) -> list[str]:
    """The names of shipped files, as commands accept them."""
    return sorted(path.stem for path in shipped(folder).glob("*.yaml"))


def find_shipped(name: str, folder: str) -> Path | None:
    """The YAML file of ``name``: a path, or the case-insensitive name of a shipped one."""
    path = Path(name)
    if os.path.isfile(path):  # unlike `Path.is_file`, raises no exception for invalid names
        return path
    inside = shipped(folder)
    for candidate in (inside / f"{name.lower()}.yaml", inside.parent / name, inside / path.name):
        if os.path.isfile(candidate) and (path.parent in (Path(), Path(folder))):
            return candidate
    return None
