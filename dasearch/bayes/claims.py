"""Claims, which keep workers that share a study from evaluating the same layout twice.

Optuna shows a running trial's parameters only once they are suggested, and two workers that ask at the same moment see the
same history. A proposal is therefore first written to its own trial, as a claim, and only then compared with the claims of
all other trials: of two workers, at least one sees the other's claim. The lower trial number keeps the layout; it waits until
the other has either withdrawn or, not having seen it, made its claim final.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

KEY = "dasearch:claim"
POLL_SECONDS, WAIT_SECONDS = 0.02, 5.0  # a rival silent for longer died between its claim and its next step
Layout = Mapping[str, Any]


def claimed(trial: FrozenTrial) -> Layout | None:
    """The layout a trial claims, by parameter name, as codes."""
    record = trial.system_attrs.get(KEY)
    return record["layout"] if record else None


def claim(storage: BaseStorage, study_id: int, trial: FrozenTrial, layout: Layout) -> bool:
    """Claim a layout for a trial; False if another trial has it."""

    def write(*, final: bool) -> None:
        storage.set_trial_system_attr(trial._trial_id, KEY, {"layout": dict(layout), "final": final})

    write(final=False)
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        rivals = _rivals(storage, study_id, trial, layout)
        if any(rival.number < trial.number or _final(rival) for rival in rivals):
            return False
        if not rivals or time.monotonic() > deadline:
            write(final=True)
            return True
        time.sleep(POLL_SECONDS)


def _rivals(storage: BaseStorage, study_id: int, trial: FrozenTrial, layout: Layout) -> list[FrozenTrial]:
    others = storage.get_all_trials(study_id, deepcopy=False)
    return [
        other
        for other in others
        if other.number != trial.number
        and other.state not in (TrialState.FAIL, TrialState.WAITING)
        and claimed(other) == layout
    ]


def _final(trial: FrozenTrial) -> bool:
    return trial.state.is_finished() or bool(trial.system_attrs[KEY]["final"])
