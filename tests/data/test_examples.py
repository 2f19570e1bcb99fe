"""Which training examples a study's rules leave: against plain loops."""

from __future__ import annotations

import collections

import numpy as np
import pytest
import torch

from dasearch.data import (
    Development,
    Examples,
    Item,
    example_plan,
    select_examples,
    training_plan,
)
from dasearch.data.examples import all_examples, bucket_pairs
from dasearch.errors import DataError
from tests.conftest import seeded, toy_format, toy_sentences

TITLES = ["red shoe", "Blue SHOE", "green hat", "hat rack", "rack, iron", "lamp"]
ITEMS = tuple(Item(f"i{k}", {"title": title}) for k, title in enumerate(TITLES))


def development(*sequences: list[int], users: list[int] | None = None) -> Development:
    train = tuple(np.array(sequence, dtype=np.int64) for sequence in sequences)
    people = np.array(users or range(len(train)), dtype=np.int64)
    return Development(people, train, np.zeros(len(train), dtype=np.int64), 20, len(ITEMS))


def pairs(examples: Examples) -> list[tuple[int, int]]:
    return list(zip(examples.users.tolist(), examples.cuts.tolist(), strict=True))


def test_all_of_them() -> None:
    found = all_examples(development([0, 1, 2], [3], [], [4, 5], users=[2, 5, 7, 9]))
    assert pairs(found) == [(2, 1), (2, 2), (9, 1)]


def test_overlap_keeps_targets_that_share_a_word() -> None:
    data = development([0, 1, 2, 3, 5], [5, 4, 3])
    found = select_examples(data, ITEMS, overlap=True, generator=seeded())
    assert pairs(found) == [(0, 1), (0, 3), (1, 2)]  # shoe; hat; rack


def test_nothing_left() -> None:
    with pytest.raises(DataError, match=r"no training example is left; loosen examples.overlap"):
        select_examples(development([0, 5], [2, 5]), ITEMS, overlap=True, generator=seeded())


def test_some_of_each() -> None:
    data = development([0, 1, 2, 3, 4, 5], [1, 2], [3, 3, 3, 3])
    found = select_examples(data, ITEMS, per_user=2, generator=seeded())
    assert collections.Counter(found.users.tolist()) == {0: 2, 1: 1, 2: 2}
    assert set(pairs(found)) <= set(pairs(all_examples(data)))
    again = select_examples(data, ITEMS, per_user=2, generator=seeded())
    assert pairs(again) == pairs(found)
    others = [pairs(select_examples(data, ITEMS, per_user=2, generator=seeded(k))) for k in range(5)]
    assert any(other != pairs(found) for other in others)


def test_an_even_share_of_every_kind() -> None:
    """Long rows and popular targets make most examples; drawn evenly, every kind is as frequent until it runs out."""
    rng = np.random.default_rng(0)
    popular = [0] * 60 + [1] * 25 + [2] * 9 + [3] * 4 + [4, 5]
    data = development(*[rng.choice(popular, size).tolist() for size in [3] * 20 + [6] * 20 + [40] * 10])
    everything = all_examples(data)
    groups = bucket_pairs(everything, data)
    found = select_examples(data, ITEMS, diverse=0.2, generator=seeded())
    assert len(found) == round(0.2 * len(everything))
    total = collections.Counter(groups.tolist())
    place = {pair: k for k, pair in enumerate(pairs(everything))}
    kept = collections.Counter(int(groups[place[pair]]) for pair in pairs(found))
    most = max(kept.values())
    for group, count in total.items():
        assert kept[group] >= min(count, most - 1)
    uneven = np.std(list(total.values())) / np.mean(list(total.values()))
    assert np.std(list(kept.values())) / np.mean(list(kept.values())) < 0.5 * uneven


def test_batches_of_examples() -> None:
    data = development([0, 1, 2, 3], [4, 5], [1, 1, 2], users=[3, 4, 8])
    examples = all_examples(data)
    sentences, row_format = toy_sentences(len(ITEMS)), toy_format()
    seen = {}
    plan = example_plan(data, examples, sentences, row_format)
    batches = list(plan.shuffled(2, seeded()))
    assert len(batches) == plan.n_batches(2) == 3
    for batch in batches:
        for row, place in enumerate(batch.examples.tolist()):
            history = batch.histories[row][batch.histories[row] >= 0].tolist()
            seen[int(batch.users[row]), len(history)] = (history, int(batch.at_last(batch.targets)[row]))
            assert (int(examples.users[place]), int(examples.cuts[place])) == (int(batch.users[row]), len(history))
    assert seen[3, 2] == ([0, 1], 2)
    assert seen[8, 2] == ([1, 1], 2)
    assert len(seen) == len(examples)


def test_examples_of_some_users() -> None:
    data = development([0, 1, 2, 3], [4, 5], [1, 1, 2], users=[3, 4, 8])
    examples = all_examples(data)
    some = Development(data.users[1:], data.train[1:], data.valid[1:], 20, len(ITEMS))
    batches = example_plan(some, examples, toy_sentences(len(ITEMS)), toy_format()).shuffled(9, seeded())
    assert sorted(torch.cat([batch.users for batch in batches]).tolist()) == [4, 8, 8]


def test_darec_counts_only_chosen_targets() -> None:
    data = development([0, 1, 2, 3], [4, 5])
    chosen = Examples(np.array([0, 0]), np.array([1, 3]))
    rows = (data, toy_sentences(len(ITEMS)), toy_format())
    (batch,) = training_plan(*rows, examples=chosen).shuffled(4, seeded())
    by_user = {int(u): batch.targets[k].tolist() for k, u in enumerate(batch.users)}
    assert by_user[0] == [1, -1, 3]
    assert [t for t in by_user[1] if t >= 0] == []
    (every,) = training_plan(*rows).shuffled(4, seeded())
    assert {int(u): every.targets[k].tolist() for k, u in enumerate(every.users)}[0] == [1, 2, 3]
