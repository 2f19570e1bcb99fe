"""Tables by column names: valid times, the source of attributes, rejected rows."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from dasearch.data import Dataset, Ties, load_dataset, read_source
from dasearch.data.rules import Rules
from dasearch.errors import DataError

COLUMNS = {"user": "customer", "item": "sku", "timestamp": "time"}


def frame(times: list[Any]) -> pl.DataFrame:
    n = len(times)
    return pl.DataFrame(
        {
            "customer": ["ann"] * n,
            "sku": [f"s{k}" for k in range(n)],
            "name": [f"Ding, {k}" for k in range(n)],
            "time": times,
            "stars": [k % 5 + 1 for k in range(n)],
        },
        strict=False,
    )


def shop(path: Path, times: list[Any]) -> Path:
    table = frame(times)
    if path.suffix == ".parquet":
        table.write_parquet(path)
    else:
        table.write_csv(path, separator="\t" if path.suffix == ".tsv" else ",")
    return path


def read(source: Path, **columns: str) -> Dataset:
    return load_dataset(source, ties=Ties.KEEP, columns={**COLUMNS, "title": "name", **columns})


DAY = datetime.date(2024, 2, 29)
NOON = datetime.datetime(2024, 2, 29, 12)
NOON_SECONDS = 1_709_208_000  # date -u -d "2024-02-29 12:00" +%s


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([30, 10, 20], [10, 20, 30]),
        ([1_709_208_000_123, 1, 2**62], [1, 1_709_208_000_123, 2**62]),
        ([3.0, 1.0, 2.0], [1, 2, 3]),
        ([0.5, 1.0, 0.25], [250_000, 500_000, 1_000_000]),
        (["2024-02-29", "1970-01-01", "1970-01-02"], [0, 86_400, NOON_SECONDS - 43_200]),
        (["2024-02-29T12:00:00", "2024-02-29 12:00:01", "2024-02-29T12:00:02"], [NOON_SECONDS + k for k in range(3)]),
        (["2024-02-29T14:00:00+02:00"] * 3, [NOON_SECONDS] * 3),
        (["2024-02-29 12:00:00.5"] * 3, [NOON_SECONDS * 1_000_000 + 500_000] * 3),
        ([DAY, DAY, DAY], [NOON_SECONDS - 43_200] * 3),
        ([NOON, NOON, NOON], [NOON_SECONDS] * 3),
    ],
)
def test_times(tmp_path: Path, suffix: str, times: list[Any], expected: list[int]) -> None:
    found = read(shop(tmp_path / f"shop{suffix}", times))
    assert found.timestamps[0].tolist() == expected
    assert found.name == "shop"


@pytest.mark.parametrize("bad", ["noon", "29.02.2024", "2024-13-01", "", "nan", "02/03/2024"])
def test_one_bad_time_among_good_ones(tmp_path: Path, bad: str) -> None:
    for good in ("2024-02-29", "17"):
        path = shop(tmp_path / "shop.csv", [good, good, bad, good])
        with pytest.raises(
            DataError, match=r"shop\.csv, line 4: timestamp ('.*' is no integer, float or ISO date|is empty)"
        ):
            read(path)


def test_a_refused_row_after_a_cell_of_several_lines_has_its_own_line(tmp_path: Path) -> None:
    path = tmp_path / "shop.csv"
    path.write_text('customer,sku,name,time\nann,a,"two\nlines",3\n\nann,b,B,4\nann,c,C,x\n')
    with pytest.raises(DataError, match=r"shop\.csv, line 6: timestamp 'x' is no"):
        read(path)
    path.write_text('customer,sku,name,time\nann,a,"two\nlines",3\n\nann,b,B,4\nann,c,C,5\n\n')
    assert read(path).items[0].attributes["title"] == "two\nlines"


def test_a_refused_row_of_parquet(tmp_path: Path) -> None:
    path = shop(tmp_path / "shop.parquet", ["1", "2", "x"])
    with pytest.raises(DataError, match=r"shop\.parquet, row 3: timestamp 'x' is no"):
        read(path)
    frame([1, 2, 3]).with_columns(customer=pl.Series(["ann", "", "ann"])).write_parquet(path)
    with pytest.raises(DataError, match=r"shop\.parquet, row 2: user is empty; correct the row or drop it"):
        read(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"shop\.parquet: cannot be read \(") as error:
        read(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("content", "message"), [(b"", "empty"), (b"customer,sku,time,name\na,\xff,3,x\n", "utf-8")])
def test_files_that_are_no_tables(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "shop.csv").write_bytes(content)
    with pytest.raises(DataError, match=rf"shop\.csv: cannot be read \(.*{message}"):
        read(tmp_path / "shop.csv")


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    path = shop(tmp_path / "shop.csv", [1, 2, 3])
    with pytest.raises(DataError, match=r"line 1: no column 'user_id'; its columns are customer, sku, .*data\.columns"):
        load_dataset(path)
    with pytest.raises(DataError, match=r"no column 'nmae'; did you mean name\?"):
        read(path, title="nmae")
    with pytest.raises(DataError, match=r"no column 'rating'"):
        read(path, rating="rating")


def test_attributes_of_the_interactions_are_the_first_filled_ones(tmp_path: Path) -> None:
    path = tmp_path / "shop.csv"
    path.write_text("customer,sku,name,hue,time\nann,a,,red,1\nann,b,B,,2\nann,a,A,,3\nann,a,Z,blue,4\n")
    found = read(path, colour="hue")
    assert [(item.identifier, dict(item.attributes)) for item in found.items] == [
        ("a", {"title": "A", "colour": "red"}),
        ("b", {"title": "B"}),
    ]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_an_item_table_beside_the_interactions(tmp_path: Path, suffix: str) -> None:
    path = shop(tmp_path / "shop.csv", [1, 2, 3])
    goods = pl.DataFrame(
        {"sku": ["s2", "s0", "s1", "s9", "s0"], "title": ["C", "A", "B", "X", "twice"], "size": [1, 2, 3, 4, 5]}
    )
    goods.write_csv(tmp_path / "goods.csv")
    goods.write_parquet(tmp_path / "goods.parquet")
    found = load_dataset(path, columns=COLUMNS, items=f"goods{suffix}")
    assert [dict(item.attributes) for item in found.items] == [
        {"title": "C", "size": "1"},
        {"title": "A", "size": "2"},
        {"title": "B", "size": "3"},
        {"title": "X", "size": "4"},
    ]
    with pytest.raises(DataError, match=r"no file wares\.csv with items, nor one beside .*shop\.csv"):
        load_dataset(path, columns=COLUMNS, items="wares.csv")


def test_an_item_table_has_its_own_names(tmp_path: Path) -> None:
    """Its identifiers under another name than in the interactions, and titles that are not called so."""
    path = shop(tmp_path / "shop.csv", [1, 2, 3])
    goods = tmp_path / "goods.csv"
    goods.write_text("Item No.,Product Name,Maker / Brand,size\ns0,A,x,1\ns1,B,y,2\ns2,C,,3\n")
    named = {**COLUMNS, "id": "Item No.", "title": "Product Name", "brand": "Maker / Brand"}
    found = load_dataset(path, columns=named, items="goods.csv")
    assert [(item.identifier, dict(item.attributes)) for item in found.items] == [
        ("s0", {"title": "A", "brand": "x"}),
        ("s1", {"title": "B", "brand": "y"}),
        ("s2", {"title": "C"}),
    ]
    goods.write_text("Item No.,title,size\ns0,A,1\ns1,B,2\ns2,C,3\n")
    found = load_dataset(path, columns={**COLUMNS, "id": "Item No."}, items="goods.csv")
    assert dict(found.items[0].attributes) == {"title": "A", "size": "1"}
    with pytest.raises(
        DataError, match=r"goods\.csv, line 1: no column 'sku'; .* as in {id: sku, title: name, brand: maker}"
    ):
        load_dataset(path, columns=COLUMNS, items="goods.csv")


def test_a_table_without_titles_says_where_they_are_named(tmp_path: Path) -> None:
    path = shop(tmp_path / "shop.csv", [1, 2, 3])
    with pytest.raises(
        DataError, match=r"give each an attribute 'title', or of a table name its column, .* as data\.items"
    ):
        load_dataset(path, columns=COLUMNS)


@pytest.mark.parametrize("role", ["\ud800", "\0", "a\nb"])
def test_roles_that_are_no_text(tmp_path: Path, role: str) -> None:
    path = shop(tmp_path / "shop.csv", [1, 2, 3])
    with pytest.raises(
        DataError, match=r"data\.columns maps the role '.*', which cannot be printed; name it otherwise"
    ):
        read(path, **{role: "stars"})


def test_ratings(tmp_path: Path) -> None:
    path = shop(tmp_path / "shop.csv", [1, 2, 3, 4, 5])
    assert read_source(path, Rules(columns=COLUMNS)).ratings is None
    found = load_dataset(path, columns={**COLUMNS, "title": "name", "rating": "stars"}, min_rating=3)
    assert [item.identifier for item in found.items] == [f"s{k}" for k in range(5)]
    assert found.sequences[0].tolist() == [2, 3, 4]
    with pytest.raises(DataError, match=r"the interactions of shop have no ratings; remove data\.min_rating"):
        load_dataset(path, columns={**COLUMNS, "title": "name"}, min_rating=3)


def test_folders_of_tables(tmp_path: Path) -> None:
    for suffix in (".csv", ".parquet"):
        shop(tmp_path / f"interactions{suffix}", [1, 2, 3])
    with pytest.raises(DataError, match=r"holds several tables of interactions; name the file as data.source"):
        read(tmp_path)
    (tmp_path / "interactions.csv").unlink()
    assert len(read(tmp_path).sequences[0]) == 3
    (tmp_path / "shop.xlsx").write_text("x")
    with pytest.raises(DataError, match=r"shop\.xlsx has none of the suffixes \.csv, \.tsv, \.parquet"):
        read(tmp_path / "shop.xlsx")
