"""Options for reading a source and filtering its interactions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from dasearch.data.events import Core, Duplicates, Ties


@dataclass(frozen=True)
class Rules:
    """Options of reading (``format``, ``columns``, ``items``) and of filtering (the rest, applied in this order).

    Args:
        format: a name of `READERS`; None detects it from the files.
        columns: of the format ``table``: column names by role (user, item, timestamp, rating, title, ...).
        items: of the format ``table``: the path of an item file.
        min_rating: drop interactions rated lower, or not at all.
        require_title: drop items without a title.
        duplicates: whether a user's repeated events with one item are kept.
        ties: how a user's events with equal timestamps are handled.
        seed: of shuffled and reduced ties.
        min_item_interactions: drop items with fewer events than this.
        min_user_interactions: drop users with fewer events; leave-one-out needs at least three.
        core: whether items and then users are dropped once, or until both minima hold.
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
            object.__setattr__(
                self, name, kind(getattr(self, name))
            )  # accepts ties="keep"; other strings raise ValueError

    def elsewhere(self) -> Rules:
        """The same rules for another source, whose format is detected unless columns are named."""
        return self if self.columns else dataclasses.replace(self, format=None, items=None)
