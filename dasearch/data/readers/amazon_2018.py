"""Amazon Review Data (2018): Ni, Li and McAuley, EMNLP 2019. DARec's five data sets are 5-cores of it (sec. 3.1.1)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dasearch.data.dataset import TITLE
from dasearch.data.raw import Raw
from dasearch.data.readers.amazon import clean, detects_release, fields, files_of, first_filled
from dasearch.data.readers.base import (
    Entry,
    Row,
    bare_name,
    by_comma,
    catalogued,
    cells,
    collect,
    names_in,
)
from dasearch.data.rules import Rules

SUFFIX = ".json"
FILES = "Category_5.json, Category.json or Category.csv (ratings only), and meta_Category.json"
ORIGIN = "Amazon Review Data (2018), per-category files and metadata"


def detects(source: Path) -> bool:
    """Whether the source holds files of this release."""
    return detects_release(source, SUFFIX) or any(name.endswith("_5.json") for name in names_in(source))


def read(source: Path, rules: Rules) -> Raw:
    """Items are identified by asin; timestamps have day resolution, in seconds. Of repeated metadata the first line counts."""
    reviews, metadata = files_of(source, SUFFIX, (FILES, ORIGIN))
    rows = _ratings(reviews) if bare_name(reviews).endswith(".csv") else _reviews(reviews)
    return collect(bare_name(reviews).partition(".")[0], catalogued(metadata, _items(metadata), clean), reviews, rows)


def _reviews(path: Path) -> Iterator[Row]:
    for number, (user, item, timestamp), record in fields(path, ("reviewerID", "asin", "unixReviewTime")):
        yield number, user, item, timestamp, record.get("overall")


def _ratings(path: Path) -> Iterator[Row]:
    for number, (item, user, rating, timestamp) in cells(path, by_comma, 4):
        yield number, user, item, timestamp, rating


def _items(path: Path) -> Iterator[Entry]:
    for number, (asin,), record in fields(path, ("asin",)):
        category = first_filled(record.get("category"), record.get("categories"))
        yield number, asin, {TITLE: record.get("title"), "brand": record.get("brand"), "category": category}
