"""What readers share: numbered lines of plain and gzip files, cells, records, and events numbered as they are read."""

from __future__ import annotations

import ast
import csv
import gzip
import json
import sys
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn, Protocol

import numpy as np

from dasearch.data.dataset import TITLE, Item
from dasearch.data.events import Events
from dasearch.data.raw import Raw
from dasearch.data.rules import Rules
from dasearch.errors import DataError, first_line

UTF8 = "utf-8-sig"  # with or without the mark that spreadsheets put first
NO_ATTRIBUTES: dict[str, str] = {}  # shared by all items that only interactions know
UNRATED = float("nan")
Row = tuple[int, str, str, str, Any]  # line, user, item, timestamp, rating (None: unrated)


class Reader(Protocol):
    """A public form of data; each is a module of this package.

    ``FILES`` says what a folder of this form holds, ``ORIGIN`` whose such files are. ``detects``
    looks at names of files alone. ``read`` raises `DataError`, naming file and line.
    """

    FILES: str
    ORIGIN: str

    def detects(self, source: Path) -> bool: ...
    def read(self, source: Path, rules: Rules) -> Raw: ...


# --- files --------------------------------------------------------------------------------------------------------


def find(folder: Path, name: str) -> Path | None:
    """``name`` or ``name.gz`` in a folder."""
    candidates = (folder / name, folder / f"{name}.gz")
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def require(folder: Path, name: str, reader: tuple[str, str]) -> Path:
    """The same; ``reader`` is the ``(FILES, ORIGIN)`` of the form that wants it.

    Raises:
        DataError: if neither is there.
    """
    return find(folder, name) or lacking(folder, name, reader)


def lacking(folder: Path, name: str, reader: tuple[str, str]) -> NoReturn:
    """Raise the error of a file that a form wants."""
    files, origin = reader
    raise DataError(f"{folder} lacks {name} (or {name}.gz); this form holds {files} (from: {origin})")


def bare_name(path: Path) -> str:
    """A file's name without the gzip suffix."""
    return path.name.removesuffix(".gz")


def names_in(source: Path) -> list[str]:
    """The names of a folder's files, sorted, without gzip suffixes."""
    return sorted(bare_name(path) for path in source.iterdir() if path.is_file()) if source.is_dir() else []


def only_name(source: Path, names: Sequence[str]) -> str:
    """The one data set of a folder; ``NAME`` where there is none, for the message of what is lacking.

    Raises:
        DataError: if there are several.
    """
    if len(names) > 1:
        raise DataError(f"{source} holds several data sets ({', '.join(names)}); give each its own folder")
    return names[0] if names else "NAME"


def open_text(path: Path, encoding: str = UTF8) -> IO[str]:
    return gzip.open(path, "rt", encoding=encoding) if path.suffix == ".gz" else path.open(encoding=encoding)


def lines(path: Path, encoding: str = UTF8) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank."""
    number = 0
    try:
        with open_text(path, encoding) as file:
            for number, line in enumerate(file, start=1):
                if not line.isspace():
                    yield number, line.rstrip("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}, after line {number}: cannot be read ({first_line(error)}); save it as UTF-8, plain or gzip"
        ) from None


# --- cells and records --------------------------------------------------------------------------------------------

Split = Callable[[str], list[str]]


def by_tab(line: str) -> list[str]:
    return line.split("\t")


def by_comma(line: str) -> list[str]:
    """Cells of a CSV line, quoted ones among them."""
    return next(csv.reader([line])) if '"' in line else line.split(",")


def cells(path: Path, split: Split, width: int, encoding: str = UTF8) -> Iterator[tuple[int, list[str]]]:
    """Numbered lines of a file without a header, each of ``width`` cells."""
    for number, line in lines(path, encoding):
        found = split(line)
        if len(found) != width:
            raise DataError(
                f"{path}, line {number}: {len(found)} columns where this form has {width}; restore the line"
            )
        yield number, found


def header_of(path: Path, split: Split) -> list[str]:
    """Column names of the first line; RecBole writes a type after each, with a colon."""
    first = next(lines(path), (1, ""))[1]
    return [name.partition(":")[0] for name in split(first)]


def named_cells(
    path: Path, split: Split, columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[int, list[str | None]]]:
    """Of each line the cells under ``columns`` and then ``optional``, None where the file has no such column."""
    header = header_of(path, split)
    absent = [column for column in columns if column not in header]
    if absent:
        raise DataError(f"{path}, line 1: no column {absent[0]!r}; the first line names {', '.join(columns)}")
    places = [header.index(column) if column in header else None for column in (*columns, *optional)]
    body = lines(path)
    next(body)
    for number, line in body:
        found = split(line)
        if len(found) != len(header):
            raise DataError(
                f"{path}, line {number}: {len(found)} columns where the first line has {len(header)}; restore the line"
            )
        yield number, [None if place is None else found[place] for place in places]


def records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered JSON objects, one a line; those of old Amazon files are literals of Python."""
    for number, line in lines(path):
        try:
            found = _record(line)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            found = None
        if not isinstance(found, dict):
            raise DataError(f"{path}, line {number}: not a JSON record; the file may be cut short, so fetch it again")
        yield number, found


