"""Shuffled and reduced ties follow who and what the events are, not how a file numbers or orders them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasearch.data import Ties, load_dataset
from dasearch.data.events import Events, identity_keys, ordered, seeded_hash

ITEMS = [f"i{k}" for k in range(8)]
BASKETS = [("ann", item, time) for time in (1, 2, 3) for item in ITEMS[:6]]


def write(folder: Path, rows: list[tuple[str, str, int]], untitled: tuple[str, ...] = ()) -> Path:
    folder.mkdir()
    lines = ["user_id\titem_id\ttimestamp", *(f"{u}\t{i}\t{t}" for u, i, t in rows)]
    records = [{"item_id": i, "attributes": {"brand": "b"} if i in untitled else {"title": i}} for i in ITEMS]
    (folder / "interactions.tsv").write_text("\n".join(lines) + "\n")
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    return folder


def history(folder: Path, user: str, ties: Ties) -> list[str]:
    found = load_dataset(folder, ties=ties, seed=3)
    sequence = found.sequences[found.users.index(user)]
    return [found.items[item].identifier for item in sequence]


@pytest.mark.parametrize("ties", [Ties.SHUFFLE, Ties.ONE])
def test_a_user_is_the_same_whoever_else_is_in_the_file(tmp_path: Path, ties: Ties) -> None:
    others = [(user, item, 1) for user in ("zoe", "bob", "eve") for item in ITEMS]
    alone, among = write(tmp_path / "alone", BASKETS), write(tmp_path / "among", [*others, *BASKETS])
    assert history(alone, "ann", ties) == history(among, "ann", ties)


@pytest.mark.parametrize("ties", [Ties.SHUFFLE, Ties.ONE])
def test_the_order_of_the_file_does_not_matter(tmp_path: Path, ties: Ties) -> None:
    first, last = write(tmp_path / "first", BASKETS), write(tmp_path / "last", BASKETS[::-1])
    assert history(first, "ann", ties) == history(last, "ann", ties)


def test_one_never_keeps_an_untitled_item_in_place_of_a_titled_one(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", BASKETS, untitled=tuple(ITEMS[:5]))
    assert history(folder, "ann", Ties.ONE) == ["i5", "i5", "i5"]


@given(st.lists(st.integers(0, 2), min_size=2, max_size=12), st.integers(0, 50))
def test_repeats_at_one_time_all_stay(items: list[int], seed: int) -> None:
    zeros = np.zeros(len(items), dtype=np.int64)
    table = Events(zeros, np.array(items, dtype=np.int64), zeros)
    found = ordered(table, Ties.SHUFFLE, seed=seed, user_keys=identity_keys(["u"]), item_keys=identity_keys("abc"))
    assert sorted(found.items.tolist()) == sorted(items)


def test_repeats_are_shuffled_apart() -> None:
    """Of three events at one time, two of them equal, the third is in the middle a third of the time."""
    users = np.repeat(np.arange(900), 3)
    table = Events(users, np.tile(np.array([0, 0, 1]), 900), np.zeros(2700, dtype=np.int64))
    found = ordered(table, Ties.SHUFFLE, seed=0).items.reshape(900, 3)
    assert 230 < (found[:, 1] == 1).sum() < 370  # 300 expected, sd 14


def test_the_hash_is_splitmix64_and_stays_so() -> None:
    """First output of the reference generator (Vigna 2015) for state 0; keys are blake2b's first eight bytes."""
    assert int(seeded_hash(np.zeros(1, dtype=np.int64), seed=0)[0]) == 0xE220A8397B1DCDAF
    assert len({int(key) for key in identity_keys(str(k) for k in range(10_000))}) == 10_000
    assert identity_keys([]).shape == (0,)
