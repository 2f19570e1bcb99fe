"""Selection of training examples: all, a few per user, those with overlapping texts, or an even sample of every bucket.

RA-Rec's data construction (SPEC 4): drop examples whose target shares no word with the history's titles; sort users by
the length of their sequence and targets by popularity into buckets, and draw evenly from each pair of buckets.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dasearch.data.dataset import TITLE, IntArray, Item
from dasearch.data.splits import Development
from dasearch.errors import DataError

BUCKETS = 5  # of user lengths and of item popularity; the paper gives no number


@dataclass(frozen=True)
class Examples:
    """Predict item ``cuts[e]`` of the training sequence of ``users[e]`` from the items before it.

    Shapes: users (positions in the data set), cuts ``(examples,)``, sorted by user and cut.
    """

    users: IntArray
    cuts: IntArray

    def __len__(self) -> int:
        return len(self.users)

    def take(self, places: IntArray) -> Examples:
        """The examples at these positions."""
        return Examples(self.users[places], self.cuts[places])

    def cuts_of(self, user: int) -> IntArray:
        """The cuts of one user's examples."""
        first, end = np.searchsorted(self.users, [user, user + 1])
        return self.cuts[first:end]

    def of(self, users: IntArray) -> IntArray:
        """Positions of the examples of these users, ``(examples of theirs,)``."""
        return np.flatnonzero(np.isin(self.users, users))


def all_examples(development: Development) -> Examples:
    """One example for every training item that has a predecessor."""
    counts = [max(0, len(sequence) - 1) for sequence in development.train]
    return Examples(
        np.repeat(development.users, counts),
        np.concatenate([np.arange(1, count + 1) for count in counts]).astype(np.int64),
    )


def select_examples(
    development: Development,
    items: Sequence[Item],
    *,
    per_user: int | None = None,
    overlap: bool = False,
    diverse: float | None = None,
    generator: torch.Generator,
) -> Examples:
    """The training examples that a study's rules select.

    Args:
        development: whose training items are the targets.
        items: of the whole catalogue, with their titles.
        per_user: maximum number of examples per user, sampled at random.
        overlap: keep only those whose target shares a word with the history's titles.
        diverse: fraction of the rest to keep, sampled evenly from buckets of user length and item popularity.
        generator: of the random samples.

    Raises:
        DataError: if nothing is left.
    """
    examples = all_examples(development)
    if overlap:
        examples = examples.take(_overlapping(examples, development, [title_words(item) for item in items]))
    if per_user is not None:
        examples = examples.take(_some_of_each(examples.users, per_user, generator))
    if diverse is not None:
        wanted = max(1, round(diverse * len(examples)))
        examples = examples.take(_evenly(bucket_pairs(examples, development), wanted, generator))
    if not len(examples):
        raise DataError("no training example is left; loosen examples.overlap, or use users with two training items")
    return examples


def title_words(item: Item) -> frozenset[str]:
    """Lower-case words of an item's title."""
    return frozenset(re.findall(r"\w+", item.attributes.get(TITLE, "").lower()))


def _overlapping(examples: Examples, development: Development, words: Sequence[frozenset[str]]) -> IntArray:
    kept = []
    for user, sequence in zip(development.users.tolist(), development.train, strict=True):
        seen: set[str] = set(words[sequence[0]]) if len(sequence) else set()
        for cut, item in enumerate(sequence[1:].tolist(), start=1):
            if seen & words[item]:
                kept.append((user, cut))
            seen |= words[item]
    wanted = set(kept)
    pairs = zip(examples.users.tolist(), examples.cuts.tolist(), strict=True)
    return np.flatnonzero([pair in wanted for pair in pairs])


def _some_of_each(users: IntArray, count: int, generator: torch.Generator) -> IntArray:
    order = torch.randperm(len(users), generator=generator).numpy()
    by_user = order[np.argsort(users[order], kind="stable")]
    return np.sort(by_user[_place_in_group(users[by_user]) < count])


def _place_in_group(groups: IntArray) -> IntArray:
    """0, 1, 2, ... within each run of equal values."""
    places = np.arange(len(groups))
    first = np.concatenate([[True], groups[1:] != groups[:-1]]) if len(groups) else np.zeros(0, dtype=np.bool_)
    return places - np.maximum.accumulate(np.where(first, places, 0))


def bucket_pairs(examples: Examples, development: Development, buckets: int = BUCKETS) -> IntArray:
    """A number for the pair of user-length and target-popularity bucket (quantiles) of each example, ``(examples,)``."""
    row = {user: k for k, user in enumerate(development.users.tolist())}
    rows = [row[user] for user in examples.users.tolist()]
    lengths = np.array([len(development.train[k]) for k in rows])
    targets = [development.train[k][cut] for k, cut in zip(rows, examples.cuts.tolist(), strict=True)]
    popularity = development.item_counts()[targets]
    return _quantile_bucket(lengths, buckets) * buckets + _quantile_bucket(popularity, buckets)


def _quantile_bucket(values: IntArray, buckets: int) -> IntArray:
    edges = np.quantile(values, np.linspace(0, 1, buckets + 1)[1:-1])
    return np.searchsorted(edges, values, side="left").astype(np.int64)


def _evenly(groups: IntArray, wanted: int, generator: torch.Generator) -> IntArray:
    """Positions of ``wanted`` members, taken round-robin from the groups."""
    order = torch.randperm(len(groups), generator=generator).numpy()
    by_group = order[np.argsort(groups[order], kind="stable")]
    turn = _place_in_group(groups[by_group])
    return np.sort(by_group[np.argsort(turn, kind="stable")][:wanted])
