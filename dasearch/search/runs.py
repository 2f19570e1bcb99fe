"""Names of trainings, which are the keys of their epochs and checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from dasearch.errors import StoreError

FIRST_SEED = 0  # of a final training; not written
FORMS = "trial/LAYOUT/SETTING=VALUE, confirm/SEED/LAYOUT, final/LAYOUT/SEED and train/MODEL/LAYOUT"
BETWEEN_SETTINGS = re.compile(r"/(?=[\w.]+=)")  # a value may contain a slash


class RunPhase(StrEnum):
    """The phase of a training; the first part of its name."""

    TRIAL = "trial"
    CONFIRM = "confirm"
    FINAL = "final"
    SINGLE = "train"  # without a search


@dataclass(frozen=True)
class RunId:
    """One training of a study; ``str`` gives its name.

    Attributes:
        layout: in letters; for a variation of the results table, which has only one, the variation's name.
        seed: of a confirmation or a final training.
        settings: of a trial besides its layout, each ``key=value`` with the value's ``repr``.
        model: of a single training, its model's name in reports.
    """

    phase: RunPhase
    layout: str
    seed: int = FIRST_SEED
    settings: tuple[str, ...] = ()
    model: str = ""

    @classmethod
    def trial(cls, layout: object, values: Mapping[str, Any]) -> RunId:
        """The name of a trial, with the values of settings searched besides the layout."""
        return cls(RunPhase.TRIAL, str(layout), settings=tuple(f"{key}={value!r}" for key, value in values.items()))

    def __str__(self) -> str:
        parts = {
            RunPhase.TRIAL: (self.layout, *self.settings),
            RunPhase.CONFIRM: (str(self.seed), self.layout),
            RunPhase.FINAL: (self.layout,) if self.seed == FIRST_SEED else (self.layout, str(self.seed)),
            RunPhase.SINGLE: (self.model, self.layout),
        }
        return "/".join((self.phase.value, *parts[self.phase]))

    @classmethod
    def parse(cls, name: str) -> RunId:
        """Parse the name of a training.

        Raises:
            StoreError: for an invalid name.
        """
        phase, _, rest = name.partition("/")
        first, _, second = rest.partition("/")
        try:
            parsed = _parsed(RunPhase(phase), first, second)
        except ValueError:
            parsed = None
        if parsed is None or not parsed.layout or str(parsed) != name:
            raise StoreError(f"{name!r} is not the name of a training; names are {FORMS}")
        return parsed


def _parsed(phase: RunPhase, first: str, second: str) -> RunId:
    """Parse the parts after the phase."""
    if phase is RunPhase.TRIAL:
        return RunId(phase, first, settings=tuple(BETWEEN_SETTINGS.split(second)) if second else ())
    if phase is RunPhase.CONFIRM:
        return RunId(phase, second, int(first))
    if phase is RunPhase.FINAL:
        return RunId(phase, first, int(second) if second else FIRST_SEED)
    return RunId(phase, second, model=first)
