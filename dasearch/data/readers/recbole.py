"""RecBole's atomic files: tab-separated, a type after each column's name (Zhao et al., CIKM 2021)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

from dasearch.data.dataset import TITLE
from dasearch.data.raw import Raw
from dasearch.data.readers.base import (
    Entry,
    Row,
    by_tab,
    catalogued,
    collect,
    lines,
    named_cells,
    names_in,
    only_name,
    require,
)
from dasearch.data.rules import Rules

EVENTS, ITEMS = ".inter", ".item"
SPLITS = (".train", ".valid", ".test")  # files of UniSRec, which have the same suffix
USER, ITEM, TIME, RATING = "user_id", "item_id", "timestamp", "rating"
FILES = "NAME.inter (user_id:token, item_id:token, timestamp:float) and NAME.item (item_id:token, title:token_seq, ...)"
ORIGIN = "RecSysDatasets of RecBole, atomic files"
KNOWN_AS = {"movie_title": TITLE, "name": TITLE, "class": "category", "genre": "category", "categories": "category"}
TEXT_TYPES = ("token", "token_seq")


def detects(source: Path) -> bool:
    """Whether the source holds RecBole's atomic files."""
    return bool(_names(source))


def _names(source: Path) -> list[str]:
    stems = [name.removesuffix(EVENTS) for name in names_in(source) if name.endswith(EVENTS)]
    return [stem for stem in stems if not stem.endswith(SPLITS)]


def read(source: Path, rules: Rules) -> Raw:
    """Token columns of the item file are attributes under their own names, except those in `KNOWN_AS`."""
    name = only_name(source, _names(source))
    path = require(source, name + EVENTS, (FILES, ORIGIN))
    catalogue = require(source, name + ITEMS, (FILES, ORIGIN))
    return collect(name, catalogued(catalogue, _items(catalogue)), path, _rows(path))


def _rows(path: Path) -> Iterator[Row]:
    for number, cells in named_cells(path, by_tab, (USER, ITEM, TIME), optional=[RATING]):
        user, item, timestamp, rating = cast("list[str]", cells)
        yield number, user, item, timestamp, rating or None


def _items(path: Path) -> Iterator[Entry]:
    header = next(lines(path), (1, ""))[1]
    typed = [cell.partition(":")[::2] for cell in header.split("\t")]
    kept = [name for name, kind in typed if kind in TEXT_TYPES and name != ITEM]
    for number, cells in named_cells(path, by_tab, (ITEM, *kept)):
        identifier, *values = cast("list[str]", cells)
        yield number, identifier, {KNOWN_AS.get(key, key): value for key, value in zip(kept, values, strict=True)}
