"""SPEC 6, check 17; factors and samples against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

import dasearch.data.negatives as negatives_module
from dasearch.data import hard_negatives, mf_vectors, sample_contrastive, training_plan
from dasearch.data.negatives import exact_factors, randomised_factors, user_item
from dasearch.data.splits import Development
from tests.conftest import seeded, toy_format, toy_sentences


def walks(seed: int, n_users: int = 20, n_items: int = 30) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    return tuple(rng.integers(0, n_items, rng.integers(2, 6)) for _ in range(n_users))


def brute_force(spaces: list[torch.Tensor], train: tuple[np.ndarray, ...], count: int, item: int) -> set[int]:
    found: set[int] = set()
    for space in spaces:
        order = sorted((float((space[item] - space[j]).norm()), j) for j in range(len(space)) if j != item)
        found |= {j for _, j in order[:count]}
    return found - {int(j) for sequence in train if item in sequence for j in sequence}


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.03, 0.1, 0.3]))
def test_check_17_negatives_equal_brute_force(seed: int, fraction: float) -> None:
    train = walks(seed)
    spaces = [
        torch.randn(30, 4, generator=seeded(seed), dtype=torch.float64),
        torch.as_tensor(mf_vectors(train, 30, rank=8)),
    ]
    spaces[1] = spaces[1] + 1e-3 * torch.randn(
        spaces[1].shape, generator=seeded(seed + 1), dtype=torch.float64
    )  # no ties
    negatives = hard_negatives(spaces[0], spaces[1], train, fraction=fraction)
    count = math.ceil(fraction * 30)
    for item in range(30):
        found = set(negatives.of(item).tolist())
        assert found == brute_force(spaces, train, count, item)
        assert item not in found
        assert len(found) <= 2 * count


def test_paper_counts() -> None:
    """App. A: the nearest 0.5% are 25 items on Pantry (4,961) and 113 or 114 on Arts (22,685)."""
    assert math.ceil(0.005 * 4961) == 25
    assert math.ceil(0.005 * 22_685) in (113, 114)


@pytest.mark.parametrize("rank", [3, 1000])
def test_factors_are_the_best_approximation(rank: int) -> None:
    train = walks(3)
    table = np.zeros((20, 30))
    for user, sequence in enumerate(train):
        table[user, sequence] = 1
    factors = mf_vectors(train, 30, rank=rank)
    assert factors.shape == (30, min(rank, 20))
    values = np.linalg.svd(table, compute_uv=False)[:rank]
    np.testing.assert_allclose(np.sort(np.linalg.norm(factors, axis=0))[::-1], values, atol=1e-9)
    if rank > 20:  # nothing cut: inner products of items are kept
        np.testing.assert_allclose(factors @ factors.T, table.T @ table, atol=1e-9)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 25), st.booleans())
def test_randomised_factors_are_the_exact_ones_up_to_a_rotation(seed: int, rank: int, transposed: bool) -> None:
    shape = (60, 40) if transposed else (40, 60)
    table = user_item(walks(seed, *shape), shape[1])
    exact = exact_factors(table, rank)
    found = randomised_factors(table, rank, iterations=200)
    assert found.shape == exact.shape
    np.testing.assert_allclose(np.linalg.norm(found, axis=0), np.linalg.norm(exact, axis=0), atol=1e-4)
    values = np.linalg.svd(table.toarray(), compute_uv=False)
    if values[rank - 1] - values[rank] > 0.05:  # else the last vector is not decided
        np.testing.assert_allclose(found @ found.T, exact @ exact.T, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 30))
def test_a_few_iterations_keep_what_the_best_factors_keep(seed: int, rank: int) -> None:
    """No factors of this rank keep more of the table than the exact ones; these keep nearly as much."""
    table = user_item(walks(seed, 200, 80), 80)
    values = np.linalg.svd(table.toarray(), compute_uv=False)
    kept = np.square(randomised_factors(table, rank)).sum() / np.square(values[:rank]).sum()
    assert 0.97 < kept <= 1 + 1e-9


def test_large_tables_are_factored_by_the_randomised_solver_alike_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    train = walks(4, 50, 40)
    monkeypatch.setattr(negatives_module, "CHUNK", 16)
    first = mf_vectors(train, 40, rank=10)
    with threadpool_limits(1):
        np.testing.assert_array_equal(first, mf_vectors(train, 40, rank=10))
    np.testing.assert_array_equal(first, randomised_factors(user_item(train, 40), 10))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000))
def test_equally_far_items_are_taken_in_order_whatever_the_rotation(seed: int) -> None:
    """Items of one purchase each tie all the time; a rotation, as another number of BLAS threads, only moves rounding."""
    train = walks(seed, 20, 60)
    factors = torch.as_tensor(mf_vectors(train, 60))
    rotation, _ = torch.linalg.qr(torch.randn(20, 20, generator=seeded(seed), dtype=torch.float64))
    table = torch.as_tensor(user_item(train, 60).toarray())
    found = [hard_negatives(space, space, train, fraction=0.1) for space in (factors, factors @ rotation, table.T)]
    assert torch.equal(found[0].flat, found[1].flat)
    squared = (table.sum(0)[:, None] + table.sum(0) - 2 * table.T @ table).tolist()  # whole numbers
    for item in range(60):
        near = sorted((squared[item][j], j) for j in range(60) if j != item)[:6]
        together = {int(j) for sequence in train if item in sequence for j in sequence}
        assert set(found[0].of(item).tolist()) == set(found[2].of(item).tolist()) == {j for _, j in near} - together


def test_samples_are_anchors_with_their_next_item_and_its_negatives() -> None:
    train = walks(5)
    development = Development(np.arange(20), train, np.zeros(20, dtype=np.int64), 20, 30)
    vectors = torch.randn(30, 4, generator=seeded())
    negatives = hard_negatives(vectors, vectors, train, fraction=0.1)
    batches = training_plan(development, toy_sentences(30), toy_format()).shuffled(6, seeded())
    checked = 0
    for batch in batches:
        sample = sample_contrastive(batch, negatives, anchors_per_row=2, negatives_per_anchor=4, generator=seeded(1))
        if sample is None:
            continue
        pairs = list(zip(sample.row.tolist(), sample.position.tolist(), strict=True))
        assert len(set(pairs)) == len(pairs)
        for (row, position), positive, drawn in zip(pairs, sample.positive.tolist(), sample.negatives, strict=True):
            assert batch.targets[row, position] == positive
            allowed = negatives.of(positive).tolist()
            assert set(drawn.tolist()) <= set(allowed)
            assert len(set(drawn.tolist())) == min(4, len(allowed))
            checked += 1
    assert checked > 10


def test_no_negatives_no_sample() -> None:
    train = (np.arange(6),) * 3  # everything occurs together
    development = Development(np.arange(3), train, np.zeros(3, dtype=np.int64), 3, 6)
    vectors = torch.randn(6, 4, generator=seeded())
    negatives = hard_negatives(vectors, vectors, train, fraction=0.5)
    assert not negatives.sizes.any()
    (batch,) = training_plan(development, toy_sentences(6), toy_format()).shuffled(3, seeded())
    assert sample_contrastive(batch, negatives, generator=seeded()) is None
