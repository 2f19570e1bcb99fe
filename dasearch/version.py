"""The version of dasearch, known without an installation's metadata: as of a source tree on PYTHONPATH, or frozen."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

__version__ = "0.1.0"
OWN = "dasearch"


def installed_version(distribution: str) -> str | None:
    """Of dasearch this tree's own; of another distribution what its metadata says, None where there is none."""
    if distribution == OWN:
        return __version__
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def installed_versions(distributions: Iterable[str]) -> dict[str, str]:
    """Those that are known."""
    found = {name: installed_version(name) for name in distributions}
    return {name: each for name, each in found.items() if each is not None}
