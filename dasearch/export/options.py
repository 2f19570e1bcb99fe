"""Options of an export besides its format."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export; a format that does not support one rejects it.

    Args:
        sites: the sites to include, where a format does not support all; None: all.
        top: k of a graph that recommends; None: `graph.TOP`, or all items where there are fewer.
    """

    sites: tuple[str, ...] | None = None
    top: int | None = None
