"""Any table of interactions, CSV, TSV or Parquet, whose columns the study names."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from dasearch.data.dataset import TITLE
from dasearch.data.raw import Raw
from dasearch.data.readers.base import Catalogue, Row, bare_name, catalogued, collect, empty, lines, open_text
from dasearch.data.readers.values import MICROSECONDS
from dasearch.data.rules import Rules
from dasearch.errors import DataError, first_line, suggestion
from dasearch.folders import place_of

TSV = ".tsv"
SEPARATORS = {".csv": ",", TSV: "\t"}
PARQUET = ".parquet"
SUFFIXES = (*SEPARATORS, PARQUET)
RATING = "rating"  # the one optional column
EVENT_COLUMNS = {"user": "user_id", "item": "item_id", "timestamp": "timestamp"}
OWN_ID = "id"  # role of an item table's identifier, where its column is not called as in the interactions
USUAL_ATTRIBUTES = (TITLE, "brand", "category")  # read from the interactions where data.columns names no attribute
FILES = (
    "one file, or interactions.csv, .tsv or .parquet, with columns as data.columns names them "
    "(default: user_id, item_id, timestamp, title), and a table of items if data.items names one"
)
ORIGIN = "your own"
ISO_DATE = r"^\d{4}-\d{2}-\d{2}([T ]|$)"
EVENTS_EXAMPLE = "{user: customer, item: sku, timestamp: time}"
ITEMS_EXAMPLE = "{id: sku, title: name, brand: maker} for a table of items"
KEY, ROW, COUNT = "\0", "\1", "\2"  # column roles that are not attributes
TEXTS = (pl.String, pl.Categorical, pl.Enum, pl.Null)


def detects(source: Path) -> bool:
    """Whether the source is a table, or a folder with one."""
    if source.is_file():
        return bare_name(source).endswith(SUFFIXES)
    return bool(_tables(source))


def _tables(folder: Path) -> list[Path]:
    names = [f"interactions{suffix}{packed}" for suffix in SUFFIXES for packed in ("", ".gz")]
    return [folder / name for name in names if (folder / name).is_file()]


def read(source: Path, rules: Rules) -> Raw:
    """Attributes are the other columns that ``data.columns`` names, of the item table or else of the interactions.

    Timestamps are integers, floats or ISO dates; with fractions of a second anywhere, all become microseconds.
    """
    _require_roles(rules.columns)
    path = _interactions(source)
    names = {**EVENT_COLUMNS, RATING: RATING, **rules.columns}
    with _readable(path):
        table = _whole_rows(path)
        _require_columns(path, table, [names[role] for role in (*EVENT_COLUMNS, *{RATING} & rules.columns.keys())])
        events = _events(path, table, names)
    catalogue = path if rules.items is None else _item_table(path, rules.items)
    with _readable(catalogue):
        items = _catalogue(catalogue, names, own_table=rules.items is not None)
    name = bare_name(source).rpartition(".")[0] if source.is_file() else source.resolve().name
    return collect(name, items, path, _rows(events))


def _require_roles(roles: Iterable[str]) -> None:
    """Roles name attributes and columns of frames, so that each must be text."""
    for role in roles:
        if not role.isprintable():
            raise DataError(f"data.columns maps the role {role!r}, which cannot be printed; name it otherwise")


def _interactions(source: Path) -> Path:
    tables = [source] if source.is_file() else _tables(source)
    if len(tables) != 1:
        count = "several tables" if tables else "no table"
        raise DataError(f"{source} holds {count} of interactions; name the file as data.source, or hold {FILES}")
    return tables[0]


def _item_table(interactions: Path, name: str) -> Path:
    """The file as named, or beside the interactions."""
    for candidate in (place_of(name, DataError), place_of(interactions.parent / name, DataError)):
        if candidate.is_file():
            return candidate
    raise DataError(f"there is no file {name} with items, nor one beside {interactions}; correct data.items")


def _scan(path: Path) -> pl.LazyFrame:
    """Columns as text, except those of Parquet, which have types."""
    suffix = Path(bare_name(path)).suffix
    if suffix == PARQUET:
        return pl.scan_parquet(path, glob=False)
    if suffix not in SEPARATORS:
        raise DataError(f"{path} has none of the suffixes {', '.join(SUFFIXES)}; rename it to match its format")
    quote = None if suffix == TSV else '"'
    return pl.scan_csv(path, separator=SEPARATORS[suffix], quote_char=quote, infer_schema=False, glob=False)


def _whole_rows(path: Path) -> pl.LazyFrame:
    """The table, checked for truncated rows and for rows swallowed by a quoted cell.

    Raises:
        DataError: with the line of the first such row.
    """
    table, suffix = _scan(path), Path(bare_name(path)).suffix
    if suffix == TSV:
        _require_width(path)
    elif suffix != PARQUET:
        _require_no_row_inside(path, table)
    return table


def _require_width(path: Path) -> None:
    """Cells of a TSV are taken literally, so that a line is a row."""
    width = None
    for number, line in lines(path):
        columns = line.count("\t") + 1
        width = width or columns
        if columns != width:
            raise DataError(
                f"{path}, line {number}: {columns} columns where the first line has {width}; a cell here holds no tab and no "
                "line break, quoted or not"
            )


def _require_no_row_inside(path: Path, table: pl.LazyFrame) -> None:
    """An unintended quote swallows the rows up to the next one."""
    width = len(table.collect_schema())
    broken = pl.any_horizontal(pl.all().exclude(ROW).str.contains("\n", literal=True))
    for row, *cells in table.with_row_index(ROW).filter(broken).pipe(_collect).iter_rows():
        inside = [line for cell in cells if cell for line in cell.split("\n")[1:]]
        if width > 1 and _holds_row(inside, width):
            raise DataError(
                f"{path}, {_place(path, row)}: a quoted cell holds what looks like rows; double the quote that opens it, and "
                "quote the whole cell, or take its line breaks out"
            )


def _holds_row(lines_inside: list[str], width: int) -> bool:
    try:
        return any(len(cells) == width for cells in csv.reader(lines_inside))
    except csv.Error:  # of a carriage return in the middle: text
        return False


def _collect(frame: pl.LazyFrame) -> pl.DataFrame:
    """Read in chunks; all columns are parsed, because rows with too many cells are rejected only then."""
    return frame.collect(engine="streaming", optimizations=pl.QueryOptFlags(projection_pushdown=False))


def _require_columns(path: Path, table: pl.LazyFrame, wanted: list[str], example: str = EVENTS_EXAMPLE) -> None:
    known = table.collect_schema().names()
    for column in wanted:
        if column not in known:
            raise DataError(
                f"{path}, line 1: no column {column!r}{suggestion(column, known)}; its columns are {', '.join(known)}, "
                f"and data.columns maps roles to them, as in {example}"
            )


# --- interactions -------------------------------------------------------------------------------------------------


def _events(path: Path, table: pl.LazyFrame, names: Mapping[str, str]) -> pl.DataFrame:
    """Columns row (from 0), user, item (text), timestamp (Int64), rating (Float64); blank rows dropped."""
    known = table.collect_schema().names()
    rated = names[RATING] in known
    text = [_identifiers(path, table, names[role]).alias(role) for role in ("user", "item")]
    time = pl.col(names["timestamp"]).alias("timestamp")
    rating = (pl.col(names[RATING]) if rated else pl.lit(None, pl.Float64)).alias(RATING)
    filled = ~pl.all_horizontal(pl.col("user", "item", "timestamp").is_null())
    frame = table.select(*text, time, rating).with_row_index("row").filter(filled).pipe(_collect)
    for role in ("user", "item"):
        _require_all(path, frame, frame[role], role, "identifier")
    times = _times(frame["timestamp"])
    _require_all(path, frame, times, "timestamp", "integer, float or ISO date")
    ratings = frame[RATING].cast(pl.Float64, strict=False)
    _require_all(
        path, frame.filter(frame[RATING].is_not_null()), ratings.filter(frame[RATING].is_not_null()), RATING, "number"
    )
    return frame.with_columns(times.alias("timestamp"), ratings.alias(RATING))


def _require_all(path: Path, frame: pl.DataFrame, read: pl.Series, column: str, wanted: str) -> None:
    """Reject the first row of ``frame`` whose ``column`` could not be ``read``."""
    bad = frame.filter(read.is_null())
    if len(bad):
        value = bad[column][0]
        problem = f"{column} is empty" if value is None else f"{column} {value!r} is no {wanted}"
        raise DataError(f"{path}, {_place(path, bad['row'][0])}: {problem}; correct the row or drop it")


def _times(column: pl.Series) -> pl.Series:
    """Int64 in the column's own unit; null where a value is not a time."""
    if column.dtype.is_integer():
        return column.cast(pl.Int64, strict=False)
    if column.dtype.is_float():
        return _whole(column)
    if column.dtype.is_temporal():
        return _seconds(column.cast(pl.Datetime("us")))
    text = column.cast(pl.String).str.strip_chars()
    dates = text.set(~text.str.contains(ISO_DATE), None).str.to_datetime(time_unit="us", time_zone="UTC", strict=False)
    read = (text.cast(pl.Int64, strict=False), _whole(text.cast(pl.Float64, strict=False)), _seconds(dates))
    return min(read, key=lambda times: times.null_count())


