"""The search spaces and studies that come with dasearch."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path


def shipped(folder: str) -> Path:
    """The folder of shipped search spaces or studies: in a checkout beside the package, in a wheel inside it."""
    package = Path(str(resources.files("dasearch")))
    inside = package / "_shipped" / folder
    return inside if inside.is_dir() else package.parent / folder


def shipped_names(folder: str) -> list[str]:
    """What is in such a folder, by the names that commands take."""
    return sorted(path.stem for path in shipped(folder).glob("*.yaml"))


def find_shipped(name: str, folder: str) -> Path | None:
    """The YAML file that ``name`` means: a path, or the bare name of a shipped one, in small letters or not."""
    path = Path(name)
    if os.path.isfile(path):  # unlike `Path.is_file` without an exception for a name that no file can have
        return path
    inside = shipped(folder)
    for candidate in (inside / f"{name.lower()}.yaml", inside.parent / name, inside / path.name):
        if os.path.isfile(candidate) and (path.parent in (Path(), Path(folder))):
            return candidate
    return None
