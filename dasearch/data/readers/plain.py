"""The plain format: a table of interactions and one line of JSON per item."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from dasearch.data.raw import Raw
from dasearch.data.readers.base import Entry, Row, by_tab, catalogued, collect, find, lines, named_cells, require
from dasearch.data.readers.values import identifier_of
from dasearch.data.rules import Rules
from dasearch.errors import DataError

INTERACTIONS, ITEMS = "interactions.tsv", "items.jsonl"
COLUMNS = ("user_id", "item_id", "timestamp")
RATING = "rating"  # an optional column
FILES = f"{INTERACTIONS} with a first line {' '.join(COLUMNS)} (and rating), tab-separated, and {ITEMS}"
ORIGIN = "your own, or what `dasearch data convert` writes"


def detects(source: Path) -> bool:
    """Whether the source holds one of the format's two files."""
    return any(find(source, name) for name in (INTERACTIONS, ITEMS))


def read(source: Path, rules: Rules) -> Raw:
    """Items that the item file lacks count as items without a title."""
    catalogue = require(source, ITEMS, (FILES, ORIGIN))
    path = require(source, INTERACTIONS, (FILES, ORIGIN))
    return collect(source.resolve().name, catalogued(catalogue, _items(catalogue)), path, _rows(path))


def read_folder(folder: Path) -> Raw:
    """Everything a plain folder holds, before ties are resolved and filters applied."""
    return read(folder, Rules())


def _rows(path: Path) -> Iterator[Row]:
    for number, cells in named_cells(path, by_tab, COLUMNS, optional=[RATING]):
        user, item, timestamp, rating = cast("list[str]", cells)
        yield number, user, item, timestamp, rating or None


def _items(path: Path) -> Iterator[Entry]:
    for number, line in lines(path):
        try:
            record = json.loads(line)
            identifier, attributes = identifier_of(record["item_id"]), record["attributes"]
        except (ValueError, KeyError, TypeError, RecursionError):
            identifier, attributes = "", None
        if not isinstance(attributes, dict):
            raise DataError(
                f'{path}, line {number}: not an item; write {{"item_id": "...", "attributes": {{"title": "..."}}}}'
            )
        yield number, identifier, attributes
