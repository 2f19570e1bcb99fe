"""A data set in memory: users, items with their texts, and one sequence of items per user."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
TITLE = "title"  # the attribute that items are displayed by


@dataclass(frozen=True, slots=True)
class Item:
    """An item: its identifier and its attributes, the title first."""

    identifier: str
    attributes: Mapping[str, str]


@dataclass(frozen=True)
class Dataset:
    """Interactions and item texts.

    Shapes: ``sequences[u]`` and ``timestamps[u]`` are int64, one entry per interaction of user u, oldest first; a sequence
    holds positions in ``items``. ``remarks`` are sentences on what was dropped from the source.
    """

    name: str
    users: tuple[str, ...]
    items: tuple[Item, ...]
    sequences: tuple[IntArray, ...]
    timestamps: tuple[IntArray, ...]
    remarks: tuple[str, ...] = ()

    def __repr__(self) -> str:
        interactions = sum(map(len, self.sequences))
        return f"Dataset({self.name!r}: {len(self.users)} users, {len(self.items)} items, {interactions} interactions)"

    def item_index(self) -> dict[str, int]:
        """Each item's position in ``items`` by its identifier."""
        return {item.identifier: position for position, item in enumerate(self.items)}

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal sha256 over users, items with their attributes, and sequences."""
        digest = hashlib.sha256()
        for user in self.users:
            digest.update(f"{user}\n".encode())
        for item in self.items:
            digest.update(f"{item.identifier}\t{sorted(item.attributes.items())}\n".encode())
        for sequence in self.sequences:
            digest.update(sequence.astype("<i8").tobytes() + b"\n")
        return digest.hexdigest()
