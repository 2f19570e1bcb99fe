"""Collaborative-filtering models whose user and item vectors are injected into the language model.

Liu et al. 2024 (DARec), sec. 2.3.2 and app. G; He et al. 2017 (NCF / NeuMF).
Differs from NeuMF: one table a side serves both of its paths (``embedding="concat"`` keeps two, as printed there).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

import torch
from torch import Tensor, nn

CF_WIDTH = 64  # unstated in the paper; SPEC 1.4
INIT_SD = 0.01  # of the tables, as in He et al. 2017


class NCFEmbedding(StrEnum):
    SHARED = "shared"
    CONCAT = "concat"


class CollaborativeModel(Protocol):
    """What DARec asks of a CF model. Shapes: users, items ``(...)`` int64 -> vectors ``(..., width)``, scores ``(...)``."""

    width: int

    def user_vectors(self, users: Tensor) -> Tensor: ...
    def item_vectors(self, items: Tensor) -> Tensor: ...
    def scores(self, users: Tensor, items: Tensor) -> Tensor: ...


class MatrixFactorization(nn.Module):
    """``score(u, i) = e_u . e_i + b_i``."""

    def __init__(self, n_users: int, n_items: int, *, width: int = CF_WIDTH, generator: torch.Generator) -> None:
        super().__init__()
        self.width = width
        self.users = _table(n_users, width, generator)
        self.items = _table(n_items, width, generator)
        self.bias = nn.Embedding(n_items, 1)
        nn.init.zeros_(self.bias.weight)

    def user_vectors(self, users: Tensor) -> Tensor:
        return self.users(users)  # type: ignore[no-any-return]

    def item_vectors(self, items: Tensor) -> Tensor:
        return self.items(items)  # type: ignore[no-any-return]

    def scores(self, users: Tensor, items: Tensor) -> Tensor:
        product: Tensor = self.users(users) * self.items(items)
        bias: Tensor = self.bias(items)
        return product.sum(-1) + bias.squeeze(-1)


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
        self.width = tables * width
        self.users = _table(n_users, self.width, generator)
        self.items = _table(n_items, self.width, generator)
        self.mlp = nn.Sequential(
            _linear(2 * width, width, generator), nn.ReLU(), _linear(width, width // 2, generator), nn.ReLU()
        )
        self.out = _linear(width + width // 2, 1, generator)

    def user_vectors(self, users: Tensor) -> Tensor:
        return self.users(users)  # type: ignore[no-any-return]

    def item_vectors(self, items: Tensor) -> Tensor:
        return self.items(items)  # type: ignore[no-any-return]

    def scores(self, users: Tensor, items: Tensor) -> Tensor:
        user, item = self.users(users), self.items(items)
        product = user[..., : self.path_width] * item[..., : self.path_width]
        inner = self.mlp(torch.cat([user[..., -self.path_width :], item[..., -self.path_width :]], dim=-1))
        return self.out(torch.cat([product, inner], dim=-1)).squeeze(-1)  # type: ignore[no-any-return]


def _table(rows: int, width: int, generator: torch.Generator) -> nn.Embedding:
    table = nn.Embedding(rows, width)
    nn.init.normal_(table.weight, std=INIT_SD, generator=generator)
    return table


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer
