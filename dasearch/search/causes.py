"""The cause of a trial without a score, and the workers that trained it, from its record and in words."""

from __future__ import annotations

from collections.abc import Sequence

from dasearch.search.domain import Domain
from dasearch.search.loop import BROKEN, REASON, WORKERS
from dasearch.search.store import TrialRecord

EVALUATED = "its layout was evaluated before"


def cause_of(trial: TrialRecord, domain: Domain) -> str | None:
    """The cause of a pruned or failed trial, or of one whose layout is invalid; None for any other."""
    name = domain.space.foreign(trial.params)  # trials added by other tools may have other choices
    if name is not None:
        return f"{name} is {trial.params[name]!r}, which is not a choice of this search space"
    if trial.state == "pruned":
        return str(trial.attributes.get(REASON, EVALUATED))
    if trial.state != "fail":
        return None
    if not domain.holds(trial.params):
        return "no layout was left to propose, or its process ended before one was"
    if not trial.attributes.get(BROKEN):
        return "it was interrupted, or its process was lost"
    return str(trial.attributes.get(REASON, "its training raised an error"))


def failed(state: str, reason: str | None) -> bool:
    """Whether a trial of this state and `cause_of` failed; in Optuna's terms a failed training is pruned."""
    return state == "fail" or (state == "pruned" and reason != EVALUATED)


def workers_of(trial: TrialRecord) -> tuple[str, ...]:
    """Workers that trained a trial, as ``machine:process``, one per attempt; empty for the study's own process."""
    return tuple(trial.attributes.get(WORKERS, ()))


def attempts(workers: Sequence[str]) -> str:
    """``attempt 1 in a:1, attempt 2 in b:2``; ``in a:1`` for a single one, empty where none is known."""
    if len(workers) < 2:
        return "".join(f"in {worker}" for worker in workers)
    return ", ".join(f"attempt {number} in {worker}" for number, worker in enumerate(workers, start=1))


def note(reason: str | None, workers: Sequence[str]) -> str:
    """The cause of a failed training, with the worker of each attempt where there were several."""
    return "; ".join(part for part in (reason, attempts(workers) if len(workers) > 1 else "") if part)
