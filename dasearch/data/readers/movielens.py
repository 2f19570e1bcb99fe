"""MovieLens: Harper and Konstan, ACM TiiS 2015. The three file layouts that GroupLens has published."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, cast

from dasearch.data.dataset import TITLE
from dasearch.data.raw import Raw
from dasearch.data.readers.base import (
    UTF8,
    Entry,
    Row,
    by_comma,
    by_tab,
    catalogued,
    cells,
    collect,
    find,
    named_cells,
    open_text,
    require,
)
from dasearch.data.rules import Rules
from dasearch.errors import DataError, first_line

FILES = "u.data, u.item and u.genre (100k), ratings.dat and movies.dat (1M), or ratings.csv and movies.csv (later ones)"
ORIGIN = "MovieLens 100K, 1M, 20M, 25M, 32M, latest-small of GroupLens"
GENRES_FROM = 5  # columns of u.item before its genre flags
NO_GENRES = "(no genres listed)"


class Layout(NamedTuple):
    """The files of one layout and how each is read; ``movies`` gets the folder's other files from beside its path."""

    ratings: str
    movies: str
    rows: Callable[[Path], Iterator[Row]]
    items: Callable[[Path], Iterator[Entry]]


def detects(source: Path) -> bool:
    """Whether the source holds the ratings and films of a MovieLens release."""
    return any(find(source, layout.ratings) and find(source, layout.movies) for layout in LAYOUTS)


def read(source: Path, rules: Rules) -> Raw:
    """Genres, joined by spaces, are the items' category."""
    layout = next((layout for layout in LAYOUTS if find(source, layout.ratings)), LAYOUTS[-1])
    ratings = require(source, layout.ratings, (FILES, ORIGIN))
    movies = require(source, layout.movies, (FILES, ORIGIN))
    return collect(source.resolve().name, catalogued(movies, layout.items(movies)), ratings, layout.rows(ratings))


def _tab_rows(path: Path) -> Iterator[Row]:
    for number, (user, item, rating, timestamp) in cells(path, by_tab, 4):
        yield number, user, item, timestamp, rating


def _colon_rows(path: Path) -> Iterator[Row]:
    for number, (user, item, rating, timestamp) in cells(path, _by_colons, 4):
        yield number, user, item, timestamp, rating


def _csv_rows(path: Path) -> Iterator[Row]:
    for number, values in named_cells(path, by_comma, ("userId", "movieId", "rating", "timestamp")):
        user, item, rating, timestamp = cast("list[str]", values)
        yield number, user, item, timestamp, rating


def _pipe_items(path: Path) -> Iterator[Entry]:
    genre_file = require(path.parent, "u.genre", (FILES, ORIGIN))
    numbered = {number: name for _, (name, number) in cells(genre_file, _by_pipe, 2)}
    width = GENRES_FROM + len(numbered)
    for line, (identifier, title, *rest) in cells(path, _by_pipe, width, _encoding(path)):
        flags = rest[GENRES_FROM - 2 :]
        genres = [numbered.get(str(k), "") for k, flag in enumerate(flags) if flag == "1"]
        yield _movie(line, identifier, title, genres)


def _colon_items(path: Path) -> Iterator[Entry]:
    for line, (identifier, title, genres) in cells(path, _by_colons, 3, _encoding(path)):
        yield _movie(line, identifier, title, genres.split("|"))


def _csv_items(path: Path) -> Iterator[Entry]:
    for line, values in named_cells(path, by_comma, ("movieId", "title", "genres")):
        identifier, title, genres = cast("list[str]", values)
        yield _movie(line, identifier, title, genres.split("|"))


def _movie(line: int, identifier: str, title: str, genres: list[str]) -> Entry:
    known = [genre for genre in genres if genre not in (NO_GENRES, "unknown")]
    return line, identifier, {TITLE: title, "category": " ".join(known)}


def _by_colons(line: str) -> list[str]:
    return line.split("::")


def _by_pipe(line: str) -> list[str]:
    return line.split("|")


def _encoding(path: Path) -> str:
    """The text of a file: 100K and 1M are Latin-1, 10M is UTF-8, and no file declares its encoding."""
    try:
        with open_text(path) as file:
            for _ in file:
                pass
    except UnicodeDecodeError:
        return "latin-1"
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({first_line(error)}); fetch it again") from None
    return UTF8


LAYOUTS = (
    Layout("u.data", "u.item", _tab_rows, _pipe_items),
    Layout("ratings.dat", "movies.dat", _colon_rows, _colon_items),
    Layout("ratings.csv", "movies.csv", _csv_rows, _csv_items),
)
