"""Assembles a `Dataset` from what a reader returned: filters, ties, and renumbered users and items."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from dasearch.data.dataset import TITLE, Dataset, IntArray
from dasearch.data.events import Duplicates, Events, Ties, first_of_pairs, identity_keys, ordered, reduce_to_core
from dasearch.data.raw import Raw
from dasearch.data.rules import Rules
from dasearch.errors import DataError

MOST_UNKNOWN = 0.5  # share of interactions; with more, the two files do not belong together
LEAST_SHOWN = 0.01


def assemble(raw: Raw, rules: Rules) -> Dataset:
    """Apply the rules and renumber users and items.

    Untitled items are dropped before ties are resolved, so that a visit's one kept event is always usable.

    Raises:
        DataError: if nothing is left, a minimum rating is set for data without ratings, or most interactions are with
            items that the catalogue lacks.
    """
    usable = np.array([not rules.require_title or bool(item.attributes.get(TITLE)) for item in raw.items], dtype=bool)
    if not usable.any():
        raise DataError(
            f"no item in {raw.catalogue} has a title; give each an attribute {TITLE!r}, or of a table name its column, as "
            "in data.columns={title: name}, and the file of items, if they have their own, as data.items"
        )
    remarks = (*raw.remarks, *_unknown(raw, rules), *_untitled(raw, rules))
    events = _rated(raw, rules.min_rating)
    events = events.where(usable[events.items])
    if rules.duplicates is Duplicates.FIRST:
        events = first_of_pairs(events)
    events, frequent = reduce_to_core(
        _in_order(raw, events, rules),
        n_items=len(raw.items),
        min_item=rules.min_item_interactions,
        min_user=rules.min_user_interactions,
        core=rules.core,
    )
    return _numbered(raw, events, usable & frequent, remarks)


def _unknown(raw: Raw, rules: Rules) -> list[str]:
    """A remark on interactions with items that the catalogue lacks; more than half of them raise a `DataError`."""
    known = len(raw.items) if raw.known is None else raw.known
    unknown = raw.events.items[raw.events.items >= known]
    if not len(unknown):
        return []
    example = repr(raw.items[int(unknown[0])].identifier)
    remark = f"{_share(unknown, raw)} are with items that {Path(raw.catalogue).name} lacks, such as {example}"
    if not rules.require_title:
        return [f"{remark}; these items have no attributes"]
    if len(unknown) > MOST_UNKNOWN * len(raw.events.items):
        has = f"where it has {raw.items[0].identifier!r}" if known else "which has none"
        raise DataError(
            f"{remark}, {has}; write item identifiers the same in both files, or set data.require_title=false to do without texts"
        )
    return [f"{remark}; they are dropped"]


def _untitled(raw: Raw, rules: Rules) -> list[str]:
    """A remark on interactions with items of the catalogue that have no title."""
    known = raw.items[: raw.known]
    without = np.array([not item.attributes.get(TITLE) for item in known] + [False] * (len(raw.items) - len(known)))
    dropped = raw.events.items[without[raw.events.items]] if rules.require_title else raw.events.items[:0]
    if not len(dropped):
        return []
    example = repr(raw.items[int(dropped[0])].identifier)
    return [
        f"{_share(dropped, raw)} are with items without a title, such as {example}; they are dropped "
        "(data.require_title=false keeps them)"
    ]


def _share(part: IntArray, raw: Raw) -> str:
    total = len(raw.events.items)
    return f"{len(part):,} of {total:,} interactions ({_percent(len(part) / total)})"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share >= LEAST_SHOWN else "less than 1%"


def _rated(raw: Raw, minimum: float | None) -> Events:
    if minimum is None:
        return raw.events
    if raw.ratings is None:
        raise DataError(f"the interactions of {raw.name} have no ratings; remove data.min_rating")
    return raw.events.where(raw.ratings >= minimum)


def _in_order(raw: Raw, events: Events, rules: Rules) -> Events:
    if rules.ties is Ties.KEEP:
        return ordered(events, rules.ties, seed=rules.seed)
    user_keys, item_keys = identity_keys(raw.users), identity_keys(item.identifier for item in raw.items)
    return ordered(events, rules.ties, seed=rules.seed, user_keys=user_keys, item_keys=item_keys)


def _numbered(raw: Raw, events: Events, kept: npt.NDArray[np.bool_], remarks: tuple[str, ...]) -> Dataset:
    """From events sorted by user and time, and the items of the catalogue."""
    catalogue = np.flatnonzero(kept)
    number = np.full(len(raw.items), -1)
    number[catalogue] = np.arange(len(catalogue))
    starts = np.flatnonzero(np.r_[True, np.diff(events.users) != 0])
    ends = np.append(starts[1:], len(events.users))
    return Dataset(
        name=raw.name,
        users=tuple(raw.users[user] for user in events.users[starts].tolist()),
        items=tuple(raw.items[item] for item in catalogue.tolist()),
        sequences=_pieces(number[events.items], starts, ends),
        timestamps=_pieces(events.timestamps, starts, ends),
        remarks=remarks,
    )


def _pieces(column: IntArray, starts: IntArray, ends: IntArray) -> tuple[IntArray, ...]:
    return tuple(column[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True))
