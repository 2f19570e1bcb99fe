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


def is_path(name: str) -> bool:
    """Whether a name is a path, rather than that of something shipped or stored: with a folder, YAML's ending, or a file."""
    return Path(name).name != name or is_yaml(name) or _is_file(name)


def is_yaml(name: str) -> bool:
    """Whether a name has the ending of a YAML file."""
    return Path(name).suffix in (".yaml", ".yml")


def find_shipped(name: str, folder: str) -> Path | None:
    """The YAML file of ``name``: a path, or the case-insensitive name of a shipped one, which may begin with its folder."""
    if _is_file(name):
        return Path(name)
    if Path(name).parent not in (Path(), Path(folder)):
        return None
    found = shipped(folder) / (Path(name).name if is_yaml(name) else f"{name.lower()}.yaml")
    return found if _is_file(found) else None


def _is_file(path: str | Path) -> bool:
    return os.path.isfile(path)  # unlike `Path.is_file`, raises no exception for invalid names