def _whole(column: pl.Series) -> pl.Series:
    """Floats unchanged where all are whole, else in millionths."""
    fractions = (column != column.round()).any()
    return (column * MICROSECONDS if fractions else column).round().cast(pl.Int64, strict=False)


def _seconds(dates: pl.Series) -> pl.Series:
    """Seconds since 1970 where no date has fractional seconds, else microseconds."""
    times = dates.cast(pl.Int64)
    return times if (times % MICROSECONDS != 0).any() else times // MICROSECONDS


def _rows(events: pl.DataFrame) -> Iterator[Row]:
    for row, user, item, timestamp, rating in events.iter_rows():
        yield row, user, item, str(timestamp), rating


# --- items --------------------------------------------------------------------------------------------------------


def _catalogue(path: Path, names: Mapping[str, str], *, own_table: bool) -> Catalogue:
    """Items in the order of their first row, with the first value of each attribute."""
    table = _whole_rows(path) if own_table else _scan(path)
    identifier = names.get(OWN_ID, names["item"]) if own_table else names["item"]
    _require_columns(path, table, [identifier], ITEMS_EXAMPLE if own_table else EVENTS_EXAMPLE)
    attributes = _attributes(path, table, names, own_table=own_table)
    columns = [_text(path, table, column).alias(role) for role, column in attributes.items()]
    filled = ~pl.all_horizontal(pl.all().exclude(ROW).is_null())
    rows = (
        table.with_row_index(ROW).filter(filled).select(ROW, _identifiers(path, table, identifier).alias(KEY), *columns)
    )
    first = (pl.col(ROW).first(), pl.len().alias(COUNT), pl.all().exclude(ROW).drop_nulls().first())
    frame = rows.group_by(KEY, maintain_order=True).agg(*first).pipe(_collect)
    nameless = frame.filter(pl.col(KEY).is_null())
    if len(nameless):
        raise empty(f"{path}, {_place(path, nameless[ROW][0])}", "item")
    again = frame.filter(pl.col(COUNT) > 1)[KEY].to_list() if own_table else []
    values = frame.drop(ROW, COUNT).iter_rows()
    catalogue = catalogued(path, ((0, key, dict(zip(attributes, texts, strict=True))) for key, *texts in values))
    return catalogue._replace(again=[*again, *catalogue.again])


