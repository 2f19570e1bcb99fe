"""Optuna's storage of a study, with heartbeats, whose calls survive a lost connection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import wraps
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import text

from dasearch.bayes import quietly
from dasearch.search.store.connections import Connections, Lost
from dasearch.search.store.engines import LOCK_SECONDS, engine_options, write_ahead

HEARTBEAT_SECONDS = 10  # seconds between heartbeats
GRACE_SECONDS = 60  # seconds without a heartbeat after which a trial counts as lost
with quietly():
    RETRY = optuna.storages.RetryHeartbeatStaleTrialCallback(
        inherit_intermediate_values=True
    )  # returns a lost trial to the queue
# each one transaction that returns nothing or is idempotent; `StudyStorage` implements the others
CALLS = (
    "delete_study",
    "set_study_user_attr",
    "set_study_system_attr",
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_directions",
    "get_study_user_attrs",
    "get_study_system_attrs",
    "get_all_studies",
    "_set_trial_param",
    "set_trial_intermediate_value",
    "set_trial_user_attr",
    "set_trial_system_attr",
    "get_trial_id_from_study_id_trial_number",
    "get_trial_param",
    "get_trial_user_attrs",
    "get_trial_system_attrs",
    "get_trial",
    "_get_trials",
    "_get_best_trial_id",
    "_get_stale_trial_ids",
)


class StudyStorage(RDBStorage):
    """Optuna's view of a study's database.

    Args:
        url: with a driver, as in `engines.driven`.
        connections: of the store.
    """

    def __init__(self, url: str, connections: Connections) -> None:
        self._connections = connections
        with quietly():
            super().__init__(
                url.replace("{", "{{").replace("}", "}}"),  # Optuna treats it as a template
                engine_kwargs=engine_options(url, LOCK_SECONDS),
                heartbeat_interval=HEARTBEAT_SECONDS,
                grace_period=GRACE_SECONDS,
                heartbeat_stale_trial_callback=RETRY,
            )
        write_ahead(self.engine)
        connections.watch(self.engine)

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """Create a study and return its id."""
        return self._connections.again(
            lambda: super(StudyStorage, self).create_new_study(directions, study_name),
            applied=lambda transaction: self.get_study_id_from_name(study_name or ""),
        )

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        def applied(transaction: int) -> FrozenTrial:
            trial_id = self._trial_of(transaction)
            return self._create_new_trial(study_id, template_trial) if trial_id is None else self.get_trial(trial_id)

        return self._connections.again(
            lambda: super(StudyStorage, self)._create_new_trial(study_id, template_trial), applied
        )

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set a trial's state; False if another process claimed it."""
        return self._connections.again(
            lambda: super(StudyStorage, self).set_trial_state_values(trial_id, state, values),
            applied=lambda transaction: self._trial_of(transaction) == trial_id,
        )

    def record_heartbeat(self, trial_id: int) -> None:
        """Record a heartbeat; one that is lost with the connection is skipped."""
        with suppress(Lost):
            super().record_heartbeat(trial_id)

    def _trial_of(self, transaction: int) -> int | None:
        """The trial that a transaction wrote: PostgreSQL stores with a row the last 32 bits of its writer's transaction id."""
        with self.engine.connect() as connection:
            query = text("SELECT trial_id FROM trials WHERE CAST(CAST(xmin AS text) AS bigint) = :writer")
            trial: int | None = connection.scalar(query, {"writer": transaction % 2**32})
            return trial


def _reconnecting(name: str) -> Callable[..., Any]:
    call = getattr(RDBStorage, name)

    @wraps(call)
    def again(self: StudyStorage, *args: Any, **kwargs: Any) -> Any:
        return self._connections.again(lambda: call(self, *args, **kwargs), applied=lambda transaction: None)

    return again


for _name in CALLS:
    setattr(StudyStorage, _name, _reconnecting(_name))
