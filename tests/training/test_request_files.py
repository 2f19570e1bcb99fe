"""Files of histories and of recommendations: conversion between all formats, invalid rows, interruptions."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from dasearch.errors import DataError, Interrupted, ModelFolderError
from dasearch.export.plain import code
from dasearch.training import request_files
from dasearch.training.request_files import ANSWER_COLUMNS, READERS, Progress, answer_file, history_of
from tests.training.studies import recommender

FORMS = tuple(READERS)
RNG = np.random.default_rng(0)
RECORDS: list[dict[str, Any]] = [
    {"history": [f"item{i}" for i in RNG.integers(40, size=RNG.integers(1, 8))], "user": user, "id": f"é{n}"}
    for n, user in enumerate([None, "u1", "u2", None, "u3", "u4", "u5", None, None, "u6", "u7"])
]


def written(path: Path, records: Sequence[dict[str, Any] | str]) -> Path:
    if path.suffix == ".parquet":
        pl.DataFrame(records).write_parquet(path, row_group_size=3)
        return path
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    content = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pl.read_parquet(path, glob=False).to_dicts()
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in content.decode().splitlines()]


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make eleven rows span several pieces, slices and parts."""
    monkeypatch.setattr(request_files, "PIECE_BATCHES", 2)
    monkeypatch.setattr(request_files, "ROWS_AT_ONCE", 5)
    monkeypatch.setattr(request_files, "CHECKED_AT_ONCE", 4)


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("to", FORMS)
@pytest.mark.parametrize("of", FORMS)
def test_every_format_into_every_other(tmp_path: Path, of: str, to: str) -> None:
    source, out = written(tmp_path / f"in[1]{of}", RECORDS), tmp_path / "deep" / f"out[1]{to}"
    heard: list[Progress] = []
    done = answer_file(recommender("darec"), source, out=out, k=3, batch_size=2, listen=heard.append)
    assert done[:4] == (11, 11, 0, "")
    assert [(one.done, one.total) for one in heard] == [(4, None), (8, None), (4, 11), (8, 11), (11, 11)]
    users = [record["user"] for record in RECORDS]
    wanted = recommender("darec").recommend_many([record["history"] for record in RECORDS], 3, users=users)
    found = read(out)
    assert [row["row"] for row in found] == list(range(1, 12))
    assert [row["id"] for row in found] == [record["id"] for record in RECORDS]
    assert [row.get("user") for row in found] == users
    for row, answer in zip(found, wanted, strict=True):
        assert row["items"] == [one.item for one in answer]
        assert row["scores"] == pytest.approx([one.score for one in answer], abs=1e-5)
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize("kind", ["idle", "ra-rec"])
def test_other_models_and_left_out_items(tmp_path: Path, kind: str) -> None:
    source, out = written(tmp_path / "in.jsonl", RECORDS), tmp_path / "out.jsonl"
    answer_file(recommender(kind), source, out=out, k=40)
    for row, record in zip(read(out), RECORDS, strict=True):
        assert len(row["items"]) == 40 - len(set(record["history"]))
        assert not set(row["items"]) & set(record["history"])