def _identifiers(path: Path, table: pl.LazyFrame, column: str) -> pl.Expr:
    """A column as text, whole floats as integers; null where it is blank."""
    kind = table.collect_schema()[column]
    if kind.is_nested() or kind == pl.Binary:
        raise DataError(
            f"{path}: column {column!r} holds {kind}, which cannot be an identifier; write text or integers"
        )
    values = pl.col(column)
    text = values.cast(pl.String)
    if kind.is_float():
        integers = values.cast(pl.Int64, strict=False).cast(pl.String)
        text = pl.when(values == values.round()).then(integers).when(values.is_not_nan()).then(text)
    return pl.when(text.str.strip_chars() != "").then(text)


def _text(path: Path, table: pl.LazyFrame, column: str) -> pl.Expr:
    """A column as text, lists joined by spaces; null where there is none."""
    kind = leaf = table.collect_schema()[column]
    while isinstance(leaf, pl.List | pl.Array):
        leaf = leaf.inner  # type: ignore[assignment]  # declared as a type or its class; a schema holds types
    if leaf in (pl.Struct, pl.Binary, pl.Object) or (leaf is not kind and leaf not in TEXTS):
        raise DataError(
            f"{path}: column {column!r} holds {kind}, which is not text; exclude it by naming the columns that you want in "
            "data.columns"
        )
    return _joined(pl.col(column), kind)


