"""Why a trial has no score and which workers trained it, as its record tells and as people read it."""

from __future__ import annotations

from collections.abc import Sequence

from dasearch.search.domain import Domain
from dasearch.search.loop import BROKEN, REASON, WORKERS
from dasearch.search.store import TrialRecord

EVALUATED = "its layout was evaluated before"


def cause_of(trial: TrialRecord, domain: Domain) -> str | None:
    """Why a trial was pruned or failed, or can have no layout; None of any other."""
    name = domain.space.foreign(trial.params)  # others than dasearch may add trials, with choices of their own
    if name is not None:
        return f"{name} is {trial.params[name]!r}, which is no choice of this search space"
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
    """Whether a trial of a state and a `cause_of` failed; Optuna calls those pruned whose training did."""
    return state == "fail" or (state == "pruned" and reason != EVALUATED)


def workers_of(trial: TrialRecord) -> tuple[str, ...]:
    """Where a trial was trained, ``machine:process``, an attempt after the other; nothing of one in the study's process."""
    return tuple(trial.attributes.get(WORKERS, ()))


def attempts(workers: Sequence[str]) -> str:
    """``attempt 1 in a:1, attempt 2 in b:2``; ``in a:1`` of a single one, nothing where none is known."""
    if len(workers) < 2:
        return "".join(f"in {worker}" for worker in workers)
    return ", ".join(f"attempt {number} in {worker}" for number, worker in enumerate(workers, start=1))


def note(reason: str | None, workers: Sequence[str]) -> str:
    """Why a training failed, and where each attempt ran of one that was tried more than once."""
    return "; ".join(part for part in (reason, attempts(workers) if len(workers) > 1 else "") if part)
