"""Two reference baselines for any recommender: popularity and an item-to-item Markov chain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import sparse

from dasearch.data import Development, IntArray
from dasearch.training.metrics import target_ranks

MARKOV_VISITS = 20  # newest history items whose transitions are summed
CHUNK = 2048  # users per scoring batch


def popularity_ranks(development: Development, targets: IntArray) -> IntArray:
    """Rank of each target when items are ordered by their number of training events, ``(users,)``."""
    counts = torch.as_tensor(development.item_counts(), dtype=torch.float64)
    return target_ranks(counts.expand(len(targets), -1), torch.as_tensor(targets)).numpy()


def transitions(train: Sequence[IntArray], n_items: int) -> sparse.csr_array:
    """Row-normalised counts of "item j directly after item i" in training, ``(items, items)``."""
    before = np.concatenate([sequence[:-1] for sequence in train])
    after = np.concatenate([sequence[1:] for sequence in train])
    counts = sparse.coo_array((np.ones(len(before)), (before, after)), shape=(n_items, n_items)).tocsr()
    totals = np.maximum(counts.sum(axis=1), 1.0)
    return sparse.csr_array(sparse.diags_array(1 / totals) @ counts)


def markov_ranks(
    development: Development, histories: Sequence[IntArray], targets: IntArray, *, visits: int = MARKOV_VISITS
) -> IntArray:
    """Rank of each target by the summed transition probabilities from the newest ``visits`` history items, ``(users,)``."""
    chain = transitions(development.train, development.n_items)
    ranks = []
    for start in range(0, len(targets), CHUNK):
        recent = [history[-visits:] for history in histories[start : start + CHUNK]]
        rows = np.repeat(np.arange(len(recent)), [len(items) for items in recent])
        seen = sparse.coo_array(
            (np.ones(len(rows)), (rows, np.concatenate(recent))), shape=(len(recent), development.n_items)
        )
        scores = torch.from_numpy((seen.tocsr() @ chain).toarray())
        ranks.append(target_ranks(scores, torch.as_tensor(targets[start : start + CHUNK])).numpy())
    return np.concatenate(ranks)
