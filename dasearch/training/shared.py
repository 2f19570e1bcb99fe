"""Inputs shared by all of a study's trainings, whatever their model: the tokenised catalogue, users, purchases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import transformers
from torch import Tensor

from dasearch.data import Development, Item, ItemRows, RowFormat, Sentences
from dasearch.models.backbone import FrozenBackbone

Say = Callable[[str], None]  # receives a message before each step, its progress (`Passing`), and its result (`Outcome`)


class Passing(str):
    """A progress message, which may be discarded once the step is finished."""

    __slots__ = ()


class Outcome(str):
    """A result message, which is kept."""

    __slots__ = ()


@dataclass(frozen=True)
class Catalogue:
    """The items as tokenised for a backbone: sufficient to score histories, without any interactions."""

    dataset_name: str
    items_hash: str  # hash of the item ids, in order
    backbone: FrozenBackbone
    tokenizer: transformers.PreTrainedTokenizerBase
    sentences: Sentences
    row_sentences: Sentences  # the items' form in users' rows
    row_format: RowFormat
    item_rows: ItemRows
    items: tuple[Item, ...]


@dataclass(frozen=True)
class SharedInputs:
    """Inputs of trainings of every model, besides layout, recipe and seed."""

    catalogue: Catalogue
    development: Development
    purchases: PurchaseIndex
    item_counts: Tensor  # (items,), number of training events
    text_vectors: Tensor  # (items, width), from the frozen model
    device: torch.device


class PurchaseIndex:
    """Index of training purchases, for sampling uniform negatives that a user did not buy.

    Args:
        development: users' training sequences.
    """

    def __init__(self, development: Development) -> None:
        self.n_items = development.n_items
        keys = [
            np.unique(sequence) + user * self.n_items
            for user, sequence in zip(development.users.tolist(), development.train, strict=True)
        ]
        self.keys = torch.from_numpy(np.sort(np.concatenate(keys)))

    @classmethod
    def of_keys(cls, keys: Tensor, n_items: int) -> PurchaseIndex:
        """The index with these ``keys``, taken from another one, and this number of items."""
        index = cls.__new__(cls)
        index.keys, index.n_items = keys, n_items
        return index

    def bought(self, users: Tensor, items: Tensor) -> Tensor:
        """Whether users bought items. Shapes: users, items ``(n,)`` -> ``(n,)`` bool."""
        wanted = users * self.n_items + items
        at = torch.searchsorted(self.keys, wanted).clamp(max=len(self.keys) - 1)
        return self.keys[at] == wanted

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Every distinct (user, item) pair of the training data."""
        return self.keys // self.n_items, self.keys % self.n_items

    def sample_negatives(self, users: Tensor, generator: torch.Generator, *, rounds: int = 4) -> Tensor:
        """An item for each user, resampled up to ``rounds`` times while the user bought it. Shape ``(n,)``."""
        items = torch.randint(self.n_items, users.shape, generator=generator)
        for _ in range(rounds):
            again = torch.randint(self.n_items, users.shape, generator=generator)
            items = torch.where(self.bought(users, items), again, items)
        return items
