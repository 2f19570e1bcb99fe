"""SPEC 6, checks 18, 19 and 28: losses in closed form, metrics against a sorter."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dasearch.config import Reduction
from dasearch.training.losses import bpr_loss, contrastive_loss, info_nce, item_cross_entropy, mmd, reduced
from dasearch.training.metrics import Metrics, bootstrap_interval, per_user, summarise, target_ranks
from dasearch.training.stack import schedule
from tests.conftest import seeded


@pytest.mark.parametrize("n", [1, 5])
def test_check_18_contrastive_loss_at_equal_similarities(n: int) -> None:
    anchor = torch.randn(3, 6, generator=seeded())
    same = anchor * 2
    loss = contrastive_loss(anchor, same, same[:, None].expand(3, n, 6))
    torch.testing.assert_close(loss, torch.full((3,), math.log(1 + n)))


def test_contrastive_loss_by_hand() -> None:
    anchor, positive, negatives = (
        torch.randn(*shape, generator=seeded(k)) for k, shape in enumerate([(2, 4), (2, 4), (2, 3, 4)])
    )
    expected = []
    for a in range(2):
        cosine = [float(anchor[a] @ c / anchor[a].norm() / c.norm()) / 0.5 for c in (positive[a], *negatives[a])]
        expected.append(-cosine[0] + math.log(sum(math.exp(c) for c in cosine)))
    found = contrastive_loss(anchor, positive, negatives, temperature=0.5)
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_means_and_sums_of_each_candidate_by_loops() -> None:
    values, counted = torch.randn(3, 2, 4, generator=seeded()), torch.rand(3, 2, 4, generator=seeded(1)) < 0.6
    values[0, 0, 0], counted[0, 0, 0] = torch.nan, False
    counted[2] = False
    kept = [
        [v for v, c in zip(values[k].flatten().tolist(), counted[k].flatten().tolist(), strict=True) if c]
        for k in range(3)
    ]
    assert reduced(values, counted, Reduction.SUM).tolist() == pytest.approx([sum(own) for own in kept])
    means = [sum(own) / len(own) if own else 0.0 for own in kept]
    assert reduced(values, counted, Reduction.MEAN).tolist() == pytest.approx(means)


def test_check_28_bpr_is_log_two_at_zero_gap() -> None:
    scores = torch.randn(7, generator=seeded())
    assert bpr_loss(scores, scores).tolist() == pytest.approx([math.log(2)] * 7)
    assert bpr_loss(scores + 3, scores).tolist() == pytest.approx([math.log(1 + math.exp(-3))] * 7, rel=1e-5)


def test_cross_entropy_skips_missing_targets() -> None:
    logits = torch.randn(2, 3, 5, generator=seeded())
    targets = torch.tensor([[1, -1, 4], [-1, -1, 0]])
    rows = [(0, 0, 1), (0, 2, 4), (1, 2, 0)]
    expected = [-float(torch.log_softmax(logits[b, n], -1)[t]) for b, n, t in rows]
    assert float(item_cross_entropy(logits[None], targets[None])) == pytest.approx(sum(expected) / 3, rel=1e-5)
    total = item_cross_entropy(logits[None], targets[None], Reduction.SUM)
    assert float(total) == pytest.approx(sum(expected), rel=1e-5)
    each = item_cross_entropy(logits, targets)
    assert each.tolist() == pytest.approx([sum(expected[:2]) / 2, expected[2]], rel=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(2, 30))
def test_check_19_metrics_equal_a_sorter_with_ties(seed: int, users: int, items: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 5, (users, items)).astype(np.float64)  # many ties
    targets = rng.integers(0, items, users)
    ranks = []
    for row, target in zip(scores, targets, strict=True):
        order = sorted(range(items), key=lambda i: (-row[i], i == target))  # a tie puts the target last
        ranks.append(order.index(target) + 1)
    found = target_ranks(torch.from_numpy(scores), torch.from_numpy(targets))
    assert found.tolist() == ranks
    metrics = summarise(found)
    assert metrics.mrr == pytest.approx(np.mean([1 / r for r in ranks]))
    assert metrics.recall == pytest.approx(np.mean([r <= 10 for r in ranks]))
    assert metrics.ndcg == pytest.approx(np.mean([1 / math.log2(1 + r) if r <= 10 else 0 for r in ranks]))
    assert metrics.ndcg <= metrics.recall + 1e-12
    assert metrics.ndcg <= metrics.mrr * 10 / math.log2(11) + 1e-12


def test_constant_scores_are_worst_and_nan_ranks_last() -> None:
    assert target_ranks(torch.zeros(1, 9), torch.tensor([4])).tolist() == [9]
    scores = torch.arange(9.0)[None].clone()
    scores[0, 8] = torch.nan
    assert target_ranks(scores, torch.tensor([8])).tolist() == [9]


def test_metrics_record_round_trip() -> None:
    metrics = Metrics(0.1, 0.2, 0.15)
    assert Metrics.from_record(metrics.record()) == metrics
    assert set(per_user([1, 11])) == {"MRR", "Recall@10", "NDCG@10"}


def test_bootstrap_interval_has_the_width_of_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    interval = bootstrap_interval(values, generator=seeded(1), draws=2000)
    half = 1.96 * values.std() / 20
    assert interval.mean == pytest.approx(values.mean())
    assert interval.high - interval.mean == pytest.approx(half, rel=0.15)
    assert interval.mean - interval.low == pytest.approx(half, rel=0.15)


def test_schedule() -> None:
    """Linear warm-up over six percent of 100 steps, then a cosine to zero."""
    rates = [schedule(step, 100, 0.06) for step in range(101)]
    np.testing.assert_allclose(rates[:6], [k / 6 for k in range(1, 7)])
    assert rates[6] == 1.0
    assert all(a > b for a, b in itertools.pairwise(rates[6:]))
    assert rates[53] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0)


def mmd_by_loops(first: np.ndarray, second: np.ndarray) -> float:
    """The biased estimator, one pair at a time."""
    pooled = np.concatenate([first, second])
    distances = [float(((x - y) ** 2).sum()) for x in pooled for y in pooled]
    width = float(np.mean(distances))

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        square = float(((x - y) ** 2).sum())
        return float(np.mean([np.exp(-square / (2 * scale * width)) for scale in (0.25, 0.5, 1, 2, 4)]))

    def mean(some: np.ndarray, others: np.ndarray) -> float:
        return float(np.mean([kernel(x, y) for x in some for y in others]))

    return mean(first, first) + mean(second, second) - 2 * mean(first, second)


def test_mmd_by_loops() -> None:
    first, second = torch.randn(7, 3, generator=seeded()), torch.randn(5, 3, generator=seeded(1)) + 0.5
    assert mmd(first, second).item() == pytest.approx(mmd_by_loops(first.numpy(), second.numpy()), abs=1e-5)
    assert mmd(second, first).item() == pytest.approx(mmd(first, second).item(), abs=1e-6)


def test_mmd_is_zero_for_equal_samples_and_grows_with_a_shift() -> None:
    first = torch.randn(32, 4, generator=seeded())
    assert mmd(first, first[torch.randperm(32, generator=seeded(2))]).item() == pytest.approx(0, abs=1e-6)
    shifted = [mmd(first, first + shift).item() for shift in (0.0, 0.3, 1.0, 3.0)]
    assert shifted == sorted(shifted)
    assert all(value >= -1e-7 for value in shifted)
    assert mmd(torch.ones(16, 4), torch.ones(16, 4)).item() == pytest.approx(0, abs=1e-6)


def test_info_nce_by_hand() -> None:
    first, second = torch.randn(4, 3, generator=seeded()), torch.randn(4, 3, generator=seeded(1))
    total = 0.0
    for j in range(4):
        similar = [float(torch.cosine_similarity(first[j], second[k], dim=0)) / 0.5 for k in range(4)]
        total += float(np.log(np.exp(similar).sum()) - similar[j])
    assert info_nce(first[None], second[None], 0.5).item() == pytest.approx(total / 4, abs=1e-5)


def test_info_nce_ignores_uncounted_rows() -> None:
    first, second = (torch.randn(2, 4, 3, generator=seeded(k)).requires_grad_() for k in range(2))
    counted = torch.tensor([[True, True, True, False], [True, False, False, False]])
    found = info_nce(first, second, 0.5, counted)
    sizes = counted.sum(1).tolist()
    alone = [info_nce(first[k, None, :n], second[k, None, :n], 0.5) for k, n in enumerate(sizes)]
    torch.testing.assert_close(found, torch.cat(alone))
    found.sum().backward()
    assert first.grad is not None
    assert bool(first.grad.isfinite().all())


def test_info_nce_of_identical_rows_is_log_n() -> None:
    assert info_nce(torch.ones(1, 6, 3), torch.ones(1, 6, 3)).item() == pytest.approx(np.log(6), abs=1e-6)
