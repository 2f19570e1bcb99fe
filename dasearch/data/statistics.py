"""Statistics of a data set: those of DARec's table 1, and indicators of whether its order is reliable."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dasearch.data.dataset import TITLE, Dataset, IntArray
from dasearch.data.sentences import item_sentence
from dasearch.data.splits import LeaveOneOut


@dataclass(frozen=True)
class Statistics:
    """Counts as in DARec's table 1, and shares of repeats and ties.

    ``train_interactions`` is its "#Inter.", which leaves out each user's last two; ``mean_length`` its "Avg. Items".
    ``identity`` says whether #Inter. / #Users + 2 = Avg. Items, as in all five rows: it fails where a split loses or
    repeats an interaction. ``remarks`` describe what was dropped from the source.
    """

    name: str
    users: int
    items: int
    interactions: int
    train_interactions: int
    mean_length: float
    identity: bool
    median_length: float
    longest: int
    density: float
    repeated: float  # share of interactions with an item the user had before
    tied_last: float  # share of users whose last two interactions share a timestamp
    items_with_interactions: int
    items_with_title: int
    median_words: float  # of an item sentence
    remarks: tuple[str, ...] = ()


def statistics(dataset: Dataset) -> Statistics:
    """Compute the statistics of a data set."""
    lengths = np.array([len(sequence) for sequence in dataset.sequences])
    total = int(lengths.sum())
    train = sum(len(sequence) for sequence in LeaveOneOut(dataset).development.train)
    distinct = _pairs(dataset, lengths)
    tied = sum(bool(t[-1] == t[-2]) for t in dataset.timestamps)
    words = [len(item_sentence(item).split()) for item in dataset.items]
    return Statistics(
        name=dataset.name,
        users=len(dataset.users),
        items=len(dataset.items),
        interactions=total,
        train_interactions=train,
        mean_length=float(lengths.mean()),
        identity=math.isclose(train / len(dataset.users) + 2, lengths.mean()),
        median_length=float(np.median(lengths)),
        longest=int(lengths.max()),
        density=distinct / (len(dataset.users) * len(dataset.items)),
        repeated=1 - distinct / total,
        tied_last=tied / len(dataset.users),
        items_with_interactions=len(np.unique(np.concatenate(dataset.sequences))),
        items_with_title=sum(bool(item.attributes.get(TITLE)) for item in dataset.items),
        median_words=float(np.median(words)),
        remarks=dataset.remarks,
    )


def _pairs(dataset: Dataset, lengths: IntArray) -> int:
    """Number of distinct pairs of user and item."""
    users = np.repeat(np.arange(len(lengths)), lengths)
    return len(np.unique(users * len(dataset.items) + np.concatenate(dataset.sequences)))
