"""What has to stand in one line of a terminal: tables whose numbers are whole, and lines of progress that do not wrap.

What there is no room for goes in this order: a layout is written in short, then a label, then what can be left out.
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

LABEL = 22  # letters of a label's column
UNBOUNDED = 10_000  # letters: more than a table has
GAP = "  "  # between the parts of a line
COLUMN = 3  # letters that a table's column takes beside its cells
LAYOUT = "layout"  # heading of the column that holds layouts
ENDING = re.compile(r", seed \d+$")  # of a label, which stays


class TitledTable(Table):
    """A table whose title has the whole line, not only the width of its columns."""

    def __init__(self, title: str) -> None:
        super().__init__(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
        self.heading = title

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.heading:
            whole = options.update(width=console.width, no_wrap=False, overflow="fold")
            yield from console.render(Text(self.heading, style="bold"), whole)
        yield from super().__rich_console__(console, options)


def plain_table(title: str) -> Table:
    """A table with a title and little else."""
    return TitledTable(title)


def fitting(cells: Mapping[str, Sequence[str]], width: int, dropped_first: Sequence[str]) -> list[str]:
    """The headings whose columns fit beside each other; as many of ``dropped_first`` are left out as need be."""
    kept = list(cells)
    for heading in dropped_first:
        if width_of(cells, kept) > width and heading in kept:
            kept.remove(heading)
    return kept


def table_of(title: str, cells: Mapping[str, Sequence[str]], styles: Sequence[str | None] = ()) -> Table:
    """A table of columns by their headings, none of them wrapped; ``styles`` of its rows."""
    table = plain_table(title)
    for heading in cells:
        table.add_column(heading, no_wrap=True)
    for row, style in zip_longest(zip(*cells.values(), strict=True), styles):
        table.add_row(*row, style=style)
    return table


def show_table(console: Console, table: Table) -> None:
    """Print a table as wide as it is: where it was not fitted, its lines are longer than the console's, and no cell is cut."""
    whole = table.__rich_measure__(console, console.options.update(max_width=UNBOUNDED)).maximum
    if whole > console.width:
        table.width = whole
    console.print(table, crop=False)


def width_of(cells: Mapping[str, Sequence[str]], headings: Sequence[str]) -> int:
    """Letters of a table's line with these columns beside each other."""
    lines = {heading: [*heading.splitlines(), *cells[heading]] for heading in headings}
    return sum(COLUMN + max(map(len, column)) for column in lines.values())


def fitted(
    cells: Mapping[str, Sequence[str]],
    layouts: Sequence[Layout | str | None],
    width: int | None,
    dropped_first: Sequence[str],
) -> dict[str, list[str]]:
    """The columns of a table that fit beside each other, its layouts as far as there is room for them.

    Args:
        cells: by heading; those under `LAYOUT` are written here.
        layouts: a layout, or its text, a row; None: the row has none.
        width: letters of a line; None: as many as the table needs, and layouts in full.
        dropped_first: headings that are left out where layouts' ids alone take too much.
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
    """In full where there is room for it; else no wider than layouts are elsewhere."""
    if width is None or len(str(layout)) <= width:
        return str(layout)
    return short_text(layout, min(width, WIDTH))


def progress_line(
    head: str, layout: Layout, label: str, tail: Sequence[str], *, width: int | None, spare: Sequence[str] = ()
) -> str:
    """One line: ``12/30  3f9a2c SSS*12 2:PSS  random, seed 2  MRR 0.0500  left 1:02:05``.

    Args:
        head: stays, as ``tail`` does.
        width: letters; None: where no terminal wraps it.
        spare: parts of ``tail`` that are left out, in this order, where even a layout's id and the label have no room.
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
    """As wide as others where the layout has its room beside it; else as much as its id leaves."""
    if label and len(_joined(_padded(layout, room), label.ljust(LABEL))) <= room:
        return label.ljust(LABEL)
    return shortened(label, max(0, room - len(short_text(layout, ID_DIGITS)) - len(GAP)))


def _room(head: str, tail: Sequence[str], width: int) -> int:
    """Letters between both."""
    return width - len(GAP.join((head, *tail))) - len(GAP)


def _padded(layout: Layout, room: int) -> str:
    """A layout in short as wide as the others beside it, which may be longer."""
    text = _text(layout, room)
    return text if text == str(layout) else text.ljust(min(room, WIDTH))


def shortened(label: str, width: int) -> str:
    """What fits of ``group: name, seed 3``: without the group, then as many words as fit, with an ellipsis; no number is cut."""
    if len(label) <= width:
        return label
    label = label.rpartition(": ")[2]
    if len(label) <= width:
        return label
    ending = found[0] if (found := ENDING.search(label)) else ""
    words = label.removesuffix(ending).split(" ")
    for kept in range(len(words), -1, -1):
        text = " ".join([*words[:kept], ELLIPSIS]) + ending
        if len(text) <= width:
            return text
    return ""
