"""Filters of a study against plain loops over rows."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasearch.config import parse_data, parse_study
from dasearch.data import Core, Duplicates, Item, Rules, Ties, load_dataset
from dasearch.data.assembly import assemble
from dasearch.data.events import Events, first_of_pairs
from dasearch.data.readers import Raw
from dasearch.errors import DataError, StudyError
from dasearch.search.study import Study
from tests.data.forms import FORMS

Rows = list[tuple[int, int, int]]  # user, item, time
tables = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=60)


def raw(rows: Rows, ratings: list[float] | None = None) -> Raw:
    items = [Item(f"i{k}", {"title": f"t{k}"}) for k in range(6)]
    stars = None if ratings is None else np.array(ratings, dtype=np.float32)
    return Raw("r", "here", [f"u{k}" for k in range(6)], items, Events(*np.array(rows, dtype=np.int64).T), stars)


def kept(rows: Rows, rules: Rules, ratings: list[float] | None = None) -> Rows:
    """Rows after the rules, by user and time; empty where no user is left."""
    try:
        found = assemble(raw(rows, ratings), dataclasses.replace(rules, ties=Ties.KEEP))
    except DataError:  # the only one that these rules can meet: nobody is left
        return []
    identifiers = [int(item.identifier[1:]) for item in found.items]
    return [
        (int(user[1:]), identifiers[item], time)
        for user, items, times in zip(found.users, found.sequences, found.timestamps, strict=True)
        for item, time in zip(items.tolist(), times.tolist(), strict=True)
    ]


def drop(rows: Rows, column: int, minimum: int) -> Rows:
    counts = collections.Counter(row[column] for row in rows)
    return [row for row in rows if counts[row[column]] >= minimum]


def by_user_and_time(rows: Rows) -> Rows:
    return sorted(rows, key=lambda row: (row[0], row[2]))


@given(tables, st.integers(0, 5), st.integers(0, 6))
def test_one_pass_and_k_core(rows: Rows, min_item: int, min_user: int) -> None:
    users = max(3, min_user)
    once = drop(drop(rows, 1, min_item), 0, users)
    rules = Rules(min_item_interactions=min_item, min_user_interactions=min_user)
    assert kept(rows, rules) == by_user_and_time(once)
    core = rows
    while (less := drop(drop(core, 1, min_item), 0, users)) != core:
        core = less
    assert kept(rows, dataclasses.replace(rules, core=Core.ITERATED)) == by_user_and_time(core)


@given(tables)
def test_the_catalogue_of_a_core_has_no_rare_item(rows: Rows) -> None:
    rules = Rules(min_item_interactions=3, core=Core.ITERATED)
    left = kept(rows, rules)
    if left:
        found = assemble(raw(rows), rules)
        counts = collections.Counter(item for _, item, _ in left)
        assert {int(item.identifier[1:]) for item in found.items} == set(counts)
        assert min(counts.values()) >= 3


@given(tables)
def test_first_of_a_pair_is_the_earliest_and_file_order_stays(rows: Rows) -> None:
    expected = [
        k
        for k, (u, i, t) in enumerate(rows)
        if not any((u, i) == other[:2] and (other[2], place) < (t, k) for place, other in enumerate(rows))
    ]
    found = first_of_pairs(Events(*np.array(rows, dtype=np.int64).T))
    assert list(zip(found.users, found.items, found.timestamps, strict=True)) == [rows[k] for k in expected]
    assert kept(rows, Rules(duplicates=Duplicates.FIRST)) == by_user_and_time(drop([rows[k] for k in expected], 0, 3))


@given(tables, st.data())
def test_ratings(rows: Rows, data: st.DataObject) -> None:
    ratings = data.draw(
        st.lists(st.sampled_from([1.0, 3.5, 5.0, float("nan")]), min_size=len(rows), max_size=len(rows))
    )
    liked = [row for row, rating in zip(rows, ratings, strict=True) if rating >= 3.5]
    assert kept(rows, Rules(min_rating=3.5), ratings) == by_user_and_time(drop(liked, 0, 3))


def test_rules_that_leave_nobody_or_cannot_be(tmp_path: Path) -> None:
    source = FORMS["plain"].write(tmp_path / "data")
    with pytest.raises(DataError, match=r"no user has 9 interactions left after the filters; .* min_user_interactions"):
        load_dataset(source, min_user_interactions=9)
    with pytest.raises(DataError, match=r"no user has 3 interactions left .*, which leave-one-out needs"):
        load_dataset(source, min_item_interactions=5, core="iterated")
    with pytest.raises(DataError, match=r"interactions of data have no ratings; remove data\.min_rating"):
        load_dataset(source, min_rating=1)
    with pytest.raises(ValueError, match="'frist' is not a valid Duplicates"):
        load_dataset(source, duplicates="frist")


def test_a_study_passes_every_rule() -> None:
    changes = {
        "format": "table",
        "columns": {"user": "u"},
        "items": "i.csv",
        "min_rating": 2.5,
        "duplicates": "first",
        "ties": "one",
        "min_item_interactions": 4,
        "min_user_interactions": 5,
        "core": "iterated",
    }
    found = parse_data("x", [f"data.{key}={value}" for key, value in changes.items()]).rules(seed=3)
    assert found == Rules(seed=3, **changes)
    assert {field.name for field in dataclasses.fields(Rules)} == {*changes, "seed", "require_title"}
    assert parse_data("x").rules(seed=0) == Rules()
    with pytest.raises(
        StudyError, match=r"--set data\.duplicate=first: unknown key data\.duplicate; did you mean duplicates\?"
    ):
        parse_data("x", ["data.duplicate=first"])


def test_a_study_reads_another_source_in_the_form_it_has(tmp_path: Path) -> None:
    settings = {"source": str(FORMS["2018-core"].write(tmp_path / "own")), "format": "amazon-2018", "ties": "keep"}
    study = Study(parse_study({"name": "x", "data": settings}))
    other = FORMS["plain"].write(tmp_path / "other")
    assert [s.tolist() for s in study.dataset(str(other)).sequences] == [s.tolist() for s in study.dataset().sequences]
    rules = Rules(columns={"user": "u"}, format="table")
    assert rules.elsewhere() == rules
