"""What the Amazon releases of 2018 and 2023 share: which files belong together, and how a text is cleaned."""

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
LONGEST = 2000  # characters; public preprocessing (UniSRec) takes longer texts for scraped pages
SCRAPED = re.compile(r"getTime|</?(?:span|div|script|style|img|table|br|a)\b", re.IGNORECASE)  # a page's code


def clean(text: str) -> str:
    """A title, brand or level of a category in one line; nothing where it is a piece of a web page."""
    found = " ".join(html.unescape(text).split())
    return "" if len(found) >= LONGEST or SCRAPED.search(found) else found


def first_filled(*values: object) -> object:
    """The first of several fields that says something; one that is no text does, and is refused where it is read."""
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
    """Files that may hold reviews, by their names."""
    paths = [source] if source.is_file() else sorted(source.iterdir())
    names = ((path, bare_name(path)) for path in paths)
    return [path for path, name in names if name.endswith((suffix, ".csv")) and not name.startswith(METADATA)]


def detects_release(source: Path, suffix: str) -> bool:
    """Whether reviews and their metadata stand together."""
    return any(metadata_of(path, suffix) for path in _candidates(source, suffix))


def files_of(source: Path, suffix: str, reader: tuple[str, str]) -> tuple[Path, Path]:
    """Reviews and metadata of the category that a folder holds, or of the review file named.

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
    """Of each record the fields that must be there, as text, and the record.

    Raises:
        DataError: for a record that lacks one.
    """
    for number, record in records(path):
        found = [record.get(name) for name in names]
        if None in found:
            raise DataError(
                f"{path}, line {number}: no field {names[found.index(None)]!r}; a record here has {', '.join(names)}"
            )
        try:
            texts = [identifier_of(value) for value in found]
        except TypeError as error:
            raise DataError(
                f"{path}, line {number}: {', '.join(names)} hold {first_line(error)}; each is a text or a number"
            ) from None
        yield number, texts, record
