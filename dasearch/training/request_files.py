"""Batch recommendation: files of histories in, files of recommendations out, in chunks and written atomically.

An input row has a ``history`` (item ids, oldest first) and may have a ``user`` and an ``id``. An output row has its number
``row`` (from 1; the line number in JSONL), ``id`` and ``user`` as text, and the lists ``items`` and ``scores``, best first.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import polars as pl

from dasearch.data.conversion import packed
from dasearch.data.readers.base import lines
from dasearch.data.readers.values import writable
from dasearch.errors import DataError, Interrupted, first_line
from dasearch.folders import place_of, whole_file
from dasearch.training.recommender import Ranking, Recommender, Request

HISTORY, USER, ID = "history", "user", "id"
ANSWER_COLUMNS = {
    "row": pl.Int64(),
    ID: pl.String(),
    USER: pl.String(),
    "items": pl.List(pl.String()),
    "scores": pl.List(pl.Float32()),
}
PIECE_BATCHES = 8  # batches whose rows are sorted by length together, and per progress message
CHECKED_AT_ONCE = 8192  # rows per progress message while checking
ROWS_AT_ONCE = 65_536  # rows of a Parquet file in memory at once, and rows per written row group
SCORE_DIGITS = 6  # significant digits of scores in JSON
NO_RECORD = 'is no JSON object; write {"history": ["ITEM", ...]}'
NO_LIST = "has no history that is a list of item ids; give it one, oldest first"


class Row(NamedTuple):
    """A row of a file of requests; ``problem`` is the reason if it cannot be answered."""

    number: int
    history: list[str]
    user: str | None = None
    identifier: str | None = None
    problem: str = ""


class Answer(NamedTuple):
    """A row of a file of recommendations, in the order of `ANSWER_COLUMNS`."""

    row: int
    identifier: str | None
    user: str | None
    items: list[str]
    scores: list[float]


class Checked(NamedTuple):
    """The number of rows of a file, the number that cannot be answered, and the first of these with its reason."""

    rows: int
    bad: int
    first: str


class Answered(NamedTuple):
    """The outcome of a file's rows; ``seconds`` excludes checking them."""

    rows: int
    answered: int
    left_out: int
    first_left_out: str
    seconds: float


class Progress(NamedTuple):
    """The number of rows answered so far, of ``total``, and the seconds; ``total`` None: rows are still being checked."""

    done: int
    total: int | None
    seconds: float

    @property
    def words(self) -> str:
        """The progress as a message."""
        return f"{self.done:,} rows checked" if self.total is None else f"{self.done:,} of {self.total:,} rows answered"

    @property
    def seconds_left(self) -> float | None:
        """Estimated remaining seconds; None before the first rows are answered."""
        return self.seconds * (self.total - self.done) / self.done if self.total and self.done else None


Read = Callable[[Path], Iterator[Row]]
Write = Callable[[Sequence[Answer]], None]
Form = TypeVar("Form")
Rank = Callable[[Sequence[Request]], list[Ranking]]
Listen = Callable[[Progress], None]


def history_of(text: str, known: Container[str]) -> list[str]:
    """Parse a history given as text: item ids separated by commas, oldest first, or a JSON list.

    Known items take precedence: ids with surrounding spaces, and a text that is itself an id, even with commas.
    """
    parts = [part if part in known else part.strip() for part in text.split(",") if part.strip()]
    if all(part in known for part in parts):
        return parts
    return [text] if text in known else _json_ids(text) or parts


