"""MF and NeuMF as ID encoders: a vector per user, estimated from the history for users outside the training data.

Rendle et al. 2009 (BPR); He et al. 2017 (NeuMF). The models are shared with DARec: `dasearch.models.collaborative`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dasearch.models.collaborative import (
    MatrixFactorization,
    NeuralCollaborativeFiltering,
    fold_in_matrix,
    own_or_estimated,
)
from dasearch.models.id_encoders.base import EncoderBatch, EncoderSettings, IDEncoder, Reads


class FactorEncoder(IDEncoder):
    """A collaborative-filtering model with the interface of ID encoders."""

    reads = Reads.PAIRS
    fold_in: Tensor

    def __init__(self, model: MatrixFactorization | NeuralCollaborativeFiltering, history: int) -> None:
        super().__init__()
        self.model = model
        self.width, self.n_items, self.history = model.width, model.n_items, history
        self.register_buffer("fold_in", torch.zeros(self.width + 1, self.width))

    def user_embedding(self, users: Tensor, histories: Tensor) -> Tensor:
        """The user's own vector, or an estimate from the history, ``(batch, 1, width)``."""
        return self._vectors(users, histories)[:, None]

    def _vectors(self, users: Tensor, histories: Tensor) -> Tensor:
        return own_or_estimated(self.model, self.fold_in, users, histories)

    def item_embedding(self, items: Tensor) -> Tensor:
        """The model's item vectors; padding (-1) gives an arbitrary one."""
        return self.model.item_vectors(items.clamp(min=0))

    def scores(self, users: Tensor, histories: Tensor) -> Tensor:
        """The collaborative model's scores of every item."""
        return self.model.score_all(self._vectors(users, histories))

    def loss(self, batch: EncoderBatch) -> Tensor:
        """BPR: each target against an item that the user did not buy."""
        wanted = batch.targets >= 0
        users = batch.users[:, None].expand_as(batch.targets)[wanted]
        bought = self.model.scores(users, batch.targets[wanted])
        return -F.logsigmoid(bought - self.model.scores(users, batch.unbought[wanted])).mean()

    @torch.no_grad()
    def fit_cold_start(self, users: Tensor, sequences: Sequence[Tensor]) -> None:
        """Fit the ridge regression of user vectors on histories; see `fold_in_matrix`."""
        self.fold_in.copy_(fold_in_matrix(self.model, users, sequences))


def matrix_factorization(
    n_users: int, n_items: int, settings: EncoderSettings, generator: torch.Generator
) -> IDEncoder:
    """MF as an ID encoder."""
    model = MatrixFactorization(n_users, n_items, width=settings.width, generator=generator)
    return FactorEncoder(model, settings.history)


def neumf(n_users: int, n_items: int, settings: EncoderSettings, generator: torch.Generator) -> IDEncoder:
    """NeuMF as an ID encoder."""
    model = NeuralCollaborativeFiltering(n_users, n_items, width=settings.width, generator=generator)
    return FactorEncoder(model, settings.history)
