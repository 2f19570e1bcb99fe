"""What the trainings of a study read, whatever their model: the catalogue as the frozen model reads it, users, purchases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import transformers
from torch import Tensor

from dasearch.data import Development, Item, ItemRows, RowFormat, Sentences
from dasearch.models.backbone import FrozenBackbone

Say = Callable[[str], None]  # told each step as it begins, how far it is (`Passing`), and what came of it (`Outcome`)


class Passing(str):
    """How far a step is: of no interest once it is over."""

    __slots__ = ()


class Outcome(str):
    """What came of a step: a line that stays."""

    __slots__ = ()


@dataclass(frozen=True)
class Catalogue:
    """The items as a backbone reads them; enough to score histories, without any interaction."""

    dataset_name: str
    items_hash: str  # of the item identifiers, in order
    backbone: FrozenBackbone
    tokenizer: transformers.PreTrainedTokenizerBase
    sentences: Sentences
    row_sentences: Sentences  # what users' rows hold of them
    row_format: RowFormat
    item_rows: ItemRows
    items: tuple[Item, ...]


@dataclass(frozen=True)
class SharedInputs:
    """What trainings of every model read besides their layout, recipe and seed."""

    catalogue: Catalogue
    development: Development
    purchases: PurchaseIndex
    item_counts: Tensor  # (items,) of training events
    text_vectors: Tensor  # (items, width) of the frozen model
    device: torch.device


class PurchaseIndex:
    """Which user bought which item in training: uniform negatives for BPR that were not bought.

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
        """From the ``keys`` of another and its number of items."""
        found = cls.__new__(cls)
        found.keys, found.n_items = keys, n_items
        return found

    def bought(self, users: Tensor, items: Tensor) -> Tensor:
        """Shapes: users, items ``(n,)`` -> ``(n,)`` bool."""
        wanted = users * self.n_items + items
        at = torch.searchsorted(self.keys, wanted).clamp(max=len(self.keys) - 1)
        return self.keys[at] == wanted

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Every distinct (user, item) of training."""
        return self.keys // self.n_items, self.keys % self.n_items

    def sample_negatives(self, users: Tensor, generator: torch.Generator, *, rounds: int = 4) -> Tensor:
        """An item for each user, redrawn up to ``rounds`` times while it is one the user bought. Shape ``(n,)``."""
        items = torch.randint(self.n_items, users.shape, generator=generator)
        for _ in range(rounds):
            again = torch.randint(self.n_items, users.shape, generator=generator)
            items = torch.where(self.bought(users, items), again, items)
        return items
