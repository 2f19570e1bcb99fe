"""The version of dasearch, available without package metadata: in a source tree on PYTHONPATH, or in a frozen application."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

__version__ = "0.1.0"
OWN = "dasearch"


def installed_version(distribution: str) -> str | None:
    """The version of dasearch from this tree; of another distribution from its metadata, None where it is not installed."""
    if distribution == OWN:
        return __version__
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def installed_versions(distributions: Iterable[str]) -> dict[str, str]:
    """The versions of the installed distributions, by name."""
    versions = {name: installed_version(name) for name in distributions}
    return {name: each for name, each in versions.items() if each is not None}
