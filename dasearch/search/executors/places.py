"""Names of the objects that driver and workers share, in a study's output and in an exchange."""

from __future__ import annotations

from pathlib import Path

BUNDLES = "prepared"  # the folder of bundles in a study's output


def bundle_object(sha256: str) -> str:
    """A bundle's name in an exchange."""
    return f"{BUNDLES}/{sha256}.tar"


def checkpoint_object(checkpoint: Path) -> str:
    """A checkpoint's name in an exchange, from its local path."""
    return f"{checkpoint.parent.name}/{checkpoint.name}"
