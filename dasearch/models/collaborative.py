"""Collaborative-filtering models whose user and item vectors are injected into the language model.

Liu et al. 2024 (DARec), sec. 2.3.2 and app. G; He et al. 2017 (NCF / NeuMF).
Differs from NeuMF: one embedding table each for users and items serves both paths (``embedding="concat"`` keeps two, as
printed there).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dasearch.models.stacking import Linear, Table, linear

CF_WIDTH = 64  # unstated in the paper; SPEC 1.4
INIT_SD = 0.01  # of the tables, as in He et al. 2017
RIDGE = 1e-3  # of the fold-in regression, relative to the mean square of its inputs


class NCFEmbedding(StrEnum):
    """Whether the two paths of NCF share their embedding tables."""

    SHARED = "shared"
    CONCAT = "concat"


class CollaborativeModel(Protocol):
    """The interface of a CF model for DARec.

    Shapes: users, items ``(...)`` int64 -> vectors ``(..., width)``, scores ``(...)``.
    """

    width: int

    def user_vectors(self, users: Tensor) -> Tensor:
        """The users' embedding vectors."""

    def item_vectors(self, items: Tensor) -> Tensor:
        """The items' embedding vectors."""

    def scores(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores of user-item pairs; larger is better."""

    def score_all(self, vectors: Tensor) -> Tensor:
        """Scores of every item. Shapes: user vectors ``(batch, width)`` -> ``(batch, items)``."""
        ...


class MatrixFactorization(nn.Module):
    """``score(u, i) = e_u . e_i + b_i``."""

    def __init__(self, n_users: int, n_items: int, *, width: int = CF_WIDTH, generator: torch.Generator) -> None:
        super().__init__()
        self.width, self.n_items = width, n_items
        self.users = _table(n_users, width, generator)
        self.items = _table(n_items, width, generator)
        self.bias = Table(n_items, 1)
        nn.init.zeros_(self.bias.weight)

    def user_vectors(self, users: Tensor) -> Tensor:
        """The users' embedding vectors."""
        return self.users(users)  # type: ignore[no-any-return]

    def item_vectors(self, items: Tensor) -> Tensor:
        """The items' embedding vectors."""
        return self.items(items)  # type: ignore[no-any-return]

    def scores(self, users: Tensor, items: Tensor) -> Tensor:
        """Dot products plus item biases."""
        product: Tensor = self.users(users) * self.items(items)
        bias: Tensor = self.bias(items)
        return product.sum(-1) + bias.squeeze(-1)

    def score_all(self, vectors: Tensor) -> Tensor:
        """Scores of every item by one matrix product."""
        return vectors @ self.items.weight.T + self.bias.weight.T


class NeuralCollaborativeFiltering(nn.Module):
    """NeuMF: ``score = w . [e_u * e_i ; MLP([e_u ; e_i])]``."""

    def __init__(
        self,
        n_users: int,
        n_items: int,
        *,
        width: int = CF_WIDTH,
        embedding: NCFEmbedding = NCFEmbedding.SHARED,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        tables = 1 if embedding is NCFEmbedding.SHARED else 2
        self.path_width = width
        self.width, self.n_items = tables * width, n_items
        self.users = _table(n_users, self.width, generator)
        self.items = _table(n_items, self.width, generator)
        self.mlp = nn.Sequential(
            _linear(2 * width, width, generator), nn.ReLU(), _linear(width, width // 2, generator), nn.ReLU()
        )
        self.out = _linear(width + width // 2, 1, generator)

    def user_vectors(self, users: Tensor) -> Tensor:
        """The users' embedding vectors."""
        return self.users(users)  # type: ignore[no-any-return]

    def item_vectors(self, items: Tensor) -> Tensor:
        """The items' embedding vectors."""
        return self.items(items)  # type: ignore[no-any-return]

    def scores(self, users: Tensor, items: Tensor) -> Tensor:
        """NeuMF scores of user-item pairs."""
        return self._score(self.users(users), self.items(items))

    def score_all(self, vectors: Tensor) -> Tensor:
        """NeuMF scores of every item."""
        items = self.items.weight
        shape = (len(vectors), len(items), self.width)
        return self._score(vectors[:, None].expand(shape), items[None].expand(shape))

    def _score(self, user: Tensor, item: Tensor) -> Tensor:
        product = user[..., : self.path_width] * item[..., : self.path_width]
        inner = self.mlp(torch.cat([user[..., -self.path_width :], item[..., -self.path_width :]], dim=-1))
        return self.out(torch.cat([product, inner], dim=-1)).squeeze(-1)  # type: ignore[no-any-return]


def own_or_estimated(model: CollaborativeModel, matrix: Tensor, users: Tensor, histories: Tensor) -> Tensor:
    """Users' own vectors; for users outside the training data (-1), estimates from the history by `fold_in_matrix`.

    Shapes: users ``(batch,)``, histories ``(batch, n)`` padded with -1 -> ``(batch, width)``.
    """
    own = model.user_vectors(users.clamp(min=0))
    if bool((users >= 0).all()):
        return own
    real = (histories >= 0)[..., None]
    mean = (model.item_vectors(histories.clamp(min=0)) * real).sum(1) / real.sum(1)
    estimated = linear(F.pad(mean, (0, 1), value=1.0), matrix.transpose(-1, -2), None)
    return torch.where((users >= 0)[:, None], own, estimated)


@torch.no_grad()
def fold_in_matrix(model: CollaborativeModel, users: Tensor, sequences: Sequence[Tensor]) -> Tensor:
    """Ridge regression of users' vectors on the means of their training items' vectors: ``(width + 1, width)``.

    It estimates vectors of users outside the training data (fold-in).
    """
    means = torch.stack([model.item_vectors(items).mean(0) for items in sequences])
    known = torch.cat([means, means.new_ones(len(means), 1)], dim=1).double()
    gram = known.T @ known
    penalty = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    solved: Tensor = torch.linalg.solve(gram + penalty, known.T @ model.user_vectors(users).double())
    return solved.float()


def _table(rows: int, width: int, generator: torch.Generator) -> Table:
    table = Table(rows, width)
    nn.init.normal_(table.weight, std=INIT_SD, generator=generator)
    return table


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> Linear:
    layer = Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer
