"""Files of every reader of data, and of histories to answer."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import strategies as st

from dasearch.data import Rules, load_dataset, statistics
from dasearch.data.events import Ties
from dasearch.errors import DasearchError, DataError
from dasearch.training.request_files import READERS
from tests.data.forms import FORMS, Form
from tests.fuzz.holding import TIMES, fuzz, require_sentence, used_or_refused
from tests.fuzz.mutations import NUMBERS, WORDS, contents

COLUMNS = ("user_id", "item_id", "timestamp", "title", "rating", "history", "user", "id")
NESTED: dict[Any, Any] = {
    pl.List(pl.Int64): [1, None, 2],
    pl.List(pl.String): ["a", None, ""],
    pl.List(pl.List(pl.String)): [["a"], None],
    pl.Array(pl.Int64, 2): [1, 2],
    pl.Struct({"a": pl.Int64}): {"a": 1},
}
KINDS: tuple[Any, ...] = (
    pl.Int8, pl.UInt64, pl.Int64, pl.Float32, pl.Float64, pl.Boolean, pl.String, pl.Binary, pl.Categorical, pl.Null, pl.Date,
    pl.Datetime("ns"), pl.Duration("us"), pl.Time, pl.Decimal(10, 2), *NESTED,
)  # fmt: skip
RULES = st.builds(
    Rules,
    min_rating=st.none() | st.floats(0, 5),
    ties=st.sampled_from(Ties),
    min_item_interactions=st.integers(0, 2),
)


def described(folder: Path, rules: Rules) -> None:
    """Read to the end: numbers that `data stats` prints."""
    found = statistics(load_dataset(folder, rules))
    assert found.users > 0


@TIMES
@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_damaged_files(form: Form, times: int, tmp_path: Path) -> None:
    whole = {path.name: path.read_bytes() for path in form.write(tmp_path).iterdir()}

    def check(drawn: tuple[str, bytes], rules: Rules, packed: bool) -> bool:
        name, content = drawn
        kept, other = (name, f"{name}.gz") if not packed else (f"{name}.gz", name)
        (tmp_path / other).unlink(missing_ok=True)
        (tmp_path / kept).write_bytes(gzip.compress(content, 1) if packed else content)
        used = used_or_refused(lambda: described(tmp_path, rules))
        (tmp_path / kept).unlink()
        (tmp_path / name).write_bytes(whole[name])
        return used

    drawn = st.sampled_from(sorted(whole)).flatmap(lambda name: st.tuples(st.just(name), contents(whole[name])))
    fuzz(check, 40 * times, drawn=drawn, rules=RULES, packed=st.sampled_from([False, False, True]))


@TIMES
def test_damaged_gzip_files(times: int, tmp_path: Path) -> None:
    form = FORMS["plain"]
    whole = {path.name: path.read_bytes() for path in form.write(tmp_path, zipped=True).iterdir()}

    def check(drawn: tuple[str, bytes]) -> bool:
        name, content = drawn
        (tmp_path / name).write_bytes(content)
        used = used_or_refused(lambda: described(tmp_path, Rules()))
        (tmp_path / name).write_bytes(whole[name])
        return used

    drawn = st.sampled_from(sorted(whole)).flatmap(lambda name: st.tuples(st.just(name), contents(whole[name])))
    fuzz(check, 30 * times, drawn=drawn)


@st.composite
def frames(draw: st.DrawFn) -> pl.DataFrame:
    """Tables with columns of any kind, under names that are wanted."""
    height = draw(st.integers(0, 6))
    columns = {}
    for name in draw(st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=6, unique=True)):
        kind = draw(st.sampled_from(KINDS))
        values = draw(st.lists(st.integers(0, 3), min_size=height, max_size=height))
        columns[name] = _column([value or None for value in values], kind)
    return pl.DataFrame(columns)


def _column(values: list[int | None], kind: Any) -> pl.Series:
    """Small whole numbers, and None, as values of a kind."""
    if kind in NESTED:
        return pl.Series([None if value is None else NESTED[kind] for value in values], dtype=kind)
    if kind in (pl.String, pl.Binary, pl.Categorical):
        texts = [None if value is None else f"w{value}" for value in values]
        return pl.Series(texts, dtype=pl.String).cast(kind)
    return pl.Series(values, dtype=pl.Int64).cast(kind, strict=False)


@TIMES
def test_parquet_of_any_columns(times: int, tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"

    def check(frame: pl.DataFrame, rules: Rules) -> bool:
        frame.write_parquet(path)
        used = used_or_refused(lambda: described(path, rules))
        return used_or_refused(lambda: list(READERS[".parquet"](path))) or used

    fuzz(check, 80 * times, frame=frames(), rules=RULES)


@TIMES
def test_histories_to_answer(times: int, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    valid = b'{"history": ["item1", "item2"], "user": "u1", "id": 7}\n{"history": [1, 2]}\n'

    def check(content: bytes) -> bool:
        path.write_bytes(content)
        return used_or_refused(lambda: list(READERS[".jsonl"](path)))

    fuzz(check, 60 * times, content=contents(valid))


@pytest.mark.parametrize("name", ["a" * 300, "x\0y", "~nobody/x", "\ud800", "a/b" * 2000, "", "."])
def test_places_that_cannot_be(name: str) -> None:
    """As a folder, a file of items and a table; never another error than ours."""
    for rules in (Rules(), Rules(items=name, columns={"user": "user_id"})):
        with pytest.raises(DasearchError) as refused:
            load_dataset(name, rules)
        require_sentence(str(refused.value))


@TIMES
def test_names_of_columns(times: int, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("user_id,item_id,timestamp,title\nann,i1,1,Tea\nann,i2,2,Mug\nann,i3,3,Cup\n")
    roles = st.sampled_from(["user", "item", "timestamp", "rating", "title"]) | WORDS
    names = st.sampled_from(["user_id", "item_id", "timestamp", "title", "\0", "\1", "\2"]) | WORDS

    def check(columns: dict[str, str], items: str | None, number: Any) -> bool:
        used = used_or_refused(lambda: described(path, Rules(columns=columns, items=items)))
        path.with_name("cells.csv").write_text(f"user_id,item_id,timestamp\n{json.dumps(number)},i1,{number}\n")
        return used_or_refused(lambda: described(path.with_name("cells.csv"), Rules())) or used

    items = st.none() | st.just("table.csv") | WORDS
    fuzz(check, 60 * times, columns=st.dictionaries(roles, names, max_size=4), items=items, number=NUMBERS)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("train.json", '{"0": 3}', "has no list of item numbers"),
        ("train.json", '{"0": [[1]]}', "which smap.json lacks"),
        ("train.json", "[" * 100_000, "cannot be read"),
        ("train.json", '{"0": [' + "9" * 5000 + "]}", "cannot be read"),
        ("smap.json", '{"i1": [1]}', "'i1' has no integer"),
        ("umap.json", '{"ann": {}}', "'ann' has no integer"),
    ],
)
def test_recformer_files_of_another_shape(name: str, content: str, said: str, tmp_path: Path) -> None:
    FORMS["recformer"].write(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said):
        load_dataset(tmp_path)


def test_half_a_surrogate_pair_is_a_name(tmp_path: Path) -> None:
    FORMS["recformer"].write(tmp_path)
    for name in ("smap.json", "umap.json", "meta_data.json"):
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text.replace('"i1"', '"\\ud800"').replace('"ann"', '"\\udc00"'))
    dataset = load_dataset(tmp_path)
    assert {"?"} <= {item.identifier for item in dataset.items} | set(dataset.users)
    assert len(dataset.fingerprint) == 64


def test_a_time_that_fits_in_seconds_alone(tmp_path: Path) -> None:
    FORMS["plain"].write(tmp_path)
    rows = ["user_id\titem_id\ttimestamp", "ann\ti1\t1.5", f"ann\ti2\t{10**18}"]
    (tmp_path / "interactions.tsv").write_text("\n".join(rows) + "\n")
    with pytest.raises(DataError, match=rf"line 3: timestamp '{10**18}' is not a number of seconds"):
        load_dataset(tmp_path)


def test_a_table_is_read_under_any_name(tmp_path: Path) -> None:
    """No pattern of names, and a carriage return inside a cell is text."""
    rows = "user_id,item_id,timestamp,title\n" + "".join(f'ann,i{n},{n},"Tea\r{n}\nx"\n' for n in range(3))
    (tmp_path / "events[1]*.csv").write_bytes(rows.encode())
    (tmp_path / "events1.csv").write_text("user_id,item_id,timestamp,title\n")
    dataset = load_dataset(tmp_path / "events[1]*.csv")
    assert len(dataset.items) == 3