def _joined(found: pl.Expr, kind: pl.DataType) -> pl.Expr:
    if isinstance(kind, pl.List | pl.Array):
        lists = found.arr.to_list() if isinstance(kind, pl.Array) else found
        parts = lists.list.eval(_joined(pl.element(), kind.inner)).list.drop_nulls()  # type: ignore[arg-type]
        return parts.list.join(" ").replace("", None)
    present = found.fill_nan(None) if kind.is_float() else found
    return present.cast(pl.String).str.strip_chars().replace("", None)


def _attributes(path: Path, table: pl.LazyFrame, names: Mapping[str, str], *, own_table: bool) -> dict[str, str]:
    """Columns by attribute: those named, or every other one of an item table, or the default ones."""
    known = table.collect_schema().names()
    keys = (names["item"], names.get(OWN_ID)) if own_table else (names["item"],)
    others = (*EVENT_COLUMNS, RATING, *([OWN_ID] if own_table else []))
    named = {role: column for role, column in names.items() if role not in others}
    if named:
        _require_columns(path, table, list(named.values()), ITEMS_EXAMPLE if own_table else EVENTS_EXAMPLE)
        return named
    return {column: column for column in known if column not in keys and (own_table or column in USUAL_ATTRIBUTES)}


# --- errors -------------------------------------------------------------------------------------------------------


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """A polars error as one sentence, with the line where it can be located."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        line = _uneven_line(path)
        if line is not None:
            raise DataError(f"{path}, line {line}: more columns than the first line has; quote the cell") from None
        raise DataError(
            f"{path}: cannot be read ({first_line(error)}); save it as UTF-8 with quoted cells, or as Parquet"
        ) from None


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows with the number of their last line; a quoted cell may hold several."""
    with open_text(path) as file:
        suffix = Path(bare_name(path)).suffix
        reader = csv.reader(
            file, delimiter=SEPARATORS[suffix], quoting=csv.QUOTE_NONE if suffix == TSV else csv.QUOTE_MINIMAL
        )
        for row in reader:
            yield reader.line_num, row


def _uneven_line(path: Path) -> int | None:
    if bare_name(path).endswith(PARQUET):
        return None
    try:
        rows = _csv_rows(path)
        _, header = next(rows)
        return next((line for line, row in rows if len(row) > len(header)), None)
    except (OSError, EOFError, StopIteration, UnicodeDecodeError, csv.Error):
        return None


def _place(path: Path, row: int) -> str:
    if bare_name(path).endswith(PARQUET):
        return f"row {row + 1}"
    try:
        return f"line {next(itertools.islice(_csv_rows(path), row + 1, None))[0]}"
    except (StopIteration, csv.Error):
        return f"row {row + 1}"
