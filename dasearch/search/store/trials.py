"""Trials from Optuna's own tables, read without Optuna's objects."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from optuna.distributions import BaseDistribution, json_to_distribution
from sqlalchemy import DateTime, Select, column, func, select, table
from sqlalchemy.orm import Session

from dasearch.search.store.records import TrialRecord

SCORED = 0  # objective of the score; a second one is the cost
# the columns of Optuna's tables that are read here
_STUDIES = table("studies", column("study_id"), column("study_name"))
_TRIALS = table(
    "trials",
    *(column(key) for key in ("trial_id", "study_id", "number", "state")),
    *(column(key, DateTime) for key in ("datetime_start", "datetime_complete")),
)
_VALUES = table("trial_values", column("trial_id"), column("objective"), column("value"))
_HEARTBEATS = table("trial_heartbeats", column("trial_id"), column("heartbeat", DateTime))
_VERSIONS = table("version_info", column("library_version"))
_BEGUN = (_TRIALS.c.datetime_start.is_not(None), _TRIALS.c.datetime_complete.is_(None))  # of running trials
_PARAMS = table("trial_params", column("trial_id"))
_INTERMEDIATES = table("trial_intermediate_values", column("trial_id"))
_TRIAL_PARTS = {
    "trial_values": ("objective", "value"),
    "trial_params": ("param_name", "param_value", "distribution_json"),
    "trial_intermediate_values": ("step", "intermediate_value"),
    "trial_user_attributes": ("key", "value_json"),
    "trial_system_attributes": ("key", "value_json"),
}
_SYSTEM_KEYS = ("retry_history", "fixed_params")  # a claim is as long as a layout and is not needed


def states(name: str) -> Select[Any]:
    """For each state: number of trials, best value, last trial, last end."""
    kept = (
        func.count(),
        func.max(_VALUES.c.value),
        func.max(_TRIALS.c.trial_id),
        func.max(_TRIALS.c.datetime_complete),
    )
    joined = _TRIALS.join(_STUDIES, _STUDIES.c.study_id == _TRIALS.c.study_id).outerjoin(
        _VALUES, (_VALUES.c.trial_id == _TRIALS.c.trial_id) & (_VALUES.c.objective == SCORED)
    )
    chosen = select(_TRIALS.c.state, *kept).select_from(joined).where(_STUDIES.c.study_name == name)
    return chosen.group_by(_TRIALS.c.state)


def running(name: str) -> Select[Any]:
    """For the running trials: last heartbeat, number of parameters, number of intermediate values."""
    study = select(_STUDIES.c.study_id).where(_STUDIES.c.study_name == name).scalar_subquery()
    trials = select(_TRIALS.c.trial_id).where(_TRIALS.c.study_id == study, *_BEGUN)
    heartbeat = select(func.max(_HEARTBEATS.c.heartbeat)).where(_HEARTBEATS.c.trial_id.in_(trials))
    counts = (select(func.count()).where(of.c.trial_id.in_(trials)) for of in (_PARAMS, _INTERMEDIATES))
    return select(heartbeat.scalar_subquery(), *(count.scalar_subquery() for count in counts))


def last_heard(name: str) -> Select[Any]:
    """The trials in state running, by number, with their last heartbeat or their start."""
    heartbeat = func.coalesce(_HEARTBEATS.c.heartbeat, _TRIALS.c.datetime_start)
    joined = _TRIALS.join(_STUDIES, _STUDIES.c.study_id == _TRIALS.c.study_id).outerjoin(
        _HEARTBEATS, _HEARTBEATS.c.trial_id == _TRIALS.c.trial_id
    )
    kept = select(_TRIALS.c.number, heartbeat).select_from(joined).where(_STUDIES.c.study_name == name, *_BEGUN)
    return kept.order_by(_TRIALS.c.number)


def library_version() -> Select[Any]:
    """The Optuna version that created its tables."""
    return select(_VERSIONS.c.library_version)


def trials_of(session: Session, name: str) -> list[TrialRecord]:
    """Every trial of a study, by number; building Optuna's objects for 1,000 trials of 90 sites would take seconds."""
    study = session.scalar(select(_STUDIES.c.study_id).where(_STUDIES.c.study_name == name))
    rows = session.execute(select(*_TRIALS.c).where(_TRIALS.c.study_id == study).order_by(_TRIALS.c.number))
    parts = {part: _of_trials(session, study, part, kept) for part, kept in _TRIAL_PARTS.items()}
    return [_trial(row._mapping, {part: found[row.trial_id] for part, found in parts.items()}) for row in rows.all()]


def _of_trials(
    session: Session, study: int | None, part: str, kept: tuple[str, ...]
) -> dict[int, list[tuple[Any, ...]]]:
    """The rows of one of Optuna's tables, by trial."""
    rows_of = table(part, column("trial_id"), *(column(key) for key in kept))
    query = (
        select(*rows_of.c).join(_TRIALS, _TRIALS.c.trial_id == rows_of.c.trial_id).where(_TRIALS.c.study_id == study)
    )
    if part == "trial_system_attributes":
        query = query.where(rows_of.c.key.in_(_SYSTEM_KEYS))
    rows_by_trial: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
    for trial, *values in session.execute(query):
        rows_by_trial[trial].append(tuple(values))
    return rows_by_trial


def _trial(row: Mapping[Any, Any], parts: Mapping[str, list[tuple[Any, ...]]]) -> TrialRecord:
    system = {key: json.loads(value) for key, value in parts["trial_system_attributes"]}
    params = {key: _distribution(kept).to_external_repr(value) for key, value, kept in parts["trial_params"]}
    retried = system.get("retry_history") or [None]
    return TrialRecord(
        number=row["number"],
        state=str(row["state"]).lower(),
        score=dict(parts["trial_values"]).get(SCORED),
        params={**system.get("fixed_params", {}), **params},
        curve={step: value for step, value in sorted(parts["trial_intermediate_values"]) if value is not None},
        attributes={key: json.loads(value) for key, value in parts["trial_user_attributes"]},
        retry_of=retried[-1],
        started=utc(row["datetime_start"]),
        ended=utc(row["datetime_complete"]),
    )


def utc(stored: datetime | None) -> datetime | None:
    """A stored time as UTC: Optuna's database holds naive UTC, its objects local time."""
    return None if stored is None else stored.replace(tzinfo=UTC)


@lru_cache(maxsize=256)
def _distribution(record: str) -> BaseDistribution:
    """The enum of Optuna's stored state."""
    return json_to_distribution(record)