def _record(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return ast.literal_eval(line)


def whole(text: str) -> int:
    """An integer, ``1.5e9`` and ``978300760.0`` among them.

    Raises:
        ValueError, OverflowError: for anything else.
    """
    try:
        return int(text)
    except ValueError:
        number = int(float(text))
        if number != float(text):
            raise
        return number


# --- items and events ---------------------------------------------------------------------------------------------


def make_item(identifier: str, attributes: Mapping[str, object]) -> Item:
    """An item with its filled attributes, the title first."""
    texts = {sys.intern(str(key)): _text(value) for key, value in attributes.items() if value is not None}
    filled = {key: text for key, text in texts.items() if text}
    return Item(identifier, {key: filled[key] for key in sorted(filled, key=lambda key: key != TITLE)})


def _text(value: object) -> str:
    return writable(str(value).strip())


def writable(text: str) -> str:
    """Text that UTF-8 has bytes for; JSON may hold half a surrogate pair."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def first_of_each(items: Iterable[Item]) -> list[Item]:
    """Items whose identifier was not there before."""
    found: dict[str, Item] = {}
    for item in items:
        found.setdefault(item.identifier, item)
    return list(found.values())


def collect(name: str, catalogue: Path, items: list[Item], path: Path, rows: Iterable[Row]) -> Raw:
    """Number users and items as the rows of ``path`` come by; machine integers are all that is kept of a row.

    Items that ``items`` lacks follow it, without attributes.

    Raises:
        DataError: for a timestamp that is no int64, or a rating that is no number.
    """
    users: dict[str, int] = {}
    numbers = {item.identifier: number for number, item in enumerate(items)}
    user_column, item_column, times, ratings = array("q"), array("q"), array("q"), array("f")
    for line, user, item, timestamp, rating in rows:
        try:
            times.append(whole(timestamp))
            ratings.append(UNRATED if rating is None else float(rating))
        except (TypeError, ValueError, OverflowError):
            _refuse(path, line, timestamp, rating)
        user_column.append(users.setdefault(user, len(users)))
        item_column.append(numbers.setdefault(item, len(numbers)))
    unknown = [Item(identifier, NO_ATTRIBUTES) for identifier in list(numbers)[len(items) :]]
    columns = (np.frombuffer(column, dtype=np.int64) for column in (user_column, item_column, times))
    stars = np.frombuffer(ratings, dtype=np.float32)
    return Raw(
        name, str(catalogue), list(users), items + unknown, Events(*columns), None if np.isnan(stars).all() else stars
    )


def _refuse(path: Path, line: int, timestamp: str, rating: object) -> NoReturn:
    try:
        array("q", [whole(timestamp)])
    except (ValueError, OverflowError):
        problem = f"timestamp {timestamp!r} is not a number of whole seconds or a position; write an integer"
    else:
        problem = f"rating {rating!r} is not a number; write one, or leave the column out"
    raise DataError(f"{path}, line {line}: {problem}") from None
