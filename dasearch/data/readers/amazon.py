"""Shared by the Amazon releases of 2018 and 2023: matching files, and cleaning of texts."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dasearch.data.readers.base import bare_name, find, lacking, records
from dasearch.data.readers.values import identifier_of, text_of
from dasearch.errors import DataError, first_line

METADATA = "meta_"
LONGEST = 2000  # characters; public preprocessing (UniSRec) treats longer texts as scraped pages
SCRAPED = re.compile(
    r"getTime|</?(?:span|div|script|style|img|table|br|a)\b", re.IGNORECASE
)  # HTML or JavaScript of a page


def clean(text: str) -> str:
    """A title, brand or category level as one line; empty where it is a fragment of a web page."""
    cleaned = " ".join(html.unescape(text).split())
    return "" if len(cleaned) >= LONGEST or SCRAPED.search(cleaned) else cleaned


def first_filled(*values: object) -> object:
    """The first non-empty field of several; a value that is not text counts, and is rejected where it is read."""
    return next(filter(_says, values), None)


def _says(value: object) -> bool:
    if isinstance(value, list):
        return any(map(_says, value))
    return bool(text_of(value, clean)) if isinstance(value, str | int | float | None) else True


def category_of(path: Path) -> str:
    """``Arts`` of ``Arts_5.json.gz``, ``reviews_Arts.json`` and ``Arts.csv``."""
    stem = bare_name(path).rpartition(".")[0]
    return stem.removeprefix("reviews_").removesuffix("_5")


def metadata_of(reviews: Path, suffix: str) -> Path | None:
    """``meta_Arts.json(.gz)`` beside a file of reviews of Arts."""
    return find(reviews.parent, f"{METADATA}{category_of(reviews)}{suffix}")


def _candidates(source: Path, suffix: str) -> list[Path]:
    """Files whose names match review files."""
    paths = [source] if source.is_file() else sorted(source.iterdir())
    names = ((path, bare_name(path)) for path in paths)
    return [path for path, name in names if name.endswith((suffix, ".csv")) and not name.startswith(METADATA)]


def detects_release(source: Path, suffix: str) -> bool:
    """Whether a folder holds reviews and their metadata."""
    return any(metadata_of(path, suffix) for path in _candidates(source, suffix))


def files_of(source: Path, suffix: str, reader: tuple[str, str]) -> tuple[Path, Path]:
    """Paths of the reviews and metadata of a folder's category, or of the named review file.

    Raises:
        DataError: where one of them is missing, or a folder holds several review files.
    """
    candidates = _candidates(source, suffix)
    if not candidates:
        lacking(source, f"Category_5{suffix}", reader)
    if len(candidates) > 1:
        names = ", ".join(path.name for path in candidates)
        raise DataError(f"{source} holds several files of reviews ({names}); name one of them as data.source")
    reviews = candidates[0]
    metadata = metadata_of(reviews, suffix)
    return reviews, metadata or lacking(reviews.parent, f"{METADATA}{category_of(reviews)}{suffix}", reader)


def fields(path: Path, names: Sequence[str]) -> Iterator[tuple[int, list[str], dict[str, Any]]]:
    """Yield each record with its required fields as text.

    Raises:
        DataError: for a record that lacks one.
    """
    for number, record in records(path):
        values = [record.get(name) for name in names]
        if None in values:
            raise DataError(
                f"{path}, line {number}: no field {names[values.index(None)]!r}; a record here has {', '.join(names)}"
            )
        try:
            texts = [identifier_of(value) for value in values]
        except TypeError as error:
            raise DataError(
                f"{path}, line {number}: {', '.join(names)} hold {first_line(error)}; each is a text or a number"
            ) from None
        yield number, texts, record
