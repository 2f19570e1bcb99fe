"""What people's own files hold: absent values, lists, numbers as floats, quotes. Nothing vanishes without a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from dasearch.data import Rules, Ties, convert, load_dataset, read_source, statistics
from dasearch.data.raw import Raw
from dasearch.errors import DataError
from tests.data.forms import FORMS, SEQUENCES, TITLES
from tests.data.test_reader_contract import WITHOUT_TIMES, sequences

ITEM_LINES = {  # a catalogue's record with a field for a value, and the attribute that the field becomes
    "plain": ("items.jsonl", '{"item_id": "i9", "attributes": {"title": "T", "brand": VALUE}}', "brand"),
    "2018-core": ("meta_Arts.json", '{"asin": "i9", "title": "T", "brand": VALUE}', "brand"),
    "2018-ratings": ("meta_Arts.json", '{"asin": "i9", "title": "T", "categories": VALUE}', "category"),
    "2023-reviews": ("meta_Arts.jsonl", '{"parent_asin": "i9", "title": "T", "store": VALUE}', "brand"),
    "2023-core": ("meta_Arts.jsonl", '{"parent_asin": "i9", "title": "T", "categories": VALUE}', "category"),
}


def attributes(raw: Raw, identifier: str) -> dict[str, str]:
    return next(dict(item.attributes) for item in raw.items if item.identifier == identifier)


def one_value(folder: Path, name: str, value: str) -> dict[str, str]:
    """Attributes of an item in the format ``name`` with one field set to the JSON ``value``."""
    if name == "recformer":
        source = FORMS[name].write(folder)
        (source / "meta_data.json").write_text('{"i9": {"title": "T", "brand": VALUE}}'.replace("VALUE", value))
        return attributes(read_source(source, Rules()), "i9")
    file, line, _ = ITEM_LINES[name]
    source = FORMS[name].write(folder)
    FORMS[name].add(source, file, line.replace("VALUE", value))
    return attributes(read_source(source, Rules()), "i9")


@pytest.mark.parametrize("name", [*ITEM_LINES, "recformer"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("null", None),
        ("NaN", None),
        ("[]", None),
        ("[null, NaN]", None),
        ('"nan"', "nan"),  # a brand of that name is the user's
        ('"Arts"', "Arts"),
        ('["A", "B"]', "A B"),
        ('[["A", "B"], ["A", null, "C"]]', "A B A C"),
        ("7", "7"),
    ],
)
def test_values_of_records(tmp_path: Path, name: str, value: str, expected: str | None) -> None:
    attribute = ITEM_LINES[name][2] if name in ITEM_LINES else "brand"
    found = one_value(tmp_path, name, value)
    assert found.get(attribute) == expected
    assert found["title"] == "T"


@pytest.mark.parametrize("name", [*ITEM_LINES, "recformer"])
@pytest.mark.parametrize("value", ['{"name": "x"}', "[0.5, 0.25]", '[{"name": "x"}]'])
def test_values_that_are_no_text(tmp_path: Path, name: str, value: str) -> None:
    field = {"2018-ratings": "category", "2023-core": "category"}.get(name, "brand")
    with pytest.raises(DataError, match=rf"(line \d+|item 'i9'): {field} holds .*, which is not text; ") as error:
        one_value(tmp_path, name, value)
    assert "\n" not in str(error.value)


def goods(path: Path, **columns: Any) -> Path:
    """Write an item table and a table of interactions; returns the path of the latter."""
    pl.DataFrame({"item_id": ["a", "b", "c"], "title": ["A", "B", "C"], **columns}).write_parquet(
        path / "goods.parquet"
    )
    log = path / "log.csv"
    log.write_text("user_id,item_id,timestamp\nu,a,1\nu,b,2\nu,c,3\n")
    return log


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ([["x", "y"], [], None], ["x y", None, None]),
        ([["x", None, " "], ["y"], ["z", ""]], ["x", "y", "z"]),
        ([[["x"], ["y", "z"]], None, [[]]], ["x y z", None, None]),
        ([float("nan"), 1.5, 2.0], [None, "1.5", "2.0"]),
        ([None, "nan", ""], [None, "nan", None]),
        (pl.Series(["x", None, "y"], dtype=pl.Categorical), ["x", None, "y"]),
        ([True, False, None], ["true", "false", None]),
    ],
)
def test_columns_of_parquet(tmp_path: Path, column: Any, expected: list[str | None]) -> None:
    found = read_source(goods(tmp_path, kind=column), Rules(items="goods.parquet"))
    assert [item.attributes.get("kind") for item in found.items] == expected


@pytest.mark.parametrize(
    "column",
    [
        [{"x": 1}, {"x": 2}, None],
        [[{"x": 1}], [], []],
        [[0.5], [0.25], None],
        pl.Series([[1, 2], [3, 4], [5, 6]], dtype=pl.Array(pl.Int64, 2)),
        [b"x", b"y", b"z"],
    ],
)
def test_columns_of_parquet_that_are_no_text(tmp_path: Path, column: Any) -> None:
    path = goods(tmp_path, vector=column)
    with pytest.raises(DataError, match=r"goods\.parquet: column 'vector' holds .*, which is not text; ") as error:
        load_dataset(path, items="goods.parquet")
    assert "\n" not in str(error.value)
    named = {"user": "user_id", "item": "item_id", "timestamp": "timestamp", "title": "title"}
    assert len(load_dataset(path, items="goods.parquet", columns=named).items) == 3  # which leaves the column out


# --- identifiers --------------------------------------------------------------------------------------------------


def plain(folder: Path, ids: list[str], catalogue: list[object], users: list[str] | None = None) -> Path:
    """A plain folder of one user's interactions with ``ids`` and items ``catalogue``."""
    folder.mkdir(exist_ok=True)
    people = users or ["u"] * len(ids)
    rows = "".join(f"{user}\t{item}\t{time}\n" for time, (user, item) in enumerate(zip(people, ids, strict=True)))
    (folder / "interactions.tsv").write_text(f"user_id\titem_id\ttimestamp\n{rows}", encoding="utf-8", newline="\n")
    records = [{"item_id": item, "attributes": {"title": f"T{item}"}} for item in catalogue]
    (folder / "items.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.mark.parametrize(
    ("ids", "catalogue"),
    [
        (["1.0", "2.0", "3.0"], [1, 2, 3]),
        (["1", "2.0", "3.0"], ["1", "2", "3"]),
        (["1", "2", "3"], [1.0, 2.0, 3.0]),
        (["1", "2", "3"], ["1.0", "2.0", "3.0"]),
        (["1.0", "2.0", "3.0"], ["1.0", "2.0", "3.0"]),
    ],
)
def test_whole_floats_of_a_numeric_column_are_integers(tmp_path: Path, ids: list[str], catalogue: list[object]) -> None:
    found = load_dataset(plain(tmp_path, ids, catalogue))
    assert sequences(found) == {"u": ["1", "2", "3"]}
    assert found.remarks == ()


