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
from dasearch.models.base import RecommenderModel, Scorer
from dasearch.training.materials import Catalogue
from dasearch.training.metrics import target_ranks

EVALUATION_BATCH = 128  # rows of one forward pass, of all candidates together
CUDA_BATCH = 512  # the same on a GPU, whose kernels are launched one by one
SCORES_IN_MEMORY = 2**24  # users x items whose scores are held at once


class Held(NamedTuple):
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
) -> list[Held]:
    """The held-out item of each of so many users, by every candidate; batches come with the places of their rows.

    What is found is read from the device once, at the end.
    """
    k = 1 if layout.dim() == 2 else len(layout)
    ranks = torch.zeros(k, users, dtype=torch.long, device=layout.device)
    losses = torch.zeros(k, users, device=layout.device)
    for places, batch in batches:
        many = SequenceBatch.together([batch] * k)
        targets, rows = many.at_last(many.targets).to(layout.device), torch.from_numpy(places).to(layout.device)
        found = torch.empty(len(targets), dtype=torch.long, device=layout.device)
        lost = torch.empty(len(targets), device=layout.device)
        for part, scores in score_batch(model, many, scorer, layout):
            found[part] = target_ranks(scores, targets[part])
            lost[part] = F.cross_entropy(scores, targets[part], reduction="none")
        ranks[:, rows], losses[:, rows] = found.view(k, -1), lost.view(k, -1)
    lines = zip(ranks.cpu().numpy(), losses.double().cpu().numpy(), strict=True)
    return [Held(*line) for line in lines]


def score_batch(
    model: RecommenderModel, batch: SequenceBatch, scorer: Scorer, layout: Tensor
) -> Iterator[tuple[slice, Tensor]]:
    """Scores ``(rows, items)`` for so many rows of a batch at a time as fit `SCORES_IN_MEMORY`, and which rows.

    Those of several candidates all at once: their rows are scored candidate by candidate.
    """
    states = model.states(batch.to(layout.device), layout)
    at_once = max(1, SCORES_IN_MEMORY // model.n_items) if layout.dim() == 2 else len(states)
    for start in range(0, len(states), at_once):
        part = slice(start, start + at_once)
        yield part, scorer(states[part]).float()


def validation_plan(catalogue: Catalogue, development: Development) -> RowPlan:
    """Every user's training items, with the validation item to predict."""
    return _plan(catalogue, development.users, development.train, development.valid)


def validation_held(model: RecommenderModel, catalogue: Catalogue, development: Development, layout: Tensor) -> Held:
    """Every user's validation item after the training items."""
    (held,) = held_out(model, catalogue, validation_plan(catalogue, development), layout)
    return held


def final_ranks(model: RecommenderModel, catalogue: Catalogue, split: TestSplit, layout: Tensor) -> IntArray:
    """Rank of every user's test item after all earlier items, ``(users,)``: for the final evaluation alone."""
    (held,) = held_out(model, catalogue, _plan(catalogue, split.users, split.history, split.target), layout)
    return held.ranks


def held_out(model: RecommenderModel, catalogue: Catalogue, plan: RowPlan, layout: Tensor) -> list[Held]:
    """The one target of each of a plan's rows, by every candidate that the layout is of."""
    model.eval()
    with torch.inference_mode():
        scorer = model.scorer(catalogue.item_rows, layout)
    at_once = CUDA_BATCH if layout.is_cuda else EVALUATION_BATCH
    k = 1 if layout.dim() == 2 else len(layout)
    return rank_batches(model, plan.by_length(max(1, at_once // k)), scorer, layout, users=len(plan))


def _plan(catalogue: Catalogue, users: IntArray, histories: Sequence[IntArray], targets: IntArray) -> RowPlan:
    return evaluation_plan(users, histories, targets, catalogue.sentences, catalogue.row_format)
