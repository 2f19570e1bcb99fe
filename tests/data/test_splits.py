"""SPEC 6, checks 16 and 20; the test split's guard."""

import dataclasses

import numpy as np
import pytest
import torch

from dasearch.data import Dataset, LeaveOneOut, hard_negatives, mf_vectors
from dasearch.errors import TestSplitError
from tests.conftest import seeded, toy_dataset


def poisoned(dataset: Dataset, places: slice) -> Dataset:
    """The same data with other held-out items."""
    sequences = []
    for sequence in dataset.sequences:
        changed = sequence.copy()
        changed[places] = (changed[places] + 5) % len(dataset.items)
        sequences.append(changed)
    return dataclasses.replace(dataset, sequences=tuple(sequences))


def test_check_20_lengths_order_and_no_overlap() -> None:
    dataset = toy_dataset()
    split = LeaveOneOut(dataset)
    development, test = split.development, split.open_test()
    for u, sequence in enumerate(dataset.sequences):
        assert [*development.train[u], development.valid[u], test.target[u]] == sequence.tolist()
        assert [*development.train[u], development.valid[u]] == test.history[u].tolist()
    total = sum(len(s) for s in dataset.sequences)
    train = sum(len(s) for s in development.train)
    assert train / len(dataset.users) + 2 == pytest.approx(total / len(dataset.users))


def test_the_test_split_opens_once() -> None:
    split = LeaveOneOut(toy_dataset())
    split.open_test()
    with pytest.raises(TestSplitError, match="already read"):
        split.open_test()


def test_development_carries_no_test_item() -> None:
    dataset = toy_dataset()
    first, second = LeaveOneOut(dataset).development, LeaveOneOut(poisoned(dataset, slice(-1, None))).development
    assert np.array_equal(first.valid, second.valid)
    assert all(np.array_equal(a, b) for a, b in zip(first.train, second.train, strict=True))
    assert {field.name for field in dataclasses.fields(first)} == {"users", "train", "valid", "n_users", "n_items"}


def test_check_16_counts_factors_and_negatives_see_training_only() -> None:
    dataset = toy_dataset()
    vectors = torch.randn(len(dataset.items), 4, generator=seeded())
    found = []
    for data in (dataset, poisoned(dataset, slice(-2, None))):
        development = LeaveOneOut(data).development
        factors = torch.as_tensor(mf_vectors(development.train, development.n_items))
        negatives = hard_negatives(vectors, factors, development.train, fraction=0.3)
        found.append((development.item_counts(), factors, negatives.flat))
    assert np.array_equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert torch.equal(found[0][2], found[1][2])


def test_data_bo_samples_users_and_keeps_the_catalogue() -> None:
    development = LeaveOneOut(toy_dataset()).development
    sample = development.sample_users(0.25, seeded(1))
    assert (sample.n_items, sample.n_users) == (development.n_items, development.n_users)
    assert len(sample.users) == 10
    assert (np.diff(sample.users) > 0).all()
    for k, user in enumerate(sample.users):
        assert np.array_equal(sample.train[k], development.train[user])
        assert sample.valid[k] == development.valid[user]
    assert np.array_equal(sample.users, development.sample_users(0.25, seeded(1)).users)
    assert not np.array_equal(sample.users, development.sample_users(0.25, seeded(2)).users)
    assert development.sample_users(1.0, seeded()) is development
    assert len(development.sample_users(1e-9, seeded()).users) == 1
