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

CPU_BATCH = 32  # larger tensors exceed the CPU cache (benchmarks/serving.py)
CUDA_BATCH = 1024  # enough rows that kernel launches take less time than the computation
SCORES_IN_MEMORY = 2**24  # users x items per block of scores


class HeldOutRanks(NamedTuple):
    """Each user's held-out item, ``(users,)``: its rank, and its softmax cross-entropy in nats."""

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
    """Ranks of each user's held-out item under every candidate; batches come with the user indices of their rows.

    Results are copied from the device once, at the end. Each of ``peers`` computes its own batches and receives all results; if
    they share the frozen layers, one without a batch left computes another's for nothing.
    """
    k = stacked(layout) or 1
    ranks = torch.zeros(k, users, dtype=torch.long, device=layout.device)
    losses = torch.zeros(k, users, device=layout.device)

    for (of_rows, rows), own in peers.computed(batches, together=model.backbone.sharded):
        places, batch = torch.from_numpy(of_rows).to(layout.device), SequenceBatch.together([rows] * k)
        ranked, lost = _ranks_and_losses(model, batch, scorer, layout)
        if own:
            ranks[:, places], losses[:, places] = ranked.view(k, -1), lost.view(k, -1)
    peers.fill(ranks, losses)
    lines = zip(ranks.cpu().numpy(), losses.double().cpu().numpy(), strict=True)
    return [HeldOutRanks(*line) for line in lines]


def _ranks_and_losses(
    model: RecommenderModel, batch: SequenceBatch, scorer: Scorer, layout: Tensor
) -> tuple[Tensor, Tensor]:
    """Rank and loss of each row's single target, ``(rows,)``, on the layout's device."""
    targets = batch.at_last(batch.targets).to(layout.device)
    scored = list(score_batch(model, batch, scorer, layout))
    ranks = torch.cat([target_ranks(scores, targets[part]) for part, scores in scored])
    losses = [F.cross_entropy(scores, targets[part], reduction="none") for part, scores in scored]
    return ranks, torch.cat(losses)


def score_batch(
    model: RecommenderModel, batch: SequenceBatch, scorer: Scorer, layout: Tensor
) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of a batch's rows with their scores ``(rows, items)``, in blocks of at most `SCORES_IN_MEMORY`.

    With several candidates there is one block, as rows are scored candidate by candidate.
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
    """Rows of every user's training items, with the validation item as target."""
    return _plan(catalogue, development.users, development.train, development.valid)


def rank_validation(
    model: RecommenderModel, catalogue: Catalogue, development: Development, layout: Tensor
) -> HeldOutRanks:
    """Ranks of every user's validation item, given the training items."""
    (held,) = held_out(model, catalogue, validation_plan(catalogue, development), layout)
    return held


def final_ranks(model: RecommenderModel, catalogue: Catalogue, split: TestSplit, layout: Tensor) -> IntArray:
    """Rank of every user's test item, given all earlier items, ``(users,)``: only for the final evaluation."""
    (held,) = held_out(model, catalogue, _plan(catalogue, split.users, split.history, split.target), layout)
    return held.ranks


def held_out(
    model: RecommenderModel, catalogue: Catalogue, plan: RowPlan, layout: Tensor, *, peers: Peers = ALONE
) -> list[HeldOutRanks]:
    """Ranks of the single target of each row of a plan, under every candidate of the layout; ``peers`` share the rows."""
    model.eval()
    with torch.inference_mode():
        scorer = model.scorer(catalogue.item_rows, layout)
    batches = plan.by_length(batch_rows(layout.device))
    return rank_batches(model, batches, scorer, layout, users=len(plan), peers=peers)


def batch_rows(device: torch.device) -> int:
    """Rows per forward pass of a single candidate without gradients."""
    return CUDA_BATCH if device.type == "cuda" else CPU_BATCH


def _plan(catalogue: Catalogue, users: IntArray, histories: Sequence[IntArray], targets: IntArray) -> RowPlan:
    return evaluation_plan(users, histories, targets, catalogue.row_sentences, catalogue.row_format)
