"""The numbers of a figure as a table, for accessibility and for reading values."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import plotly.graph_objects as go

from dasearch.report.document import Table

Row = dict[str, str]


def numbers(figure: go.Figure, caption: str) -> Table:
    """One row per point, or per row of a heat map; decorations are omitted."""
    rows = [
        row for trace in figure.data if trace.hoverinfo != "skip" for row in _READ[trace.type](trace, figure.layout)
    ]
    headings = tuple(dict.fromkeys(heading for row in rows for heading in row))
    return Table(caption, headings, tuple(tuple(row.get(heading, "") for heading in headings) for row in rows))


def _points(trace: Any, layout: Any) -> Iterator[Row]:
    """Rows of a scatter trace: series, point label, x and y with their errors."""
    axes = {at: _axis(trace, layout, at) for at in ("x", "y")}
    named = {heading for heading, _ in axes.values()}
    for index, (x, y) in enumerate(zip(trace.x, trace.y, strict=True)):
        if x is None or y is None:
            continue
        row = {"series": _plain(trace.name)} if trace.name else {}
        row |= {"point": _plain(trace.text[index])} if _listed(trace.text) else {}
        for at, value in (("x", x), ("y", y)):
            heading, error = axes[at]
            row[heading] = _shown(value)
            if error.arrayminus is not None:
                row |= {"up to": _shown(value + error.array[index]), "down to": _shown(value - error.arrayminus[index])}
            elif error.array is not None:
                row["±" if "±" not in named else f"± {heading}"] = _shown(error.array[index])
        yield row


def _axis(trace: Any, layout: Any, at: str) -> tuple[str, Any]:
    """An axis's title, or its letter, and the errors along it."""
    axis = layout[(getattr(trace, f"{at}axis") or at).replace(at, f"{at}axis", 1)]
    return _plain(axis.title.text or at), getattr(trace, f"error_{at}")


def _cells(trace: Any, layout: Any) -> Iterator[Row]:
    """Rows and columns of a heat map."""
    shown = trace.text if trace.text is not None else trace.z
    for label, values in zip(trace.y, shown, strict=True):
        yield {"": _plain(label)} | {_plain(x): _shown(value) for x, value in zip(trace.x, values, strict=True)}


def _bars(trace: Any, layout: Any) -> Iterator[Row]:
    """Rows of a timeline: start, seconds, and label."""
    for start, length, lane, story in zip(trace.base, trace.x, trace.y, trace.hovertext, strict=True):
        yield {
            "what": _plain(story),
            "series": _plain(trace.name),
            "lane": _shown(lane),
            "start": str(start),
            "seconds": f"{length / 1000:.1f}",
        }


_READ: Mapping[str, Callable[[Any, Any], Iterator[Row]]] = {"scatter": _points, "heatmap": _cells, "bar": _bars}


def _listed(text: Any) -> bool:
    return text is not None and not isinstance(text, str)


def _plain(text: Any) -> str:
    """Plotly's markup as plain text."""
    return html.unescape(str(text).replace("<br>", ", "))


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else _plain(value)
