"""Amazon Reviews 2023: Hou et al., arXiv 2403.03952. Variants of a product share a parent, which is the item here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

from dasearch.data.dataset import TITLE
from dasearch.data.raw import Raw
from dasearch.data.readers.amazon import clean, detects_release, fields, files_of, first_filled
from dasearch.data.readers.base import Entry, Row, bare_name, by_comma, catalogued, collect, named_cells
from dasearch.data.rules import Rules

SUFFIX = ".jsonl"
USER, ITEM, TIME, RATING = "user_id", "parent_asin", "timestamp", "rating"
FILES = "Category.jsonl, or Category.csv (0-core or 5-core, with a first line), and meta_Category.jsonl"
ORIGIN = "Amazon Reviews 2023, reviews, metadata and k-core files"


def detects(source: Path) -> bool:
    """Whether the source holds files of this release."""
    return detects_release(source, SUFFIX)


def read(source: Path, rules: Rules) -> Raw:
    """Timestamps stay in milliseconds: whole seconds would create ties."""
    reviews, metadata = files_of(source, SUFFIX, (FILES, ORIGIN))
    rows = _ratings(reviews) if bare_name(reviews).endswith(".csv") else _reviews(reviews)
    return collect(bare_name(reviews).partition(".")[0], catalogued(metadata, _items(metadata), clean), reviews, rows)


def _reviews(path: Path) -> Iterator[Row]:
    for number, (user, item, timestamp), record in fields(path, (USER, ITEM, TIME)):
        yield number, user, item, timestamp, record.get(RATING)


def _ratings(path: Path) -> Iterator[Row]:
    for number, cells in named_cells(path, by_comma, (USER, ITEM, TIME, RATING)):
        user, item, timestamp, rating = cast("list[str]", cells)
        yield number, user, item, timestamp, rating


def _items(path: Path) -> Iterator[Entry]:
    for number, (parent,), record in fields(path, (ITEM,)):
        category = first_filled(record.get("categories"), record.get("main_category"))
        yield number, parent, {TITLE: record.get("title"), "brand": record.get("store"), "category": category}
