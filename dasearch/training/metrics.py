"""Ranking metrics over the full catalogue, with pessimistic ties.

Liu et al. 2024, sec. 3.1.2. A tie counts against the target, so that a constant score gets the worst rank rather than the best.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

TOP_K = 10


class Metrics(NamedTuple):
    """Means over users; MRR has no cutoff."""

    mrr: float
    recall: float
    ndcg: float

    def record(self, k: int = TOP_K) -> dict[str, float]:
        """The metrics by name, with cutoff ``k`` in the names of Recall and NDCG."""
        return {"MRR": self.mrr, f"Recall@{k}": self.recall, f"NDCG@{k}": self.ndcg}

    @classmethod
    def from_record(cls, record: Mapping[str, float], k: int = TOP_K) -> Metrics:
        """The metrics from a `record` with cutoff ``k``."""
        return cls(record["MRR"], record[f"Recall@{k}"], record[f"NDCG@{k}"])


def target_ranks(scores: Tensor, targets: Tensor) -> Tensor:
    """Rank of each target from 1: one plus the number of other items with an equal or higher score.

    Shapes: scores ``(n, items)``, targets ``(n,)`` -> ``(n,)`` int64. A target whose score is NaN ranks last.
    """
    own = scores.gather(1, targets[:, None])
    ahead = ~(scores < own)
    return ahead.sum(dim=1)


def per_user(ranks: npt.ArrayLike, k: int = TOP_K) -> dict[str, npt.NDArray[np.float64]]:
    """Each user's value of every metric, for means and paired intervals."""
    rank = np.asarray(ranks, dtype=np.float64)
    hit = rank <= k
    return {
        "MRR": 1 / rank,
        f"Recall@{k}": hit.astype(np.float64),
        f"NDCG@{k}": np.where(hit, 1 / np.log2(1 + rank), 0.0),
    }


def summarise(ranks: npt.ArrayLike, k: int = TOP_K) -> Metrics:
    """Mean MRR, Recall@k and NDCG@k of ranks counted from 1."""
    return Metrics(*(float(values.mean()) for values in per_user(ranks, k).values()))


class Interval(NamedTuple):
    """A mean and its 95% confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


def bootstrap_interval(values: npt.NDArray[np.float64], *, generator: torch.Generator, draws: int = 1000) -> Interval:
    """Percentile bootstrap interval over users (Efron 1979)."""
    n = len(values)
    means = np.array([values[torch.randint(n, (n,), generator=generator).numpy()].mean() for _ in range(draws)])
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))
