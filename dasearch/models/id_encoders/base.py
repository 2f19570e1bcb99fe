"""The interface of ID encoders: user vectors, item vectors, scores of all items, and the training loss.

Shapes, here and in the encoders: users ``(batch,)`` int64, -1 for a user outside the training data; histories
``(batch, n)`` item indices, oldest first, padded with -1 on the right, with at least one real item each.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from dasearch.data.rows import NO_ITEM

WIDTH = 64  # ComiRec's own; SPEC 3


class InterestPool(StrEnum):
    """How K interests represent a user at inference, when the interest nearest the target, used in training, is unknown."""

    MEAN = "mean"
    LAST_ITEM = "last_item"  # the interest nearest the newest item
    AS_TOKENS = "as_tokens"  # all of them


class EncoderSettings(BaseModel):
    """The ID encoder of a study, its sizes and its training; settings of other kinds of encoder are ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("comirec-sa", description="comirec-dr, comirec-sa, sasrec, gru4rec, bert4rec, fdsa, mf or neumf")
    file: str | None = Field(None, description="a trained encoder to read instead of training one")
    width: int = Field(WIDTH, ge=2, description="width of user and item vectors")
    history: int = Field(50, ge=1, description="number of newest items that the encoder reads")
    interests: int = Field(4, ge=1, description="K of ComiRec")
    pool: InterestPool = Field(InterestPool.MEAN, description="how K interests represent the user")
    layers: int = Field(2, ge=1, description="of SASRec, GRU4Rec, BERT4Rec and FDSA")
    heads: int = Field(2, ge=1, description="of SASRec, BERT4Rec and FDSA")
    dropout: float = Field(0.2, ge=0, lt=1, description="of SASRec, GRU4Rec, BERT4Rec and FDSA")
    epochs: int = Field(30, ge=0, description="maximum number of epochs; 0 leaves it untrained")
    patience: int = Field(5, ge=1, description="epochs without a better validation NDCG@10 before early stopping")
    batch_size: int = Field(128, ge=1, description="rows per training step")
    lr: float = Field(3e-3, gt=0, description="learning rate of AdamW")
    weight_decay: float = Field(1e-6, ge=0, description="of AdamW")
    targets: int = Field(8, ge=1, description="targets per user and epoch, for ComiRec, which learns one at a time")
    negatives: int | None = Field(None, ge=1, description="number of sampled negatives in the softmax; null: all items")


class Reads(StrEnum):
    """The training examples of an encoder."""

    PAIRS = "pairs"  # distinct purchases
    PLACES = "places"  # rows with a target at every position
    NEWEST = "newest"  # rows with one target, after the newest item


class EncoderBatch(NamedTuple):
    """Training rows. Shapes: users ``(batch,)``; histories, targets ``(batch, n)``; unbought as targets; sampled ``(k,)``.

    ``targets`` holds the item after each position of the history, -1 where there is nothing to predict; ``unbought`` an
    item that the user did not buy; ``sampled`` the items of a sampled softmax (None: all items).
    """

    users: Tensor
    histories: Tensor
    targets: Tensor
    unbought: Tensor
    sampled: Tensor | None = None


class IDEncoder(nn.Module):
    """Base class of all ID encoders.

    Attributes:
        width: width of every vector.
        n_items: size of the catalogue.
        history: maximum number of newest items that a user's vector is computed from; older items are ignored.
        reads: the training examples that ``loss`` expects.
    """

    width: int
    n_items: int
    history: int
    reads: Reads = Reads.PLACES

    def user_embedding(self, users: Tensor, histories: Tensor) -> Tensor:
        """Vectors of users. Shape ``(batch, vectors, width)``."""
        raise NotImplementedError

    def item_embedding(self, items: Tensor) -> Tensor:
        """Vectors of items. Shapes: items ``(...)`` -> ``(..., width)``."""
        raise NotImplementedError

    def scores(self, users: Tensor, histories: Tensor) -> Tensor:
        """Scores of every item, larger being better. Shape ``(batch, items)``."""
        raise NotImplementedError

    def loss(self, batch: EncoderBatch) -> Tensor:
        """Shape ``()``."""
        raise NotImplementedError

    def fit_cold_start(self, users: Tensor, sequences: Sequence[Tensor]) -> None:
        """Fit an estimator of vectors for users outside the training data, unless they are computed from histories anyway."""


def real_items(histories: Tensor) -> Tensor:
    """True for real items, False for padding, ``(batch, n)``."""
    return histories != NO_ITEM


def last_of(states: Tensor, histories: Tensor) -> Tensor:
    """The states at each history's newest item. Shapes: states ``(batch, n, width)`` -> ``(batch, width)``."""
    newest = real_items(histories).sum(1) - 1
    return states.gather(1, newest[:, None, None].expand(-1, 1, states.shape[-1])).squeeze(1)


def softmax_loss(states: Tensor, targets: Tensor, items: nn.Embedding, sampled: Tensor | None) -> Tensor:
    """Cross-entropy of the targets over all items, or over the targets and the sampled items.

    Shapes: states ``(k, width)``, targets ``(k,)``, sampled ``(s,)`` -> ``()``. A sampled item that equals the target is not
    counted as a negative.
    """
    if sampled is None:
        return F.cross_entropy(states @ items.weight.T, targets)
    own = (states * items(targets)).sum(-1, keepdim=True)
    others = (states @ items(sampled).T).masked_fill(sampled == targets[:, None], -torch.inf)
    return F.cross_entropy(torch.cat([own, others], dim=1), torch.zeros_like(targets))