def _json_ids(text: str) -> list[str]:
    """The item ids of a JSON list; an empty list for any other text."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return []
    whole = isinstance(parsed, list) and all(type(item) in (str, int) for item in parsed)
    return [str(item) for item in parsed] if whole else []


def answer_file(
    recommender: Recommender,
    source: Path,
    *,
    out: Path,
    k: int = 10,
    include_seen: bool = False,
    skip_bad: bool = False,
    overwrite: bool = False,
    batch_size: int | None = None,
    listen: Listen = lambda _: None,
) -> Answered:
    """Answer every row of a ``.parquet``, ``.jsonl`` or ``.jsonl.gz`` file into another file of any of these formats.

    All rows are checked before the first is answered. Memory use does not grow with the number of rows.

    Args:
        recommender: the model.
        source: file with the histories.
        out: file to write, atomically.
        k: number of items per row.
        include_seen: also recommend items of a row's own history.
        skip_bad: skip and count rows that cannot be answered, instead of raising.
        overwrite: replace ``out`` if it exists.
        batch_size: histories per forward pass; None: a default for the device.
        listen: callback that receives each `Progress`.

    Raises:
        DataError: if a file cannot be read or written, or a row cannot be answered; ``out`` is then unchanged.
        ModelFolderError: for k or batch_size below 1.
        Interrupted: on Ctrl-C; ``out`` is then unchanged.
    """
    read, written = _by_suffix(READERS, source), _by_suffix(WRITERS, out)
    _require_places(source, out, overwrite)
    size = recommender.batch_size if batch_size is None else batch_size
    rank = partial(recommender.rankings, k=k, include_seen=include_seen, batch_size=size)
    rank([])  # rejects k and batch_size before a row is read
    last = Progress(0, None, 0.0)

    def on_progress(progress: Progress) -> None:
        nonlocal last
        last = progress
        listen(progress)

    try:
        checked = _check(recommender, read(source), source, on_progress)
        if checked.bad and not skip_bad:
            rows = f"{checked.bad:,} of {checked.rows:,} rows cannot be answered"
            raise DataError(f"{checked.first} ({rows}; --skip-bad leaves such rows out)")
        with _written_whole(out) as unfinished, written(unfinished) as write:
            pieces = _pieces(_asked(recommender, read(source)), size * PIECE_BATCHES)
            seconds = _answer(recommender, pieces, rank, write, checked.rows - checked.bad, on_progress)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted, {last.words}; {out} was not written") from None
    return Answered(checked.rows, checked.rows - checked.bad, checked.bad, checked.first, seconds)


def _check(recommender: Recommender, rows: Iterator[Row], source: Path, listen: Listen) -> Checked:
    number = bad = 0
    first = ""
    for number, row in enumerate(rows, start=1):
        if not _request(recommender, row):
            first = first or f"{source}, row {row.number}: {_reason(recommender, row)}"
            bad += 1
        if number % CHECKED_AT_ONCE == 0:
            listen(Progress(number, None, 0.0))
    return Checked(number, bad, first)


def _answer(
    recommender: Recommender,
    pieces: Iterator[list[tuple[Row, Request]]],
    rank: Rank,
    write: Write,
    total: int,
    listen: Listen,
) -> float:
    """Write the answers of all pieces; returns the seconds that it took."""
    started, done = time.perf_counter(), 0
    for piece in pieces:
        rankings = rank([request for _, request in piece])
        write([_answer_of(recommender, row, ranking) for (row, _), ranking in zip(piece, rankings, strict=True)])
        done += len(piece)
        listen(Progress(done, total, time.perf_counter() - started))
    return time.perf_counter() - started


def _asked(recommender: Recommender, rows: Iterator[Row]) -> Iterator[tuple[Row, Request]]:
    for row in rows:
        request = _request(recommender, row)
        if request is not None:
            yield row, request


def _request(recommender: Recommender, row: Row) -> Request | None:
    return None if row.problem else recommender.request(row.history, row.user)


def _reason(recommender: Recommender, row: Row) -> str:
    return row.problem or recommender.refusal(row.history, row.user)


def _answer_of(recommender: Recommender, row: Row, ranking: Ranking) -> Answer:
    items = [recommender.items[position].identifier for position in ranking.items]
    return Answer(row.number, row.identifier, row.user, items, ranking.scores)


def _pieces(rows: Iterator[tuple[Row, Request]], size: int) -> Iterator[list[tuple[Row, Request]]]:
    while piece := list(islice(rows, size)):
        yield piece


# --- files --------------------------------------------------------------------------------------------------------


def _by_suffix(forms: Mapping[str, Form], path: Path) -> Form:
    for suffix, form in forms.items():
        if path.name.endswith(suffix):
            return form
    raise DataError(f"{path} has none of the suffixes {', '.join(forms)}, which determine its format; rename it")


def _require_places(source: Path, out: Path, overwrite: bool) -> None:
    source, out = place_of(source, DataError), place_of(out, DataError)
    if not source.is_file():
        raise DataError(f"there is no file {source}; give one with a history per row")
    if out.is_dir() or (out.exists() and out.samefile(source)):
        raise DataError(f"{out} is {'a folder' if out.is_dir() else 'the input file'}; choose another file to write")
    if out.exists() and not overwrite:
        raise DataError(f"{out} exists; choose another file, or replace it with --overwrite")


@contextmanager
def _written_whole(out: Path) -> Iterator[Path]:
    try:
        with whole_file(out) as unfinished:
            yield unfinished
    except OSError as error:
        raise DataError(f"{out} cannot be written ({error.strerror}); choose another place") from None


def _read_jsonl(path: Path) -> Iterator[Row]:
    for number, line in lines(path):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            yield _row(number, *(record.get(column) for column in REQUEST_COLUMNS))
        else:
            yield Row(number, [], problem=NO_RECORD)


def _read_parquet(path: Path) -> Iterator[Row]:
    """Read in slices, as Polars calls its own streaming engine unstable."""
    columns = _scan(path)
    for start in count(0, ROWS_AT_ONCE):
        with _readable(path):
            rows = columns.slice(start, ROWS_AT_ONCE).collect()
        yield from (_row(number, *row) for number, row in enumerate(rows.iter_rows(), start=start + 1))
        if len(rows) < ROWS_AT_ONCE:
            return


def _scan(path: Path) -> pl.LazyFrame:
    """The columns of `REQUEST_COLUMNS` as text, null for missing columns.

    Raises:
        DataError: if it is not a Parquet file, or has no lists of item ids.
    """
    with _readable(path):
        frame = pl.scan_parquet(path, glob=False)
        schema = frame.collect_schema()
    column = schema.get(HISTORY)
    inner = getattr(column, "inner", None)  # of List and Array
    if inner is None or not (inner.is_integer() or inner in TEXTS):
        actual = "no column" if column is None else f"{column} as column"
        raise DataError(f"{path} has {actual} {HISTORY!r}; write lists of item ids there, oldest first")
    others = [pl.col(c).cast(pl.String) if c in schema else pl.lit(None, pl.String).alias(c) for c in (USER, ID)]
    return frame.select(pl.col(HISTORY).cast(pl.List(pl.String)), *others)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet ({first_line(error)}); write it again") from None


def _row(number: int, history: Any, user: Any, identifier: Any) -> Row:
    if not isinstance(history, list) or any(type(item) not in (str, int) for item in history):
        return Row(number, [], problem=NO_LIST)
    return Row(number, [str(item) for item in history], _text(user), _text(identifier))


def _text(value: Any) -> str | None:
    return None if value is None else writable(str(value))


@contextmanager
def _write_jsonl(path: Path) -> Iterator[Write]:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        yield lambda answers: file.writelines(map(_line, answers))


@contextmanager
def _write_packed_jsonl(path: Path) -> Iterator[Write]:
    with packed(path) as file:
        yield lambda answers: file.writelines(map(_line, answers))


def _line(answer: Answer) -> str:
    scores = [round(score, SCORE_DIGITS) for score in answer.scores]
    filled = zip(ANSWER_COLUMNS, answer._replace(scores=scores), strict=True)
    return json.dumps({column: value for column, value in filled if value is not None}, ensure_ascii=False) + "\n"


@contextmanager
def _write_parquet(path: Path) -> Iterator[Write]:
    """Write row groups as separate files beside ``path``, which are merged at the end."""
    parts: list[Path] = []
    held = [pl.DataFrame(schema=ANSWER_COLUMNS)]

    def write_part() -> None:
        parts.append(path.with_name(f"{len(parts):06d}.parquet"))
        pl.concat(held).write_parquet(parts[-1])
        del held[1:]

    def write(answers: Sequence[Answer]) -> None:
        held.append(pl.DataFrame(answers, schema=ANSWER_COLUMNS, orient="row"))
        if sum(map(len, held)) >= ROWS_AT_ONCE:
            write_part()

    yield write
    write_part()
    pl.scan_parquet(parts, glob=False).sink_parquet(path, row_group_size=ROWS_AT_ONCE)


REQUEST_COLUMNS = (HISTORY, USER, ID)  # in the order of `_row`
TEXTS = (pl.String, pl.Categorical, pl.Enum)
READERS: dict[str, Read] = {".parquet": _read_parquet, ".jsonl": _read_jsonl, ".jsonl.gz": _read_jsonl}
WRITERS: dict[str, Callable[[Path], AbstractContextManager[Write]]] = {
    ".parquet": _write_parquet,
    ".jsonl": _write_jsonl,
    ".jsonl.gz": _write_packed_jsonl,
}
