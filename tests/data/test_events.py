"""Ties and order."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dasearch.data.events import Events, Ties, ordered, sample_users
from tests.conftest import toy_dataset

tables = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 4)), min_size=1, max_size=40)


def events(rows: list[tuple[int, int, int]]) -> Events:
    return Events(*np.array(rows, dtype=np.int64).T)


def rows_of(table: Events) -> list[tuple[int, int, int]]:
    return list(zip(table.users.tolist(), table.timestamps.tolist(), table.items.tolist(), strict=True))


@given(tables)
def test_keep_is_a_stable_sort(rows: list[tuple[int, int, int]]) -> None:
    expected = sorted(((u, t, i) for u, i, t in rows), key=lambda row: row[:2])
    assert rows_of(ordered(events(rows), Ties.KEEP, seed=0)) == expected


@given(tables, st.integers(0, 99))
def test_shuffle_permutes_within_ties_only(rows: list[tuple[int, int, int]], seed: int) -> None:
    found = rows_of(ordered(events(rows), Ties.SHUFFLE, seed=seed))
    assert sorted(found) == sorted((u, t, i) for u, i, t in rows)
    assert [row[:2] for row in found] == sorted(row[:2] for row in found)
    assert found == rows_of(ordered(events(rows), Ties.SHUFFLE, seed=seed))


@given(tables, st.integers(0, 99))
def test_one_keeps_one_a_time(rows: list[tuple[int, int, int]], seed: int) -> None:
    found = rows_of(ordered(events(rows), Ties.ONE, seed=seed))
    assert [row[:2] for row in found] == sorted({(u, t) for u, _, t in rows})
    assert set(found) <= {(u, t, i) for u, i, t in rows}


@given(tables, st.integers(0, 99))
def test_a_users_order_does_not_depend_on_other_users(rows: list[tuple[int, int, int]], seed: int) -> None:
    together = [row for row in rows_of(ordered(events(rows), Ties.SHUFFLE, seed=seed)) if row[0] == rows[0][0]]
    alone = [row for row in rows if row[0] == rows[0][0]]
    assert rows_of(ordered(events(alone), Ties.SHUFFLE, seed=seed)) == together


def test_shuffle_depends_on_the_seed_and_is_fair() -> None:
    rows = [(u, i, 0) for u in range(400) for i in (0, 1)]
    first = ordered(events(rows), Ties.SHUFFLE, seed=1).items.reshape(-1, 2)[:, 0]
    second = ordered(events(rows), Ties.SHUFFLE, seed=2).items.reshape(-1, 2)[:, 0]
    assert 140 < first.sum() < 260  # 200 expected, sd 10
    assert 120 < (first == second).sum() < 280


def test_a_sample_of_users_is_theirs_alone() -> None:
    """Who is drawn depends on who they are; their items keep identity and order."""
    dataset = toy_dataset(60, 40)
    found = sample_users(dataset, 10, seed=3)
    assert len(found.users) == 10
    for user, sequence in zip(found.users, found.sequences, strict=True):
        original = dataset.sequences[dataset.users.index(user)]
        assert [found.items[i].identifier for i in sequence] == [dataset.items[i].identifier for i in original]
    assert {i for s in found.sequences for i in s.tolist()} == set(range(len(found.items)))
    assert sample_users(dataset, 10, seed=4).users != found.users
    assert set(sample_users(dataset, 5, seed=3).users) < set(found.users)
    assert sample_users(dataset, 60, seed=3) is dataset
