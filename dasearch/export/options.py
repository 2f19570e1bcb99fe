"""What a user may ask of an export besides its form."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ExportOptions:
    """A form that cannot follow an option refuses it.

    Args:
        sites: the sites to take along, where a form has no place for all; None: all.
        top: k of a graph that recommends; None: `graph.TOP`, or all items where there are fewer.
    """

    sites: tuple[str, ...] | None = None
    top: int | None = None
