"""Converts any source to the plain format, atomically."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from dasearch.data.raw import Raw
from dasearch.data.readers import read_source
from dasearch.data.readers.plain import COLUMNS, INTERACTIONS, ITEMS, RATING
from dasearch.data.rules import Rules
from dasearch.errors import DataError
from dasearch.folders import require_free, whole_folder

ROWS_AT_ONCE = 100_000


class Converted(NamedTuple):
    """Counts of the users, items and interactions written."""

    users: int
    items: int
    interactions: int


def convert(source: str | Path, rules: Rules, *, out: Path) -> Converted:
    """Write ``interactions.tsv.gz`` and ``items.jsonl.gz``; read by the same rules they give the same data set.

    Everything the source holds is written: ties and filters apply at reading. Items that its catalogue lacks appear in
    the interactions only.

    Raises:
        DataError: if the source cannot be read or ``out`` cannot be written; ``out`` is then unchanged.
    """
    require_free(out, DataError)
    raw = read_source(source, rules)
    with whole_folder(out, DataError) as unfinished:
        _write_interactions(raw, unfinished / f"{INTERACTIONS}.gz")
        _write_items(raw, unfinished / f"{ITEMS}.gz")
    return Converted(len(raw.users), len(raw.items[: raw.known]), len(raw.events.users))


def _write_interactions(raw: Raw, path: Path) -> None:
    _require_plain(raw.users, "user")
    _require_plain([item.identifier for item in raw.items], "item")
    identifiers = [item.identifier for item in raw.items]
    header = COLUMNS if raw.ratings is None else (*COLUMNS, RATING)
    with packed(path) as file:
        file.write("\t".join(header) + "\n")
        for start in range(0, len(raw.events.users), ROWS_AT_ONCE):
            piece = slice(start, start + ROWS_AT_ONCE)
            users = (raw.users[user] for user in raw.events.users[piece].tolist())
            items = (identifiers[item] for item in raw.events.items[piece].tolist())
            times = map(str, raw.events.timestamps[piece].tolist())
            ratings = [] if raw.ratings is None else [_shown(value) for value in raw.ratings[piece].tolist()]
            columns = (users, items, times, ratings) if ratings else (users, items, times)
            file.writelines("\t".join(row) + "\n" for row in zip(*columns, strict=True))


def _shown(rating: float) -> str:
    return "" if rating != rating else f"{rating:g}"


def _write_items(raw: Raw, path: Path) -> None:
    with packed(path) as file:
        for item in raw.items[: raw.known]:
            record = {"item_id": item.identifier, "attributes": dict(item.attributes)}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _require_plain(identifiers: list[str], kind: str) -> None:
    for identifier in identifiers:
        if any(mark in identifier for mark in "\t\n\r"):
            raise DataError(
                f"{kind} {identifier!r} holds a tab or line break, which the plain format cannot hold; rename it"
            )


@contextmanager
def packed(path: Path) -> Iterator[IO[str]]:
    """A gzip text file without a timestamp: equal content gives equal bytes."""
    with (
        gzip.GzipFile(path, "wb", mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as file,
    ):
        yield file
