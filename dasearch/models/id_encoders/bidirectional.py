"""BERT4Rec: a bidirectional transformer that learns to predict masked items.

Sun et al. 2019, https://arxiv.org/abs/1904.06690.
Differs from the authors' code: positions count from the mask that asks for the next item, so that short and long histories
share them; the newest item of a training row is always masked in addition to the random ones, as this is the ranking task.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dasearch.models.id_encoders.base import EncoderBatch, EncoderSettings, IDEncoder, real_items, softmax_loss
from dasearch.models.id_encoders.sequential import TABLE_SD, transformer

MASKED = 0.2  # share of a training row's items that are masked (the paper: .2 to .6, depending on the data set)


class BERT4Rec(IDEncoder):
    """The state at a mask, scored against the item table."""

    def __init__(self, n_items: int, settings: EncoderSettings) -> None:
        super().__init__()
        self.width, self.n_items, self.history = settings.width, n_items, settings.history
        self.items = nn.Embedding(n_items, self.width)
        self.mask = nn.Parameter(torch.empty(self.width).normal_(std=TABLE_SD))
        self.places = nn.Embedding(settings.history + 1, self.width)
        for table in (self.items, self.places):
            nn.init.normal_(table.weight, std=TABLE_SD)
        self.dropout = nn.Dropout(settings.dropout)
        self.network = transformer(self.width, settings)

    def states(self, rows: Tensor, masked: Tensor) -> Tensor:
        """States of all positions; masked items are hidden from the network.

        Shapes: rows ``(batch, n)``, masked ``(batch, n)`` bool -> ``(batch, n, width)``.
        """
        real = real_items(rows) | masked
        age = real.sum(1, keepdim=True) - 1 - torch.arange(rows.shape[1], device=rows.device)
        items = torch.where(masked[..., None], self.mask, self.item_embedding(rows))
        embedded = self.dropout(items * self.width**0.5 + self.places(age.clamp(min=0)))
        return self.network(embedded, src_key_padding_mask=~real)  # type: ignore[no-any-return]

    def user_embedding(self, users: Tensor, histories: Tensor) -> Tensor:
        """The state at a mask after the newest item, ``(batch, 1, width)``."""
        lengths = real_items(histories).sum(1, keepdim=True)
        rows = F.pad(histories, (0, 1), value=-1)
        masked = torch.arange(rows.shape[1], device=rows.device) == lengths
        return self.states(rows, masked)[masked][:, None]

    def item_embedding(self, items: Tensor) -> Tensor:
        """Rows of the item table; padding (-1) gives an arbitrary row."""
        return self.items(items.clamp(min=0))  # type: ignore[no-any-return]

    def scores(self, users: Tensor, histories: Tensor) -> Tensor:
        """Dot products of the state with every item."""
        return self.user_embedding(users, histories).squeeze(1) @ self.items.weight.T

    def loss(self, batch: EncoderBatch) -> Tensor:
        """Cross-entropy of the masked items of each row, always including the newest (cloze task)."""
        rows = torch.cat([batch.histories[:, :1], batch.targets], dim=1)
        real = real_items(rows)
        newest = torch.arange(rows.shape[1], device=rows.device) == real.sum(1, keepdim=True) - 1
        masked = real & (newest | (torch.rand(rows.shape, device=rows.device) < MASKED))
        return softmax_loss(self.states(rows, masked)[masked], rows[masked], self.items, batch.sampled)
