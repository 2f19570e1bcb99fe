"""Fits tables and progress lines to the width of a terminal: numbers are never truncated, lines never wrap.

Where there is no room, a layout is abbreviated first, then a label, then optional parts are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import zip_longest

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from dasearch.layout import Layout
from dasearch.short_layout import ELLIPSIS, ID_DIGITS, WIDTH, short_text

LABEL = len("winner = all-parallel, seed 0")  # of a label's column
UNBOUNDED = 10_000  # characters: more than any table has
GAP = "  "  # between the parts of a line
COLUMN = 3  # padding of a table's column in characters
LAYOUT = "layout"  # heading of the column that holds layouts
ENDING = re.compile(r", seed \d+$")  # suffix of a label that is kept


class TitledTable(Table):
    """A table whose title uses the whole line, not only the width of its columns."""

    def __init__(self, title: str) -> None:
        super().__init__(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
        self.heading = title

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.heading:
            whole = options.update(width=console.width, no_wrap=False, overflow="fold")
            yield from console.render(Text(self.heading, style="bold"), whole)
        yield from super().__rich_console__(console, options)


def plain_table(title: str) -> Table:
    """A minimal table with a title."""
    return TitledTable(title)


def fitting(cells: Mapping[str, Sequence[str]], width: int, dropped_first: Sequence[str]) -> list[str]:
    """The headings whose columns fit; as many of ``dropped_first`` are dropped as necessary."""
    kept = list(cells)
    for heading in dropped_first:
        if width_of(cells, kept) > width and heading in kept:
            kept.remove(heading)
    return kept


def table_of(title: str, cells: Mapping[str, Sequence[str]], styles: Sequence[str | None] = ()) -> Table:
    """A table of columns by heading, without wrapping; ``styles`` are those of its rows."""
    table = plain_table(title)
    for heading in cells:
        table.add_column(heading, no_wrap=True)
    for row, style in zip_longest(zip(*cells.values(), strict=True), styles):
        table.add_row(*row, style=style)
    return table


def show_table(console: Console, table: Table) -> None:
    """Print a table at its natural width: lines may be longer than the console's, and no cell is truncated."""
    whole = table.__rich_measure__(console, console.options.update(max_width=UNBOUNDED)).maximum
    if whole > console.width:
        table.width = whole
    console.print(table, crop=False)


def width_of(cells: Mapping[str, Sequence[str]], headings: Sequence[str]) -> int:
    """Width of a table's line with these columns, in characters."""
    lines = {heading: [*heading.splitlines(), *cells[heading]] for heading in headings}
    return sum(COLUMN + max(map(len, column)) for column in lines.values())


def fitted(
    cells: Mapping[str, Sequence[str]],
    layouts: Sequence[Layout | str | None],
    width: int | None,
    dropped_first: Sequence[str],
) -> dict[str, list[str]]:
    """The columns of a table that fit, with layouts abbreviated to the available width.

    Args:
        cells: by heading; those under `LAYOUT` are written here.
        layouts: a layout, or its text, per row; None: the row has none.
        width: of a line in characters; None: unlimited, with layouts in full.
        dropped_first: headings that are dropped where even layout ids do not fit.
    """
    if width is None:
        return {**{heading: list(column) for heading, column in cells.items()}, LAYOUT: _texts(layouts, None)}
    named = {**cells, LAYOUT: _texts(layouts, ID_DIGITS)}
    kept = fitting(named, width, dropped_first)
    room = width - width_of(named, [heading for heading in kept if heading != LAYOUT]) - COLUMN
    written = {**cells, LAYOUT: _texts(layouts, room)}
    return {heading: list(written[heading]) for heading in kept}


def _texts(layouts: Sequence[Layout | str | None], width: int | None) -> list[str]:
    return ["" if layout is None else _text(layout, width) for layout in layouts]


def _text(layout: Layout | str, width: int | None) -> str:
    """The width of layouts: in full where there is room; else no wider than layouts are elsewhere."""
    if width is None or len(str(layout)) <= width:
        return str(layout)
    return short_text(layout, min(width, WIDTH))


def progress_line(
    head: str, layout: Layout, label: str, tail: Sequence[str], *, width: int | None, spare: Sequence[str] = ()
) -> str:
    """One line: ``12/30  3f9a2c SSS*12 2:PSS  random, seed 2  MRR 0.0500  left 1:02:05``.

    Args:
        head: always shown.
        layout: abbreviated first.
        label: abbreviated next.
        tail: always shown, except ``spare``.
        width: in characters; None: unlimited.
        spare: parts of ``tail`` that are dropped, in this order, where even a layout's id and the label do not fit.
    """
    if width is None:
        return _joined(head, _padded(layout, WIDTH), label.ljust(LABEL) if label else "", *tail)
    least, tail = short_text(layout, ID_DIGITS), list(tail)
    for part in spare:
        if part in tail and _room(head, tail, width) < len(_joined(least, label)):
            tail.remove(part)
    room = _room(head, tail, width)
    label = _label_in(room, layout, label)
    return _joined(head, _padded(layout, room - len(GAP + label) * bool(label)), label, *tail)


def _joined(*parts: str) -> str:
    return GAP.join(part for part in parts if part)


def _label_in(room: int, layout: Layout, label: str) -> str:
    """The label's width: the usual one where the layout fits too; else what the layout's id leaves."""
    if label and len(_joined(_padded(layout, room), label.ljust(LABEL))) <= room:
        return label.ljust(LABEL)
    return shortened(label, max(0, room - len(short_text(layout, ID_DIGITS)) - len(GAP)))


def _room(head: str, tail: Sequence[str], width: int) -> int:
    """The width between both bounds."""
    return width - len(GAP.join((head, *tail))) - len(GAP)


def _padded(layout: Layout, room: int) -> str:
    """An abbreviated layout, padded to the width of the others."""
    text = _text(layout, room)
    return text if text == str(layout) else text.ljust(min(room, WIDTH))


def shortened(label: str, width: int) -> str:
    """``group: name, seed 3`` shortened: without the group, then as many words as fit, with an ellipsis; numbers stay whole."""
    if len(label) <= width:
        return label
    label = label.rpartition(": ")[2]
    if len(label) <= width:
        return label
    ending = match[0] if (match := ENDING.search(label)) else ""
    words = label.removesuffix(ending).split(" ")
    for kept in range(len(words), -1, -1):
        text = " ".join([*words[:kept], ELLIPSIS]) + ending
        if len(text) <= width:
            return text
    return ""