def test_missing_columns_and_integers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An id may be a number; missing users and ids are omitted in JSON and null in Parquet."""
    opened = recommender("darec")
    monkeypatch.setattr(opened, "_index", {str(position): position for position in range(40)})
    frame = pl.DataFrame(
        {"history": [[1, 2], [3, 4]], "other": [1.5, 2.5]}, schema_overrides={"history": pl.List(pl.UInt8)}
    )
    frame.write_parquet(tmp_path / "lists.parquet")
    frame.with_columns(pl.col("history").cast(pl.Array(pl.Int64, 2))).write_parquet(tmp_path / "arrays.parquet")
    frame.write_ndjson(tmp_path / "lists.jsonl")
    answers = []
    for name in ("lists.parquet", "arrays.parquet", "lists.jsonl"):
        answer_file(opened, tmp_path / name, out=tmp_path / f"{name}.out.parquet", k=2)
        answers.append(pl.read_parquet(tmp_path / f"{name}.out.parquet"))
    assert dict(answers[0].schema) == ANSWER_COLUMNS
    assert answers[0].equals(answers[1])
    assert answers[0].equals(answers[2])
    assert answers[0]["id"].null_count() == answers[0]["user"].null_count() == 2
    answer_file(opened, tmp_path / "lists.parquet", out=tmp_path / "out.jsonl", k=2)
    assert [sorted(row) for row in read(tmp_path / "out.jsonl")] == [["items", "row", "scores"]] * 2


BAD: list[tuple[dict[str, Any] | str, str]] = [
    ({"history": ["itm1"]}, "unknown item 'itm1'; did you mean item1?"),
    ({"history": []}, "the history is empty; give at least one item id"),
    ({"history": ["item1"], "user": "nobody"}, "unknown user 'nobody'"),
    ({"history": "item1,item2"}, "has no history that is a list of item ids; give it one, oldest first"),
    ({"history": ["item1", None]}, "has no history that is a list of item ids"),
    ({"history": [True]}, "has no history that is a list of item ids"),
    ({"items": ["item1"]}, "has no history that is a list of item ids"),
    ('{"history": ["item1"', 'is no JSON object; write {"history": ["ITEM", ...]}'),
    ('["item1"]', "is no JSON object"),
    ("[" * 100_000, "is no JSON object"),
]


@pytest.mark.parametrize(("record", "reason"), BAD, ids=lambda value: str(value)[:30])
def test_a_row_that_cannot_be_answered(tmp_path: Path, record: dict[str, Any] | str, reason: str) -> None:
    good = {"history": ["item1"], "id": 7}
    source, out = written(tmp_path / "in.jsonl", [good, record, "", good, record]), tmp_path / "out.jsonl"
    with pytest.raises(DataError) as refused:
        answer_file(recommender("darec"), source, out=out)
    assert f"{source}, row 2: {reason}" in str(refused.value)
    assert str(refused.value).endswith("(2 of 4 rows cannot be answered; --skip-bad leaves such rows out)")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    done = answer_file(recommender("darec"), source, out=out, skip_bad=True)
    assert done[:3] == (4, 2, 2)
    assert f"row 2: {reason}" in done.first_left_out
    assert [(row["row"], row["id"]) for row in read(out)] == [(1, "7"), (4, "7")]


def test_nulls_of_parquet(tmp_path: Path) -> None:
    pl.DataFrame({"history": [["item1"], None, ["item1", None]]}).write_parquet(tmp_path / "in.parquet")
    out = tmp_path / "out.parquet"
    done = answer_file(recommender("darec"), tmp_path / "in.parquet", out=out, skip_bad=True)
    assert done[:3] == (3, 1, 2)
    assert pl.read_parquet(out)["row"].to_list() == [1]


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_file_gives_an_empty_file(tmp_path: Path, form: str) -> None:
    empty = pl.DataFrame(schema={"history": pl.List(pl.String)})
    empty.write_parquet(tmp_path / "in.parquet")
    done = answer_file(recommender("darec"), tmp_path / "in.parquet", out=tmp_path / f"out{form}")
    assert done.rows == 0
    assert read(tmp_path / f"out{form}") == []


def test_half_a_surrogate_pair_in_an_id(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", ['{"history": ["item1"], "id": "\\ud800"}'])
    for form in FORMS:
        answer_file(recommender("darec"), source, out=tmp_path / f"out{form}", k=1)
        assert read(tmp_path / f"out{form}")[0]["id"] == "?"


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("word", "says"), [(0, "4 rows checked"), (3, "8 of 11 rows answered")])
def test_an_interruption_keeps_the_old_file(tmp_path: Path, form: str, word: int, says: str) -> None:
    source, out = written(tmp_path / "in.jsonl", RECORDS), tmp_path / f"out{form}"
    out.write_bytes(b"old")
    heard: list[Progress] = []

    def interrupt(progress: Progress) -> None:
        heard.append(progress)
        if len(heard) > word:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match=f"^interrupted, {says}; .*out{form} was not written$"):
        answer_file(recommender("darec"), source, out=out, overwrite=True, batch_size=2, listen=interrupt)
    assert out.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", out.name]


def test_an_existing_file_is_replaced_with_overwrite(tmp_path: Path) -> None:
    source, out = written(tmp_path / "in.jsonl", RECORDS), tmp_path / "out.jsonl"
    out.write_text("old")
    with pytest.raises(DataError, match=r"out\.jsonl exists; choose another file, or replace it with --overwrite"):
        answer_file(recommender("darec"), source, out=out)
    assert out.read_text() == "old"
    answer_file(recommender("darec"), source, out=out, overwrite=True)
    assert len(read(out)) == len(RECORDS)
    with pytest.raises(DataError, match=r"in\.jsonl is the input file; choose another file to write"):
        answer_file(recommender("darec"), source, out=source, overwrite=True)


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", RECORDS)
    (tmp_path / "text.parquet").write_text("text")
    pl.DataFrame({"history": ["item1"]}).write_parquet(tmp_path / "flat.parquet")
    pl.DataFrame({"items": [["item1"]]}).write_parquet(tmp_path / "other.parquet")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(source.read_bytes())[:-12])
    (tmp_path / "folder.jsonl").mkdir()
    for name, out, sentence in (
        (
            "in.csv",
            "out.jsonl",
            r"in\.csv has none of the suffixes \.parquet, \.jsonl, \.jsonl\.gz, which determine its format",
        ),
        ("in.jsonl", "out.txt", r"out\.txt has none of the suffixes"),
        ("none.jsonl", "out.jsonl", r"there is no file .*none\.jsonl"),
        ("text.parquet", "out.jsonl", r"text\.parquet cannot be read as Parquet \(.+\); write it again"),
        ("flat.parquet", "out.jsonl", r"flat\.parquet has String as column 'history'; write lists of item ids there"),
        ("other.parquet", "out.jsonl", r"other\.parquet has no column 'history'; write lists of item ids there"),
        ("cut.jsonl.gz", "out.jsonl", r"cut\.jsonl\.gz, after line \d+: cannot be read"),
        ("in.jsonl", "folder.jsonl", r"folder\.jsonl is a folder; choose another file to write"),
        ("in.jsonl", "in.jsonl/out.jsonl", r"in\.jsonl/out\.jsonl cannot be written \(.+\); choose another place"),
    ):
        with pytest.raises(DataError, match=sentence):
            answer_file(recommender("darec"), tmp_path / name, out=tmp_path / out)
    assert not (tmp_path / "out.jsonl").exists()
    with pytest.raises(ModelFolderError, match="k is 0"):
        answer_file(recommender("darec"), source, out=tmp_path / "out.jsonl", k=0)


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("a,b", ["a", "b"]),
        (" a , b,", ["a", "b"]),
        ("x,y", ["x,y"]),
        ("a, outer ,b", ["a", " outer ", "b"]),
        ('["x,y", "a", 7]', ["x,y", "a", "7"]),
        ('[" outer "]', [" outer "]),
        ("[1]", ["[1]"]),
        ("nobody, b", ["nobody", "b"]),
        ("[nobody", ["[nobody"]),
        ('{"a": 1}', ['{"a": 1}']),
        ("", []),
        (",", []),
    ],
)
def test_a_history_in_one_text(text: str, items: list[str]) -> None:
    known = {"a", "b", "x,y", " outer ", "[1]", "7"}
    assert history_of(text, known) == items
    written: dict[str, Any] = {}
    exec(code({}, "row_of.jinja") + "\nimport json", written)
    assert written["history_of"](text, known) == items