def test_users_too(tmp_path: Path) -> None:
    found = load_dataset(plain(tmp_path, ["a", "b", "c"], ["a", "b", "c"], ["7", "7.0", "7.0"]))
    assert sequences(found) == {"7": ["a", "b", "c"]}


def test_names_that_look_like_floats_stay(tmp_path: Path) -> None:
    """A column with a fraction or a word is not a column of whole numbers."""
    for ids in (["1.0", "1.5", "2.0"], ["1.0", "2.0", "x"], ["1.0", "01", "2.0"]):
        found = load_dataset(plain(tmp_path / ids[1], ids, list(ids)))
        assert sequences(found) == {"u": ids}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_floats_of_a_table(tmp_path: Path, suffix: str) -> None:
    log = pl.DataFrame({"user_id": [1.0, 1.0, 1.0], "item_id": [2.0, 1e17, 3.0], "timestamp": [1, 2, 3]})
    things = pl.DataFrame({"item_id": [2, 10**17, 3], "title": ["A", "B", "C"]})
    for frame, name in ((log, "log"), (things, "things")):
        path = tmp_path / f"{name}{suffix}"
        frame.write_parquet(path) if suffix == ".parquet" else frame.write_csv(path, float_scientific=False)
    found = load_dataset(tmp_path / f"log{suffix}", items=f"things{suffix}")
    assert sequences(found) == {"1": ["2", str(10**17), "3"]}


def test_a_share_of_unknown_items_is_said(tmp_path: Path) -> None:
    source = plain(tmp_path / "data", ["a", "b", "c", "x", "y"], ["a", "b", "c"])
    found = load_dataset(source)
    assert sequences(found) == {"u": ["a", "b", "c"]}
    (remark,) = found.remarks
    assert remark.startswith("2 of 5 interactions (40%) are with items that ")
    assert "items.jsonl lacks, such as 'x'" in remark
    assert statistics(found).remarks == found.remarks
    assert "have no attributes" in load_dataset(source, require_title=False).remarks[0]
    convert(source, Rules(), out=tmp_path / "out")
    assert load_dataset(tmp_path / "out").remarks[0].replace("items.jsonl.gz", "items.jsonl") == remark


