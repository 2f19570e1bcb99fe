"""Ranks of held-out items among the full catalogue (Liu et al. 2024, sec. 3.1.2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dasearch.data import Development, IntArray, SequenceBatch, TestSplit, evaluation_batches
from dasearch.models.base import RecommenderModel, Scorer
from dasearch.training.materials import Catalogue
from dasearch.training.metrics import target_ranks

EVALUATION_BATCH = 128  # rows of one forward pass
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
) -> Held:
    """The held-out item of each of so many users; batches come with the places of their rows."""
    held = Held(np.zeros(users, dtype=np.int64), np.zeros(users))
    for places, batch in batches:
        targets = batch.at_last(batch.targets).to(layout.device)
        for part, scores in score_batch(model, batch, scorer, layout):
            t = targets[part]
            held.ranks[places[part]] = target_ranks(scores, t).cpu().numpy()
            held.losses[places[part]] = torch.nn.functional.cross_entropy(scores, t, reduction="none").cpu().numpy()
    return held


def score_batch(
    model: RecommenderModel, batch: SequenceBatch, scorer: Scorer, layout: Tensor
) -> Iterator[tuple[slice, Tensor]]:
    """Scores ``(rows, items)`` for so many rows of a batch at a time as fit `SCORES_IN_MEMORY`, and which rows."""
    states = model.states(batch.to(layout.device), layout)
    at_once = max(1, SCORES_IN_MEMORY // model.n_items)
    for start in range(0, len(states), at_once):
        part = slice(start, start + at_once)
        yield part, scorer(states[part]).float()


def validation_held(model: RecommenderModel, catalogue: Catalogue, development: Development, layout: Tensor) -> Held:
    """Every user's validation item after the training items."""
    return _held(model, catalogue, layout, development.users, development.train, development.valid)


def final_ranks(model: RecommenderModel, catalogue: Catalogue, split: TestSplit, layout: Tensor) -> IntArray:
    """Rank of every user's test item after all earlier items, ``(users,)``: for the final evaluation alone."""
    return _held(model, catalogue, layout, split.users, split.history, split.target).ranks


def _held(
    model: RecommenderModel,
    catalogue: Catalogue,
    layout: Tensor,
    users: IntArray,
    histories: Sequence[IntArray],
    targets: IntArray,
) -> Held:
    model.eval()
    with torch.inference_mode():
        scorer = model.scorer(catalogue.item_rows, layout)
    batches = evaluation_batches(
        users, histories, targets, catalogue.sentences, catalogue.row_format, batch_size=EVALUATION_BATCH
    )
    return rank_batches(model, batches, scorer, layout, users=len(users))
