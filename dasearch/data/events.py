"""Interactions as one table, before they become sequences: order, ties and filters.

Events of one basket or one day share a timestamp and their order means nothing; taken at face value it makes last-item
tests easy for the wrong reason. `Ties` says what happens to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from dasearch.data.dataset import IntArray
from dasearch.errors import DataError

LEAVE_ONE_OUT_EVENTS = 3  # training, validation, test


class Ties(StrEnum):
    """What becomes of a user's events with one timestamp."""

    SHUFFLE = "shuffle"
    ONE = "one"
    KEEP = "keep"


@dataclass(frozen=True)
class Events:
    """Parallel int64 columns, one entry an interaction, in file order."""

    users: IntArray
    items: IntArray
    timestamps: IntArray

    def where(self, kept: npt.NDArray[np.bool_]) -> Events:
        return Events(self.users[kept], self.items[kept], self.timestamps[kept])

    def take(self, order: IntArray) -> Events:
        return Events(self.users[order], self.items[order], self.timestamps[order])


def seeded_hash(*columns: IntArray, seed: int) -> npt.NDArray[np.uint64]:
    """A well-mixed 64-bit number a row that depends on the row's values and the seed alone (splitmix64)."""
    state = np.full(len(columns[0]), np.uint64(seed % 2**63), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for column in columns:
            state = _mix(state ^ column.astype(np.uint64))
    return state


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def ordered(events: Events, ties: Ties, *, seed: int) -> Events:
    """Events by user and time; equal times shuffled, reduced to one, or left in file order.

    A user's order depends on that user's events and the seed, never on other users.
    """
    position = np.arange(len(events.users))
    if ties is not Ties.KEEP:
        within = _position_within(events)
        position = seeded_hash(events.users, events.items, events.timestamps, within, seed=seed)  # type: ignore[assignment]
    result = events.take(np.lexsort((position, events.timestamps, events.users)))
    if ties is Ties.ONE:
        first = np.ones(len(result.users), dtype=np.bool_)
        first[1:] = (np.diff(result.users) != 0) | (np.diff(result.timestamps) != 0)
        result = result.where(first)
    return result


def _position_within(events: Events) -> IntArray:
    """Each event's place among its user's events, in file order: tells repeats of one item in one basket apart."""
    order = np.argsort(events.users, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(events.users[order]) != 0])
    sizes = np.diff(np.r_[starts, len(order)])
    within = np.empty(len(order), dtype=np.int64)
    within[order] = np.arange(len(order)) - np.repeat(starts, sizes)
    return within


def keep_frequent_items(events: Events, minimum: int) -> Events:
    """Events of items with at least so many, in one pass (DARec sec. 3.1.1)."""
    return events.where(np.bincount(events.items)[events.items] >= minimum) if len(events.items) else events


def keep_long_users(events: Events, minimum: int = LEAVE_ONE_OUT_EVENTS) -> Events:
    """Events of users with at least so many.

    Raises:
        DataError: if no user is left.
    """
    kept = events.where(np.bincount(events.users)[events.users] >= minimum) if len(events.users) else events
    if not len(kept.users):
        raise DataError(
            f"no user has {minimum} interactions with titled items, which leave-one-out needs; bring longer histories"
        )
    return kept
