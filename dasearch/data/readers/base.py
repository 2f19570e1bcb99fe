"""Shared by readers: numbered lines of plain and gzip files, cells, records, and events numbered while reading."""

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
from typing import IO, Any, NamedTuple, NoReturn, Protocol

import numpy as np

from dasearch.data.dataset import TITLE, IntArray, Item
from dasearch.data.events import Events
from dasearch.data.raw import Raw
from dasearch.data.readers.values import Times, text_of, whole_identifiers, writable
from dasearch.data.rules import Rules
from dasearch.errors import DataError, first_line

UTF8 = "utf-8-sig"  # with or without the byte-order mark of spreadsheets
NO_ATTRIBUTES: dict[str, str] = {}  # shared by all items that occur only in interactions
UNRATED = float("nan")
Row = tuple[int, str, str, str, Any]  # line, user, item, timestamp, rating (None: unrated)


class Reader(Protocol):
    """A public data format; each is a module of this package.

    ``FILES`` describes the files of a folder in this format, ``ORIGIN`` who publishes them.
    """

    FILES: str
    ORIGIN: str

    def detects(self, source: Path) -> bool:
        """Whether the file names of a folder, or of a file, match this format."""

    def read(self, source: Path, rules: Rules) -> Raw:
        """Read a source.

        Raises:
            DataError: naming file and line, where something cannot be read.
        """


# --- files --------------------------------------------------------------------------------------------------------


def find(folder: Path, name: str) -> Path | None:
    """``name`` or ``name.gz`` in a folder."""
    candidates = (folder / name, folder / f"{name}.gz")
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def require(folder: Path, name: str, reader: tuple[str, str]) -> Path:
    """The same, required; ``reader`` is the ``(FILES, ORIGIN)`` of the format that needs it.

    Raises:
        DataError: if neither is there.
    """
    return find(folder, name) or lacking(folder, name, reader)


def lacking(folder: Path, name: str, reader: tuple[str, str]) -> NoReturn:
    """Raise the error for a file that a format needs."""
    files, origin = reader
    raise DataError(f"{folder} lacks {name} (or {name}.gz); this format consists of {files} (from: {origin})")


def bare_name(path: Path) -> str:
    """A file's name without the gzip suffix."""
    return path.name.removesuffix(".gz")


def names_in(source: Path) -> list[str]:
    """The names of a folder's files, sorted, without gzip suffixes."""
    return sorted(bare_name(path) for path in source.iterdir() if path.is_file()) if source.is_dir() else []


def only_name(source: Path, names: Sequence[str]) -> str:
    """The name of a folder's one data set; ``NAME`` where there is none, for the message on the missing file.

    Raises:
        DataError: if there are several.
    """
    if len(names) > 1:
        raise DataError(f"{source} holds several data sets ({', '.join(names)}); give each its own folder")
    return names[0] if names else "NAME"


def open_text(path: Path, encoding: str = UTF8) -> IO[str]:
    """Text whose lines end at a line feed only: a carriage return inside a cell is part of it."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding=encoding, newline="\n")
    return path.open(encoding=encoding, newline="\n")


def lines(path: Path, encoding: str = UTF8) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank."""
    number = 0
    try:
        with open_text(path, encoding) as file:
            for number, line in enumerate(file, start=1):
                if not line.isspace():
                    yield number, line.removesuffix("\n").removesuffix("\r")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}, after line {number}: cannot be read ({first_line(error)}); save it as UTF-8, plain or gzip"
        ) from None


# --- cells and records --------------------------------------------------------------------------------------------

Split = Callable[[str], list[str]]


def by_tab(line: str) -> list[str]:
    """The tab-separated cells of a line."""
    return line.split("\t")


def by_comma(line: str) -> list[str]:
    """Cells of a CSV line, quoted ones among them.

    Raises:
        csv.Error: for a quoted cell that does not end, or has text after its closing quote.
    """
    return next(csv.reader([line], strict=True)) if '"' in line else line.split(",")


def _cells_of(path: Path, number: int, line: str, split: Split) -> list[str]:
    try:
        return split(line)
    except csv.Error as error:
        raise DataError(
            f"{path}, line {number}: a quoted cell cannot be read ({first_line(error)}); double the quotes inside it, and "
            "end it in its line"
        ) from None


def cells(path: Path, split: Split, width: int, encoding: str = UTF8) -> Iterator[tuple[int, list[str]]]:
    """Numbered lines of a file without a header, each of ``width`` cells."""
    for number, line in lines(path, encoding):
        values = _cells_of(path, number, line, split)
        if len(values) != width:
            raise DataError(
                f"{path}, line {number}: {len(values)} columns where this format has {width}; restore the line"
            )
        yield number, values


def header_of(path: Path, split: Split) -> list[str]:
    """Column names of the first line; RecBole writes a type after each, with a colon."""
    number, first = next(lines(path), (1, ""))
    return [name.partition(":")[0] for name in _cells_of(path, number, first, split)]


def named_cells(
    path: Path, split: Split, columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[int, list[str | None]]]:
    """Yield each line's cells under ``columns`` and then ``optional``, None where the file has no such column."""
    header = header_of(path, split)
    absent = [column for column in columns if column not in header]
    if absent:
        raise DataError(f"{path}, line 1: no column {absent[0]!r}; the first line names {', '.join(columns)}")
    places = [header.index(column) if column in header else None for column in (*columns, *optional)]
    body = lines(path)
    next(body)
    for number, line in body:
        values = _cells_of(path, number, line, split)
        if len(values) != len(header):
            raise DataError(
                f"{path}, line {number}: {len(values)} columns where the first line has {len(header)}; restore the line"
            )
        yield number, [None if place is None else values[place] for place in places]


