"""Leave-one-out: the last item for the test, the one before it for validation (DARec sec. 3.1.2).

Search and training receive `Development`, which contains no test item. The test split can be read only once.
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

    Shapes: ``users`` and ``valid`` ``(users,)``; ``train[k]`` holds the items of ``users[k]`` before the validation item.
    ``n_users`` and ``n_items`` are those of the whole data set.
    """

    users: IntArray  # increasing positions in the data set
    train: tuple[IntArray, ...]
    valid: IntArray
    n_users: int
    n_items: int

    def sample_users(self, fraction: float, generator: torch.Generator) -> Development:
        """Data_BO: a random fraction of the users with the whole catalogue (DARec sec. 3.1.1)."""
        wanted = max(1, round(fraction * len(self.users)))
        if wanted >= len(self.users):
            return self
        kept = np.sort(torch.randperm(len(self.users), generator=generator)[:wanted].numpy())
        return dataclasses.replace(
            self, users=self.users[kept], train=tuple(self.train[k] for k in kept), valid=self.valid[kept]
        )

    def item_counts(self) -> IntArray:
        """Number of training interactions of each item, ``(n_items,)``."""
        return np.bincount(np.concatenate(self.train), minlength=self.n_items).astype(np.int64)


@dataclass(frozen=True)
class TestSplit:
    """Held-out items. Shapes: ``users`` and ``target`` ``(users,)``; ``history[k]`` holds all items before the target."""

    __test__ = False  # keeps pytest from collecting it

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
            raise TestSplitError("the test split was already read; only the final evaluation may read it, once")
        test, self._test = self._test, None
        return test
