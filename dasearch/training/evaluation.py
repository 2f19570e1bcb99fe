"""Ranks of held-out items among the full catalogue (Liu et al. 2024, sec. 3.1.2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from dasearch.data import Development, IntArray, RowPlan, SequenceBatch, TestSplit, evaluation_plan
from dasearch.models.base import RecommenderModel, Scorer, stacked
from dasearch.training.metrics import target_ranks
from dasearch.training.ranks import ALONE, Peers
from dasearch.training.shared import Catalogue

CPU_BATCH = 32  # larger tensors leave the cache and are paged in anew at each layer (benchmarks/serving.py)
CUDA_BATCH = 1024  # rows enough that launching their kernels takes less time than computing them
SCORES_IN_MEMORY = 2**24  # users x items whose scores are held at once


class HeldOutRanks(NamedTuple):
    """Each user's held-out item, ``(users,)``: its rank, and its cross-entropy under the scores' softmax in nats."""

    ranks: IntArray
    losses: npt.NDArray[np.float64]


@torch.inference_mode()
def rank_batches(
    model: RecommenderModel,
    batches: Iterable[tuple[IntArray, SequenceBatch]],
    scorer: Scorer,
    layout: Tensor,
    *,
    users: int,
    peers: Peers = ALONE,
) -> list[HeldOutRanks]:
    """The held-out item of each of so many users, by every candidate; batches come with the places of their rows.

    What is found is read from the device once, at the end. Each of ``peers`` computes its own batches, and finds all.
    """
    k = stacked(layout) or 1
    ranks = torch.zeros(k, users, dtype=torch.long, device=layout.device)
    losses = torch.zeros(k, users, device=layout.device)

    for of_rows, rows in peers.own(batches):
        places, batch = torch.from_numpy(of_rows).to(layout.device), SequenceBatch.together([rows] * k)
        found, lost = _ranks_and_losses(model, batch, scorer, layout)
        ranks[:, places], losses[:, places] = found.view(k, -1), lost.view(k, -1)
    peers.fill(ranks, losses)
    lines = zip(ranks.cpu().numpy(), losses.double().cpu().numpy(), strict=True)
    return [HeldOutRanks(*line) for line in lines]


def _ranks_and_losses(
    model: RecommenderModel, batch: SequenceBatch, scorer: Scorer, layout: Tensor
) -> tuple[Tensor, Tensor]:
    """Of each row's one target, ``(rows,)``, on the layout's device."""
    targets = batch.at_last(batch.targets).to(layout.device)
    scored = list(score_batch(model, batch, scorer, layout))
    ranks = torch.cat([target_ranks(scores, targets[part]) for part, scores in scored])
    losses = [F.cross_entropy(scores, targets[part], reduction="none") for part, scores in scored]
    return ranks, torch.cat(losses)


def score_batch(
    model: RecommenderModel, batch: SequenceBatch, scorer: Scorer, layout: Tensor
) -> Iterator[tuple[slice, Tensor]]:
    """Scores ``(rows, items)`` for so many rows of a batch at a time as fit `SCORES_IN_MEMORY`, and which rows.

    Those of several candidates all at once: their rows are scored candidate by candidate.
    """
    batch = batch.to(layout.device)
    states = model.states(batch, layout)
    at_once = max(1, SCORES_IN_MEMORY // model.n_items) if stacked(layout) is None else len(states)
    for start in range(0, len(states), at_once):
        part = slice(start, start + at_once)
        scores = scorer(states[part]).float()
        added = model.encoder_scores(batch.users[part], batch.histories[part])
        yield part, scores if added is None else scores + added.float()


def validation_plan(catalogue: Catalogue, development: Development) -> RowPlan:
    """Every user's training items, with the validation item to predict."""
    return _plan(catalogue, development.users, development.train, development.valid)


def rank_validation(
    model: RecommenderModel, catalogue: Catalogue, development: Development, layout: Tensor
) -> HeldOutRanks:
    """Every user's validation item after the training items."""
    (held,) = held_out(model, catalogue, validation_plan(catalogue, development), layout)
    return held


def final_ranks(model: RecommenderModel, catalogue: Catalogue, split: TestSplit, layout: Tensor) -> IntArray:
    """Rank of every user's test item after all earlier items, ``(users,)``: for the final evaluation alone."""
    (held,) = held_out(model, catalogue, _plan(catalogue, split.users, split.history, split.target), layout)
    return held.ranks


def held_out(
    model: RecommenderModel, catalogue: Catalogue, plan: RowPlan, layout: Tensor, *, peers: Peers = ALONE
) -> list[HeldOutRanks]:
    """The one target of each of a plan's rows, by every candidate that the layout is of; ``peers`` share the rows."""
    model.eval()
    with torch.inference_mode():
        scorer = model.scorer(catalogue.item_rows, layout)
    batches = plan.by_length(batch_rows(layout.device))
    return rank_batches(model, batches, scorer, layout, users=len(plan), peers=peers)


def batch_rows(device: torch.device) -> int:
    """Rows of one forward pass of a single candidate where no gradient is wanted."""
    return CUDA_BATCH if device.type == "cuda" else CPU_BATCH


def _plan(catalogue: Catalogue, users: IntArray, histories: Sequence[IntArray], targets: IntArray) -> RowPlan:
    return evaluation_plan(users, histories, targets, catalogue.row_sentences, catalogue.row_format)
