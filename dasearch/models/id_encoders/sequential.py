"""SASRec and GRU4Rec: one state per position, scored against the item table.

Kang & McAuley 2018, https://arxiv.org/abs/1808.09781; Hidasi et al. 2016, https://arxiv.org/abs/1511.06939.
Differs from both: cross-entropy over the catalogue (or sampled items) at every position instead of one negative per item,
which later comparisons found stronger; GRU4Rec reads a user's whole history as one session.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dasearch.models.id_encoders.base import EncoderBatch, EncoderSettings, IDEncoder, last_of, softmax_loss

TABLE_SD = 0.05


class SequentialEncoder(IDEncoder):
    """An item table, a network over it, and states scored by dot product."""

    def __init__(self, n_items: int, settings: EncoderSettings) -> None:
        super().__init__()
        self.width, self.n_items, self.history = settings.width, n_items, settings.history
        self.items = nn.Embedding(n_items, self.width)
        nn.init.normal_(self.items.weight, std=TABLE_SD)
        self.dropout = nn.Dropout(settings.dropout)

    def states(self, histories: Tensor) -> Tensor:
        """Causal states: each depends on the items up to its own. Shape ``(batch, n, width)``."""
        raise NotImplementedError

    def user_embedding(self, users: Tensor, histories: Tensor) -> Tensor:
        """The state at the newest item, ``(batch, 1, width)``."""
        return last_of(self.states(histories), histories)[:, None]

    def item_embedding(self, items: Tensor) -> Tensor:
        """Rows of the item table; padding (-1) gives an arbitrary row."""
        return self.items(items.clamp(min=0))  # type: ignore[no-any-return]

    def scores(self, users: Tensor, histories: Tensor) -> Tensor:
        """Dot products of the state with every item."""
        return self.user_embedding(users, histories).squeeze(1) @ self.items.weight.T

    def loss(self, batch: EncoderBatch) -> Tensor:
        """Cross-entropy of the next item at every position."""
        wanted = batch.targets >= 0
        return softmax_loss(self.states(batch.histories)[wanted], batch.targets[wanted], self.items, batch.sampled)


def transformer(width: int, settings: EncoderSettings) -> nn.TransformerEncoder:
    """Pre-norm layers whose feed-forward width equals the vectors' width."""
    layer = nn.TransformerEncoderLayer(
        width, settings.heads, width, settings.dropout, batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, settings.layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)


def causal_states(network: nn.TransformerEncoder, embedded: Tensor) -> Tensor:
    """States under a causal mask. Shape ``(batch, n, width)`` in and out."""
    n = embedded.shape[1]
    future = torch.ones(n, n, dtype=torch.bool, device=embedded.device).triu(1)
    states: Tensor = network(embedded, mask=future)
    return states


class SASRec(SequentialEncoder):
    """A causal transformer over the items, pre-norm."""

    def __init__(self, n_items: int, settings: EncoderSettings) -> None:
        super().__init__(n_items, settings)
        self.places = nn.Embedding(settings.history, self.width)
        nn.init.normal_(self.places.weight, std=TABLE_SD)
        self.network = transformer(self.width, settings)

    def states(self, histories: Tensor) -> Tensor:
        """States of the causal transformer; see `SequentialEncoder.states`."""
        places = self.places(torch.arange(histories.shape[1], device=histories.device))
        embedded = self.dropout(self.item_embedding(histories) * self.width**0.5 + places)
        return causal_states(self.network, embedded)


class GRU4Rec(SequentialEncoder):
    """A gated recurrent network over the item vectors."""

    def __init__(self, n_items: int, settings: EncoderSettings) -> None:
        super().__init__(n_items, settings)
        self.network = nn.GRU(self.width, self.width, settings.layers, batch_first=True)

    def states(self, histories: Tensor) -> Tensor:
        """States of the recurrent network; see `SequentialEncoder.states`."""
        states: Tensor = self.network(self.dropout(self.item_embedding(histories)))[0]
        return states
