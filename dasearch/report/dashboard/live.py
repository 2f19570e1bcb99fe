"""What a study that runs is doing at this moment."""

from __future__ import annotations

import statistics
from datetime import UTC, datetime
from typing import NamedTuple

from dasearch.report.terminal import clock
from dasearch.report.view import State, StudyView, Trial
from dasearch.search.confirmation import OBJECTIVE
from dasearch.search.events import CONFIRMATION, FINAL, SEARCH
from dasearch.search.store import GRACE_SECONDS, LaterTraining, Progress

AFTER = {CONFIRMATION: "trainings with fresh seeds", FINAL: "final trainings"}


class Share(NamedTuple):
    """How much of a phase is complete."""

    what: str
    done: int
    total: int


def is_silent(progress: Progress, now: datetime | None = None) -> bool:
    """Whether a trial stands as running that has given no sign of life for too long."""
    if progress.heard is None:
        return False
    return ((now or datetime.now(UTC)) - progress.heard).total_seconds() > GRACE_SECONDS


def live_version(progress: Progress) -> str:
    """What a page compares to know whether it is still true."""
    return progress.version + ("-silent" if is_silent(progress) else "")


def progress_sentences(view: StudyView, progress: Progress) -> list[str]:
    """How far it is, what runs, how long that may still take."""
    done, budget = len(view.completed), view.settings.search.budget
    first = f"{view.phase}: {done} of {budget} evaluations complete"
    if view.best is not None:
        first += f", the best so far {OBJECTIVE} {view.best.score:.4f} (trial {view.best.number})"
    found = [first + "."]
    if view.phase in AFTER:
        found.append(_later_sentence(view))
    if is_silent(progress) and progress.heard is not None:
        silent = clock((datetime.now(UTC) - progress.heard).total_seconds())
        return [
            *found,
            f"No sign of life for {silent}: its process may have ended; run the same command again to go on.",
        ]
    found += [_running_sentence(view, trial) for trial in view.trials if trial.state is State.RUNNING]
    left = seconds_left(view)
    return [*found, f"About {clock(left)} left in the search at this pace."] if left else found


def share(view: StudyView) -> Share:
    """Of the evaluations, or after the search of its phase's trainings."""
    last = _latest(view)
    if last is None:
        return Share("evaluations", len(view.completed), view.settings.search.budget)
    return Share(AFTER[view.phase], last.place - (last.ended is None), last.total)


def _latest(view: StudyView) -> LaterTraining | None:
    """The training that began last, of the phase that the study is in."""
    return next((one for one in reversed(view.later_trainings) if one.phase == view.phase), None)


def _later_sentence(view: StudyView) -> str:
    """Which trainings after the search are done, of how many, and what runs; of an older study what is known."""
    last = _latest(view)
    if last is None:
        return f"{len(view.confirmations)} trainings with fresh seeds are complete."
    what, done, total = share(view)
    if last.ended is None:
        return f"{done} of {total} {what} are complete; {last.label} runs since {last.began:%H:%M} UTC: {last.layout}."
    rest = ", what is left are ID models and the test split" if view.phase == FINAL and done == total else ""
    return f"{done} of {total} {what} are complete{rest}."


def _running_sentence(view: StudyView, trial: Trial) -> str:
    epochs = f", {len(trial.curve or {})} of at most {view.settings.trial.epochs} epochs done"
    layout = "its layout is being proposed" if trial.layout is None else f"{trial.layout}{epochs}"
    return f"Trial {trial.number} runs: {layout}."


def seconds_left(view: StudyView) -> float | None:
    """Of the search, from the median trial; None where it is over or nothing is known."""
    seconds = [trial.seconds for trial in view.completed if trial.seconds is not None]
    left = view.settings.search.budget - len(view.completed)
    if view.phase != SEARCH or left <= 0 or not seconds:
        return None
    return left * statistics.median(seconds)
