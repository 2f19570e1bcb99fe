"""Leave-one-out: the last item for the test, the one before it for validation (DARec sec. 3.1.2).

Search and training are handed `Development`, in which no test item occurs. The test split opens once.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from dasearch.data.dataset import Dataset, IntArray
from dasearch.errors import TestSplitError


@dataclass(frozen=True)
class Development:
    """Training and validation data of some or all users.

    Shapes: ``users`` and ``valid`` ``(users,)``; ``train[k]`` the items of ``users[k]`` before the validation item.
    ``n_users`` and ``n_items`` are those of the whole data set.
    """

    users: IntArray  # increasing positions in the data set
    train: tuple[IntArray, ...]
    valid: IntArray
    n_users: int
    n_items: int

    def sample_users(self, fraction: float, generator: torch.Generator) -> Development:
        """Data_BO: a random share of the users, with the whole catalogue kept (DARec sec. 3.1.1)."""
        wanted = max(1, round(fraction * len(self.users)))
        if wanted >= len(self.users):
            return self
        kept = np.sort(torch.randperm(len(self.users), generator=generator)[:wanted].numpy())
        return dataclasses.replace(
            self, users=self.users[kept], train=tuple(self.train[k] for k in kept), valid=self.valid[kept]
        )

    def item_counts(self) -> IntArray:
        """Training interactions of each item, ``(n_items,)``."""
        return np.bincount(np.concatenate(self.train), minlength=self.n_items).astype(np.int64)


@dataclass(frozen=True)
class TestSplit:
    """Shapes: ``users`` and ``target`` ``(users,)``; ``history[k]`` everything before the target."""

    __test__ = False  # not a test of pytest

    users: IntArray
    history: tuple[IntArray, ...]
    target: IntArray


class LeaveOneOut:
    """The three splits of a data set."""

    def __init__(self, dataset: Dataset) -> None:
        users = np.arange(len(dataset.users))
        sequences = dataset.sequences
        self.development = Development(
            users=users,
            train=tuple(sequence[:-2] for sequence in sequences),
            valid=np.array([sequence[-2] for sequence in sequences], dtype=np.int64),
            n_users=len(users),
            n_items=len(dataset.items),
        )
        target = np.array([sequence[-1] for sequence in sequences], dtype=np.int64)
        self._test: TestSplit | None = TestSplit(users, tuple(sequence[:-1] for sequence in sequences), target)

    def open_test(self) -> TestSplit:
        """The test split, for the final evaluation.

        Raises:
            TestSplitError: at the second call.
        """
        if self._test is None:
            raise TestSplitError("the test split was read already; it is read once, by the final evaluation")
        test, self._test = self._test, None
        return test
