"""How a source is read, and what of it makes the data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from dasearch.data.events import Core, Duplicates, Ties


@dataclass(frozen=True)
class Rules:
    """``format``, ``columns`` and ``items`` say how the files are read, the rest what is kept of them, in this order.

    Args:
        format: a name of `READERS`; None lets the files tell.
        columns: of the format ``table``: column names by what they hold (user, item, timestamp, rating, title, ...).
        items: of the format ``table``: a file of items.
        min_rating: drop interactions rated lower, or not at all.
        require_title: drop items without a title.
        duplicates: whether a user's later events with one item stay.
        ties: what becomes of a user's events with one timestamp.
        seed: of shuffled and reduced ties.
        min_item_interactions: drop items with fewer events.
        min_user_interactions: drop users with fewer; leave-one-out needs three in any case.
        core: drop items and then users once, or until both minima hold.
    """

    format: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    items: str | None = None
    min_rating: float | None = None
    require_title: bool = True
    duplicates: Duplicates = Duplicates.KEEP
    ties: Ties = Ties.SHUFFLE
    seed: int = 0
    min_item_interactions: int = 0
    min_user_interactions: int = 0
    core: Core = Core.ONE_PASS

    def __post_init__(self) -> None:
        for name, kind in (("duplicates", Duplicates), ("ties", Ties), ("core", Core)):
            object.__setattr__(self, name, kind(getattr(self, name)))  # ties="keep" in Python, or a ValueError

    def elsewhere(self) -> Rules:
        """The same for another source, whose files tell its form, unless columns are named."""
        return self if self.columns else dataclasses.replace(self, format=None, items=None)
