"""Abbreviations of deep layouts: a short id, and the shortest of three notations.

A layout of thirty layers is longer than a line of a terminal. Where it does not fit, it is shown as its id and one of

- all groups, as `str` writes them,
- runs of equal layers: ``SSS*9-PPS*3``,
- its most frequent group and the layers, counted from 1, that differ: ``SSS*12 2:PSS 7-9:SSP``,

truncated at a group, with an ellipsis, where even that is too long. The id is enough to name the layout to a command.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from itertools import groupby

from dasearch.errors import LayoutError
from dasearch.layout import SEPARATOR, Layout

ID_DIGITS = 6  # of 300 layouts, two share an id in one study out of 370
LEAST_DIGITS = 4  # more than a layer has sites, so that letters A to F are never read as an id
WIDTH = 32  # characters: fits five layers of DARec in full
WHOLE = 11  # characters of three layers of DARec, which always fit
ELLIPSIS = "…"


def layout_id(layout: Layout | str, digits: int = ID_DIGITS) -> str:
    """The first hexadecimal digits of the SHA-256 of its text: equal on every machine and in every study."""
    return hashlib.sha256(str(layout).encode()).hexdigest()[:digits]


def short_text(layout: Layout | str, width: int = WIDTH) -> str:
    """A layout in at most ``width`` characters: in full where it fits, else ``3f9a2c SSS*12 2:PSS 7:SSP``.

    Args:
        layout: or its text.
        width: in characters; at least that of an id.
    """
    whole = str(layout)
    if len(whole) <= max(width, WHOLE):
        return whole
    name = layout_id(whole)
    parts, separator = min(_written(whole), key=lambda written: len(written[1].join(written[0])))
    return f"{name} {_cut(parts, separator, width - len(name) - 1)}".rstrip()


def _written(whole: str) -> list[tuple[list[str], str]]:
    """The notations of a layout, each as its parts and their separator."""
    groups = whole.split(SEPARATOR)
    return [(_exceptions(groups), " "), (_runs(groups), SEPARATOR), (groups, SEPARATOR)]


def _runs(groups: list[str]) -> list[str]:
    """``SSS*9``, ``PPS``."""
    lengths = ((group, len(list(run))) for group, run in groupby(groups))
    return [group if length == 1 else f"{group}*{length}" for group, length in lengths]


def _exceptions(groups: list[str]) -> list[str]:
    """The most frequent group with the number of all layers, then the layers that differ: ``2:PSS``, ``7-9:SSP``."""
    ((usual, _),) = Counter(groups).most_common(1)
    parts, first = [f"{usual}*{len(groups)}"], 1
    for group, run in groupby(groups):
        after = first + len(list(run))
        if group != usual:
            layers = str(first) if after == first + 1 else f"{first}-{after - 1}"
            parts.append(f"{layers}:{group}")
        first = after
    return parts


def _cut(parts: list[str], separator: str, width: int) -> str:
    """As many parts as fit, with an ellipsis for the others; empty where none fits."""
    if len(text := separator.join(parts)) <= width:
        return text
    for kept in range(len(parts) - 1, 0, -1):
        if len(text := separator.join([*parts[:kept], ELLIPSIS])) <= width:
            return text
    return ""


def is_layout_id(text: str) -> bool:
    """Whether a text is an id or a prefix of one, rather than a layout's letters or name."""
    return re.fullmatch(f"[0-9a-f]{{{LEAST_DIGITS},64}}", text.strip().lower()) is not None


def layout_of_id(text: str, layouts: Iterable[Layout], *, source: str) -> Layout:
    """The one of ``layouts`` with an id; an unambiguous prefix of at least four digits suffices.

    Args:
        text: the id or its prefix.
        layouts: to choose from.
        source: of the layouts, for messages, as in ``study 'quickstart'``.

    Raises:
        LayoutError: where it matches none of them, or several.
    """
    beginning = text.strip().lower()
    matches = {one for one in layouts if layout_id(one, len(beginning)) == beginning}
    if not matches:
        raise LayoutError(
            f"no layout of {source} has the id {text}; see `dasearch status`, or write the layout in full"
        )
    if len(matches) > 1:
        ids = sorted(layout_id(one, len(beginning) + ID_DIGITS) for one in matches)
        raise LayoutError(
            f"the id {text} matches {len(matches)} layouts of {source}: {', '.join(ids)}; give more digits"
        )
    return matches.pop()
