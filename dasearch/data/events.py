"""Interactions as one table, before they become sequences: order, ties and filters.

Events of one basket or one day share a timestamp and their order is arbitrary; taken at face value it makes last-item
tests easy for the wrong reason. `Ties` chooses how they are handled.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from dasearch.data.dataset import Dataset, IntArray
from dasearch.errors import DataError

Keys = npt.NDArray[np.uint64]
LEAVE_ONE_OUT_EVENTS = 3  # training, validation, test


class Ties(StrEnum):
    """How a user's events with equal timestamps are handled."""

    SHUFFLE = "shuffle"
    ONE = "one"
    KEEP = "keep"


class Duplicates(StrEnum):
    """How a user's repeated events with one item are handled."""

    KEEP = "keep"
    FIRST = "first"  # as UniSRec has it


class Core(StrEnum):
    """Whether items and users with too few events are dropped once or iteratively."""

    ONE_PASS = "one-pass"  # DARec sec. 3.1.1
    ITERATED = "iterated"  # until both minima hold: the k-core


@dataclass(frozen=True)
class Events:
    """Parallel int64 columns ``(events,)``, one entry per interaction, in file order."""

    users: IntArray
    items: IntArray
    timestamps: IntArray

    def where(self, kept: npt.NDArray[np.bool_]) -> Events:
        """The events where ``kept`` ``(events,)`` is true, in order."""
        if kept.all():
            return self
        return Events(self.users[kept], self.items[kept], self.timestamps[kept])

    def take(self, order: IntArray) -> Events:
        """The events at the positions ``order``, in that order."""
        return Events(self.users[order], self.items[order], self.timestamps[order])


def identity_keys(identifiers: Iterable[str]) -> Keys:
    """A 64-bit key of each identifier, which, unlike its number, does not depend on the rest of the file."""
    digests = (hashlib.blake2b(identifier.encode(), digest_size=8).digest() for identifier in identifiers)
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def seeded_hash(*columns: npt.NDArray[np.integer[Any]], seed: int) -> Keys:
    """A 64-bit hash per row of the row's values and the seed (splitmix64)."""
    state = np.full(len(columns[0]), np.uint64(seed % 2**63), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for column in columns:
            state = _mix(state ^ column.astype(np.uint64))
    return state


def _mix(x: Keys) -> Keys:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def ordered(
    events: Events, ties: Ties, *, seed: int, user_keys: Keys | None = None, item_keys: Keys | None = None
) -> Events:
    """Events by user and time; equal times shuffled, reduced to one, or left in file order.

    The shuffled or reduced events of a user depend on that user's events and the seed, never on other users or the
    order of the file. Numbers change with the file, so a reader passes `identity_keys`: user_keys ``(users,)`` and
    item_keys ``(items,)``; without them the numbers are the keys.
    """
    rank: tuple[Keys, ...] = ()  # a stable sort keeps file order without keys
    if ties is not Ties.KEEP:
        users = events.users if user_keys is None else user_keys[events.users]
        items = events.items if item_keys is None else item_keys[events.items]
        rank = (seeded_hash(users, items, events.timestamps, _occurrence(events), seed=seed),)
    result = events.take(np.lexsort((*rank, events.timestamps, events.users)))
    if ties is Ties.ONE:
        first = np.ones(len(result.users), dtype=np.bool_)
        first[1:] = (np.diff(result.users) != 0) | (np.diff(result.timestamps) != 0)
        result = result.where(first)
    return result


def sample_users(dataset: Dataset, count: int, *, seed: int) -> Dataset:
    """``count`` users, sampled by a hash of their identifiers, and their items; the data set itself where it is smaller."""
    if count >= len(dataset.users):
        return dataset
    drawn = np.argsort(seeded_hash(identity_keys(dataset.users), seed=seed), kind="stable")[:count]
    kept = np.sort(drawn).tolist()
    met = np.unique(np.concatenate([dataset.sequences[user] for user in kept]))
    return dataclasses.replace(
        dataset,
        users=tuple(dataset.users[user] for user in kept),
        items=tuple(dataset.items[item] for item in met.tolist()),
        sequences=tuple(np.searchsorted(met, dataset.sequences[user]) for user in kept),
        timestamps=tuple(dataset.timestamps[user] for user in kept),
    )


def _occurrence(events: Events) -> IntArray:
    """0, 1, ... among equal events: numbers repeats of one item at one time, independent of the file's order."""
    order = np.lexsort((events.items, events.timestamps, events.users))
    by_value = events.take(order)
    new = np.ones(len(order), dtype=np.bool_)
    new[1:] = (np.diff(by_value.users) != 0) | (np.diff(by_value.timestamps) != 0) | (np.diff(by_value.items) != 0)
    starts = np.flatnonzero(new)
    sizes = np.diff(np.append(starts, len(order)))
    occurrence = np.empty(len(order), dtype=np.int64)
    occurrence[order] = np.arange(len(order)) - np.repeat(starts, sizes)
    return occurrence


def first_of_pairs(events: Events) -> Events:
    """The earliest event of each pair of user and item, at equal times the first in the file; file order is kept."""
    order = np.lexsort((events.timestamps, events.items, events.users))
    by_pair = events.take(order)
    first = np.ones(len(order), dtype=np.bool_)
    first[1:] = (np.diff(by_pair.users) != 0) | (np.diff(by_pair.items) != 0)
    return events.take(np.sort(order[first]))


def reduce_to_core(
    events: Events, *, n_items: int, min_item: int, min_user: int, core: Core
) -> tuple[Events, npt.NDArray[np.bool_]]:
    """Drop events of rare items and then those of users with few events, once or until nothing changes.

    Returns:
        The events left, and for each item ``(n_items,)`` whether it was frequent in the last pass.

    Raises:
        DataError: if no user is left.
    """
    while True:
        frequent = np.bincount(events.items, minlength=n_items) >= min_item
        kept = keep_long_users(events.where(frequent[events.items]), max(min_user, LEAVE_ONE_OUT_EVENTS))
        if core is Core.ONE_PASS or len(kept.users) == len(events.users):
            return kept, frequent
        events = kept


def keep_long_users(events: Events, minimum: int) -> Events:
    """Events of users with at least ``minimum`` events.

    Raises:
        DataError: if no user is left.
    """
    kept = events.where(np.bincount(events.users)[events.users] >= minimum) if len(events.users) else events
    if not len(kept.users):
        reason = ", which leave-one-out needs" if minimum == LEAVE_ONE_OUT_EVENTS else ""
        raise DataError(
            f"no user has {minimum} interactions left after the filters{reason}; "
            "bring longer histories or lower min_item_interactions and min_user_interactions"
        )
    return kept