def records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered JSON objects, one a line; old Amazon files hold Python literals instead."""
    for number, line in lines(path):
        try:
            record = _record(line)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            record = None
        if not isinstance(record, dict):
            raise DataError(f"{path}, line {number}: not a JSON record; the file may be cut short, so fetch it again")
        yield number, record


def _record(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return ast.literal_eval(line)


# --- items and events ---------------------------------------------------------------------------------------------


Entry = tuple[int, str, Mapping[str, object]]  # line (0: the file has none), identifier, attributes as they are read


class Catalogue(NamedTuple):
    """Items by their first record, and the identifiers of repeated records.

    ``again`` holds the identifiers of all further records.
    """

    path: Path
    items: list[Item]
    again: Sequence[str] = ()

    @property
    def remarks(self) -> tuple[str, ...]:
        """A sentence on repeated records, if any."""
        if not self.again:
            return ()
        count = f"{len(self.again):,} item{'s' if len(self.again) > 1 else ''}"
        return (f"{self.path.name} holds {count} again, such as {self.again[0]!r}; of each the first counts",)


def catalogued(path: Path, entries: Iterable[Entry], clean: Callable[[str], str] = str.strip) -> Catalogue:
    """The items of a file by their first records; ``clean`` turns a text into one line.

    Raises:
        DataError: for an item without an identifier, or an attribute that is not text.
    """
    named, attributes = [], []
    for line, identifier, values in entries:
        place = f"{path}, line {line}" if line else f"{path}, item {identifier!r}"
        if not identifier.strip():
            raise empty(place, "item")
        named.append(writable(identifier))
        attributes.append(_filled(place, values, clean))
    items: dict[str, Item] = {}
    again = []
    for identifier, filled in zip(whole_identifiers(named), attributes, strict=True):
        if items.setdefault(identifier, item := Item(identifier, filled)) is not item:
            again.append(identifier)
    return Catalogue(path, list(items.values()), again)


def _filled(place: str, values: Mapping[str, object], clean: Callable[[str], str]) -> dict[str, str]:
    """The non-empty attributes, the title first."""
    filled = {}
    for key, value in values.items():
        try:
            text = text_of(value, clean)
        except (TypeError, RecursionError) as error:
            raise DataError(
                f"{place}: {key} holds {first_line(error)}, which is not text; write text or a list of texts, or remove it"
            ) from None
        if text:
            filled[sys.intern(writable(str(key)))] = text
    return {key: filled[key] for key in sorted(filled, key=lambda key: key != TITLE)}


def empty(place: str, role: str) -> DataError:
    """The message for a row or record without a user or an item."""
    return DataError(f"{place}: {role} is empty; correct the row or drop it")


def collect(name: str, catalogue: Catalogue, path: Path, rows: Iterable[Row]) -> Raw:
    """Number users and items while reading the rows of ``path``; only machine integers are kept of a row.

    Items that the catalogue lacks are appended to it, without attributes.

    Raises:
        DataError: for a timestamp that does not fit in int64, a rating that is not a number, or a blank identifier.
    """
    users: dict[str, int] = {}
    met: dict[str, int] = {}
    user_column, item_column, times, ratings = array("q"), array("q"), Times(), array("f")
    for line, user, item, timestamp, rating in rows:
        try:
            times.append(timestamp)
            ratings.append(UNRATED if rating is None else float(rating))
        except (TypeError, ValueError, OverflowError):
            _refuse(path, line, timestamp, rating)
        if not (user.strip() and item.strip()):
            raise empty(f"{path}, line {line}", "item" if user.strip() else "user")
        user_column.append(users.setdefault(user, len(users)))
        item_column.append(met.setdefault(item, len(met)))
    people: dict[str, int] = {}
    goods = {item.identifier: number for number, item in enumerate(catalogue.items)}
    events = Events(
        _numbered(user_column, users, people), _numbered(item_column, met, goods), np.frombuffer(times.found, np.int64)
    )
    unknown = [Item(identifier, NO_ATTRIBUTES) for identifier in list(goods)[len(catalogue.items) :]]
    stars = np.frombuffer(ratings, dtype=np.float32)
    return Raw(
        name,
        str(catalogue.path),
        list(people),
        catalogue.items + unknown,
        events,
        None if np.isnan(stars).all() else stars,
        known=len(catalogue.items),
        remarks=catalogue.remarks,
    )


def _numbered(column: array[int], met: Mapping[str, int], numbers: dict[str, int]) -> IntArray:
    """The column as numbers from ``numbers``, to which new identifiers are added."""
    codes = [numbers.setdefault(identifier, len(numbers)) for identifier in whole_identifiers([*map(writable, met)])]
    return np.array(codes, dtype=np.int64)[np.frombuffer(column, dtype=np.int64)]


def _refuse(path: Path, line: int, timestamp: str, rating: Any) -> NoReturn:
    if _is_number(rating) or not _is_number(timestamp):  # a timestamp may also overflow once all are microseconds
        problem = (
            f"timestamp {timestamp!r} is not a number of seconds or a position that fits in 64 bits; write an integer"
        )
    else:
        problem = f"rating {rating!r} is not a number; write one, or remove the column"
    raise DataError(f"{path}, line {line}: {problem}") from None


def _is_number(value: Any) -> bool:
    """Whether a value is a number; a missing one passes."""
    try:
        float(UNRATED if value is None else value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True
