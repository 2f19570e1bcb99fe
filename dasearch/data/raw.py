"""A source as read, before any rule is applied."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dasearch.data.dataset import Item
from dasearch.data.events import Events

Ratings = npt.NDArray[np.float32]


class Raw(NamedTuple):
    """What a reader returns, before ties and filters; ``catalogue`` names the source of the items in messages.

    Shapes: ratings ``(events,)``, nan where an event has none; None if no event has one. The first ``known`` items are
    in the catalogue (None: all), the others in interactions only; ``remarks`` are sentences on what was not read.
    """

    name: str
    catalogue: str
    users: list[str]
    items: list[Item]
    events: Events
    ratings: Ratings | None = None
    known: int | None = None
    remarks: tuple[str, ...] = ()
