"""The records of the dashboard's JSON endpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from dasearch.report.dashboard.live import live_version, progress_sentences
from dasearch.report.dashboard.reading import Snapshot
from dasearch.report.document import verdict_sentences
from dasearch.report.terminal import later_record, prior_record, standing_record, standings_record
from dasearch.report.view import StudyView, Trial
from dasearch.search.store import Progress


def progress_record(found: Progress) -> dict[str, Any]:
    """The record of a study in a list."""
    return {
        "name": found.name,
        "phase": found.phase,
        "created": found.created,
        "budget": found.settings["search"]["budget"],
        "trials": found.states,
        "best": found.best,
        "heard": _time(found.heard),
        "version": live_version(found),
    }


def study_record(snapshot: Snapshot) -> dict[str, Any]:
    """The full record of a study."""
    view = snapshot.view
    return {
        "name": view.name,
        "version": live_version(snapshot.progress),
        "phase": view.phase,
        "verdict": verdict_sentences(view),
        "progress": progress_sentences(view, snapshot.progress),
        "winner": str(view.winner or "") or None,
        "best": None if view.best is None else {"trial": view.best.number, "score": view.best.score},
        "trials": [trial_row(trial) for trial in view.trials],
        "confirmation": standings_record(view.standings, view.selection),
        "results": [result._asdict() for result in view.results],
        "final_trainings": [training._asdict() for training in view.final_trainings],
        "later_trainings": [later_record(training) for training in view.later_trainings],
        "artifacts": [artifact._asdict() for artifact in view.artifacts],
        "warm_start": [prior_record(trial) for trial in view.prior],
        "settings": view.settings.model_dump(mode="json"),
        "space": view.space.record(),
        "dataset": dict(view.dataset),
        "versions": dict(view.versions),
        "created": _time(view.created),
        "read": _time(view.read),
    }


def trial_row(trial: Trial) -> dict[str, Any]:
    """The record of a trial in a list."""
    return {
        "number": trial.number,
        "state": trial.state.value,
        "layout": str(trial.layout or "") or None,
        "settings": dict(trial.settings),
        "score": trial.score,
        "seconds": trial.seconds,
        "parameters": trial.parameters,
        "peak_memory": trial.peak_memory,
        "started": _time(trial.started),
        "ended": _time(trial.ended),
        "retry_of": trial.retry_of,
        "workers": list(trial.workers),
        "reason": trial.reason,
    }


def trial_record(view: StudyView, trial: Trial) -> dict[str, Any]:
    """The full record of a trial."""
    proposals = [proposal for proposal in view.proposals if proposal.trial_number == trial.number]
    return {
        "study": view.name,
        **trial_row(trial),
        "curve": [{"epoch": epoch + 1, "score": value} for epoch, value in (trial.curve or {}).items()],
        "epochs": [{**asdict(epoch), "number": epoch.number + 1} for epoch in trial.epochs],
        "proposal": asdict(proposals[0]) if proposals else None,
        "confirmation": [standing_record(s) for s in view.standings if s.layout == trial.layout],
    }


def finite(value: Any) -> Any:
    """The values with null for non-finite numbers, such as a diverged loss."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(one) for key, one in value.items()}
    return [finite(one) for one in value] if isinstance(value, list | tuple) else value


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