@pytest.mark.parametrize("ids", [["a", "x", "y", "z"], ["x-1", "y-1", "z-1"]])
def test_more_than_half_unknown_is_refused(tmp_path: Path, ids: list[str]) -> None:
    source = plain(tmp_path, ids, ["a", "b", "c"])
    with pytest.raises(
        DataError, match=r"3 of \d interactions .* lacks, such as 'x(-1)?', where it has 'a'; "
    ) as error:
        load_dataset(source)
    assert "\n" not in str(error.value)
    assert len(load_dataset(source, require_title=False).items) == 3 + len(set(ids) - {"a"})


def test_untitled_items_are_said_to_be_dropped(tmp_path: Path) -> None:
    source = plain(tmp_path, ["a", "b", "c", "d"], ["a", "b", "c"])
    with (source / "items.jsonl").open("a") as file:
        file.write('{"item_id": "d", "attributes": {"title": "", "brand": "B"}}\n')
    assert load_dataset(source).remarks == (
        "1 of 4 interactions (25%) are with items without a title, such as 'd'; they are dropped "
        "(data.require_title=false keeps them)",
    )


BLANKS = ["", " ", "\u00a0"]


@pytest.mark.parametrize("blank", BLANKS)
@pytest.mark.parametrize("role", ["user", "item"])
@pytest.mark.parametrize("name", [key for key, form in FORMS.items() if form.name not in WITHOUT_TIMES])
def test_blank_identifiers(tmp_path: Path, name: str, role: str, blank: str) -> None:
    form = FORMS[name]
    source = form.write(tmp_path)
    row = form.row(blank, "i1", "5") if role == "user" else form.row("ann", blank, "5")
    line = form.add(source, form.interactions, row)
    with pytest.raises(
        DataError, match=rf"{form.interactions}, line {line}: {role} is empty; correct the row or drop it"
    ):
        load_dataset(source)


@pytest.mark.parametrize("name", ["plain", "2018-core", "2023-reviews"])
@pytest.mark.parametrize("blank", ['""', "null", "NaN", '" "'])
def test_blank_items_of_catalogues(tmp_path: Path, name: str, blank: str) -> None:
    file, record, _ = ITEM_LINES[name]
    source = FORMS[name].write(tmp_path)
    line = FORMS[name].add(source, file, record.replace('"i9"', blank).replace("VALUE", "1"))
    with pytest.raises(DataError, match=rf"{file}, line {line}: "):
        load_dataset(source)


REPEATS = {
    "plain": ("items.jsonl", '{"item_id": "i1", "attributes": {"title": "again"}}'),
    "2018-core": ("meta_Arts.json", '{"asin": "i1", "title": "again"}'),
    "2023-core": ("meta_Arts.jsonl", '{"parent_asin": "i1", "title": "again"}'),
    "ml-100k": ("u.item", "i1|again|1-1-1995||http|0|1|0"),
    "ml-1m": ("movies.dat", "i1::again::Action"),
    "ml-csv": ("movies.csv", "i1,again,Action"),
    "recbole": ("ml.item", "i1\tagain\t1995\t1.5\tAction"),
    "unisrec": ("Arts.text", "i1\tagain"),
}


@pytest.mark.parametrize("name", REPEATS)
def test_an_item_that_stands_twice_counts_once_and_is_said(tmp_path: Path, name: str) -> None:
    file, line = REPEATS[name]
    source = FORMS[name].write(tmp_path)
    FORMS[name].add(source, file, line)
    found = load_dataset(source, ties=Ties.KEEP)
    assert sequences(found) == SEQUENCES
    assert len({item.identifier for item in found.items}) == len(found.items) == len(TITLES)
    assert attributes(read_source(source, Rules()), "i1")["title"] == TITLES["i1"]
    (remark,) = found.remarks
    assert f"{file} holds 1 item again, such as 'i1'; of each the first counts" in remark


def test_a_table_of_items_that_stand_twice(tmp_path: Path) -> None:
    path = goods(tmp_path)
    (tmp_path / "goods.csv").write_text("item_id,title\na,A\nb,B\nc,C\nb,again\n")
    (remark,) = load_dataset(path, items="goods.csv").remarks
    assert "goods.csv holds 1 item again, such as 'b'; of each the first counts" in remark


def test_a_table_row_without_an_item(tmp_path: Path) -> None:
    path = goods(tmp_path)
    (tmp_path / "goods.csv").write_text("item_id,title\na,A\n,lost\nb,B\nc,C\n")
    with pytest.raises(DataError, match=r"goods\.csv, line 3: item is empty; correct the row or drop it"):
        load_dataset(path, items="goods.csv")


def test_a_key_twice_in_a_file_of_one_object(tmp_path: Path) -> None:
    source = FORMS["recformer"].write(tmp_path)
    (source / "meta_data.json").write_text('{"i1": {"title": "A"}, "i1": {"title": "B"}}')
    with pytest.raises(DataError, match=r"meta_data\.json: the key 'i1' occurs twice; keep one"):
        load_dataset(source)


