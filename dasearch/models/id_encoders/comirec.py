"""ComiRec: K interest vectors per user, by dynamic routing or self-attention.

Cen et al. 2020, "Controllable Multi-Interest Framework for Recommendation", https://arxiv.org/abs/2005.09347.
Differs from the authors' code: positions count from the newest item, so that short and long histories share them;
the softmax is over all items unless ``negatives`` is set.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dasearch.models.id_encoders.base import (
    EncoderBatch,
    EncoderSettings,
    IDEncoder,
    InterestPool,
    Reads,
    last_of,
    real_items,
    softmax_loss,
)

ROUNDS = 3  # routing iterations; only the last has a gradient
TABLE_SD = 0.05


def squash(vectors: Tensor) -> Tensor:
    """``|s|^2 / (1 + |s|^2) * s / |s|``: keeps the direction and maps the length to below 1."""
    square = vectors.square().sum(-1, keepdim=True)
    return vectors * square / (1 + square) / (square + 1e-9).sqrt()


def route(votes: Tensor, real: Tensor, rounds: int = ROUNDS) -> tuple[Tensor, Tensor]:
    """Dynamic routing (Cen et al. 2020, alg. 1; Sabour et al. 2017).

    Shapes: votes ``(batch, interests, n, width)``, real ``(batch, n)`` -> interests ``(batch, interests, width)``,
    coefficients ``(batch, interests, n)``, which sum to one over the interests at every real item and are zero elsewhere.
    """
    logits = votes.new_zeros(votes.shape[:3])
    fixed = votes.detach()
    for round_ in range(rounds):
        coefficients = torch.softmax(logits, dim=1) * real[:, None]
        seen = votes if round_ == rounds - 1 else fixed
        interests = squash((coefficients[..., None] * seen).sum(2))
        if round_ < rounds - 1:
            logits = logits + (fixed * interests[:, :, None]).sum(-1)
    return interests, coefficients


class ComiRec(IDEncoder):
    """Shared by both variants: an item table, K interests, hard readout in training, maximum over interests in scoring."""

    reads = Reads.NEWEST

    def __init__(self, n_items: int, settings: EncoderSettings) -> None:
        super().__init__()
        self.width, self.count, self.pool = settings.width, settings.interests, settings.pool
        self.n_items, self.history = n_items, settings.history
        self.items = nn.Embedding(n_items, self.width)
        nn.init.normal_(self.items.weight, std=TABLE_SD)

    def interests(self, histories: Tensor) -> Tensor:
        """The user's K interests. Shape ``(batch, interests, width)``."""
        raise NotImplementedError

    def user_embedding(self, users: Tensor, histories: Tensor) -> Tensor:
        """The user's interests, pooled as the settings specify, ``(batch, 1 or K, width)``."""
        interests = self.interests(histories)
        if self.pool is InterestPool.AS_TOKENS:
            return interests
        if self.pool is InterestPool.MEAN:
            return interests.mean(1, keepdim=True)
        newest = last_of(self.item_embedding(histories), histories)
        return _nearest(interests, newest)[:, None]

    def item_embedding(self, items: Tensor) -> Tensor:
        """Rows of the item table; padding (-1) gives an arbitrary row."""
        return self.items(items.clamp(min=0))  # type: ignore[no-any-return]

    def scores(self, users: Tensor, histories: Tensor) -> Tensor:
        """The largest dot product of any interest with each item."""
        return (self.interests(histories) @ self.items.weight.T).amax(1)

    def loss(self, batch: EncoderBatch) -> Tensor:
        """Cross-entropy of the last target under the interest nearest to it (hard readout)."""
        newest = real_items(batch.histories).sum(1) - 1
        targets = batch.targets.gather(1, newest[:, None]).squeeze(1)
        chosen = _nearest(self.interests(batch.histories), self.items(targets))
        return softmax_loss(chosen, targets, self.items, batch.sampled)


class ComiRecDR(ComiRec):
    """Interests by dynamic routing, with a bilinear map per position."""

    def __init__(self, n_items: int, settings: EncoderSettings) -> None:
        super().__init__(n_items, settings)
        self.maps = nn.Parameter(torch.empty(self.history, self.width, self.count * self.width))
        nn.init.normal_(self.maps, std=self.width**-0.5)

    def interests(self, histories: Tensor) -> Tensor:
        """Interests by dynamic routing; see `route`."""
        aligned = _padded_in_front(histories)
        maps = self.maps[: histories.shape[1]].flip(0)  # maps[0] is the newest item's
        votes = torch.einsum("bnd,nde->bne", self.item_embedding(aligned), maps)
        votes = votes.unflatten(-1, (self.count, self.width)).transpose(1, 2)
        return route(votes, real_items(aligned))[0]


class ComiRecSA(ComiRec):
    """Interests by self-attention: ``softmax(W2 tanh(W1 (E + positions)))`` over the items, applied to E."""

    def __init__(self, n_items: int, settings: EncoderSettings) -> None:
        super().__init__(n_items, settings)
        self.places = nn.Parameter(torch.empty(self.history, self.width).normal_(std=TABLE_SD))
        self.inner = nn.Linear(self.width, 4 * self.width, bias=False)
        self.outer = nn.Linear(4 * self.width, self.count, bias=False)

    def weights(self, histories: Tensor) -> Tensor:
        """Attention weights, which sum to one over the real items. Shape ``(batch, n, interests)``."""
        real = real_items(histories)
        age = real.sum(1, keepdim=True) - 1 - torch.arange(histories.shape[1], device=histories.device)
        inner = torch.tanh(self.inner(self.item_embedding(histories) + F.embedding(age.clamp(min=0), self.places)))
        logits: Tensor = self.outer(inner)
        return torch.softmax(logits.masked_fill(~real[..., None], -torch.inf), dim=1)

    def interests(self, histories: Tensor) -> Tensor:
        """Interests as attention-weighted means of item vectors."""
        return self.weights(histories).transpose(1, 2) @ self.item_embedding(histories)


def _padded_in_front(histories: Tensor) -> Tensor:
    """The same rows padded on the left, with the newest item in the last column."""
    n = histories.shape[1]
    missing = n - real_items(histories).sum(1, keepdim=True)
    return histories.gather(1, (torch.arange(n, device=histories.device) - missing) % n)


def _nearest(interests: Tensor, wanted: Tensor) -> Tensor:
    """The interest of each row with the largest dot product with ``wanted`` ``(batch, width)``: ``(batch, width)``."""
    best = (interests @ wanted[..., None]).squeeze(-1).argmax(1)
    return interests.gather(1, best[:, None, None].expand(-1, 1, interests.shape[-1])).squeeze(1)