# --- lines and quotes ---------------------------------------------------------------------------------------------


def test_a_lone_carriage_return_cuts_nothing(tmp_path: Path) -> None:
    for name, file, line in (
        ("unisrec", "Arts.text", "i9\tone\rtwo"),
        ("ml-1m", "movies.dat", "i9::one\rtwo::Action"),
        ("ml-csv", "movies.csv", "i9,one\rtwo,Action"),
        ("ml-csv", "movies.csv", 'i9,"one\rtwo",Action'),
        ("recbole", "ml.item", "i9\tone\rtwo\t1995\t1.5\tAction"),
    ):
        source = FORMS[name].write(tmp_path / name)
        with (source / file).open("ab") as out:
            out.write(f"{line}\n".encode())
        assert attributes(read_source(source, Rules()), "i9")["title"].split() == ["one", "two"], name


def test_lines_that_end_as_on_windows(tmp_path: Path) -> None:
    for name, form in FORMS.items():
        source = form.write(tmp_path / name)
        for path in source.iterdir():
            path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
        found = load_dataset(source, ties=Ties.KEEP)
        assert sequences(found) == SEQUENCES, name
        assert not any("\r" in text for item in found.items for text in item.attributes.values()), name


@pytest.mark.parametrize("packed", [False, True])
def test_quotes_of_a_tsv_stand_as_they_are(tmp_path: Path, packed: bool) -> None:
    content = 'user_id\titem_id\ttimestamp\ttitle\nu\ta\t1\t"Heroes\nu\tb\t2\tB\nu\tc\t3\t"C"\nu\td\t4\tsay "d"\n'
    path = tmp_path / "log.tsv"
    path.write_text(content)
    found = load_dataset(path)
    assert sequences(found) == {"u": ["a", "b", "c", "d"]}
    assert [item.attributes["title"] for item in found.items] == ['"Heroes', "B", '"C"', 'say "d"']


@pytest.mark.parametrize("row", ["u\tb", 'u\tb\t2\t"two', "u\tb\t2\tB\tmore"])
def test_rows_of_a_tsv_that_are_not_whole(tmp_path: Path, row: str) -> None:
    path = tmp_path / "log.tsv"
    path.write_text(f'user_id\titem_id\ttimestamp\ttitle\nu\ta\t1\tA\n{row}\nlines"\nu\tc\t3\tC\n')
    line = 4 if '"two' in row else 3
    with pytest.raises(DataError, match=rf"log\.tsv, line {line}: \d columns where the first line has 4"):
        load_dataset(path)


@pytest.mark.parametrize("name", ["table", "goods"])
def test_rows_inside_a_cell_of_a_csv_are_refused(tmp_path: Path, name: str) -> None:
    """A title that begins with a quote, and another one rows later."""
    path = goods(tmp_path)
    (tmp_path / "goods.csv").write_text('item_id,title\na,"Heroes\nb,B\nd,D\nc,C"\n')
    (tmp_path / "table.csv").write_text('user_id,item_id,timestamp,title\nu,a,1,"Heroes\nu,b,2,B\nu,c,3,C"\nu,d,4,D\n')
    with pytest.raises(DataError, match=rf"{name}\.csv, line \d: a quoted cell holds what looks like rows; ") as error:
        load_dataset(tmp_path / "table.csv") if name == "table" else load_dataset(path, items="goods.csv")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("line", ['i9,Title,"Action', 'i9,"Title" x,Action', 'i9,"Title,Action'])
def test_a_quoted_cell_that_does_not_end(tmp_path: Path, line: str) -> None:
    source = FORMS["ml-csv"].write(tmp_path)
    number = FORMS["ml-csv"].add(source, "movies.csv", line)
    with pytest.raises(DataError, match=rf"movies\.csv, line {number}: "):
        load_dataset(source)


# --- times --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [key for key, form in FORMS.items() if form.name not in WITHOUT_TIMES])
def test_fractions_of_a_second_keep_their_order(tmp_path: Path, name: str) -> None:
    form = FORMS[name]
    source = form.write(tmp_path)
    start = 90_000 if form.name == "amazon-2023" else 90  # milliseconds there
    for item, time in (("i4", start + 0.75), ("i2", start + 0.5), ("i3", start + 1)):
        form.add(source, form.interactions, form.row("bob", item, str(time)))
    found = load_dataset(source, ties=Ties.KEEP)
    assert sequences(found)["bob"] == [*SEQUENCES["bob"], "i2", "i4", "i3"]
    assert found.timestamps[found.users.index("bob")][-3:].tolist() == [
        1_000_000 * start + part for part in (500_000, 750_000, 1_000_000)
    ]
