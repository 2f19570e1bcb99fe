"""What a study that runs is doing at this moment."""

from __future__ import annotations

import statistics
from datetime import UTC, datetime

from dasearch.report.terminal import clock
from dasearch.report.view import State, StudyView, Trial
from dasearch.search.confirmation import OBJECTIVE
from dasearch.search.events import DONE, SEARCH
from dasearch.search.store import GRACE_SECONDS, Progress


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
    if view.phase not in (SEARCH, DONE):
        found.append(f"{len(view.confirmations)} trainings with fresh seeds are complete.")
    if is_silent(progress) and progress.heard is not None:
        silent = clock((datetime.now(UTC) - progress.heard).total_seconds())
        return [
            *found,
            f"No sign of life for {silent}: its process may have ended; run the same command again to go on.",
        ]
    found += [_running_sentence(view, trial) for trial in view.trials if trial.state is State.RUNNING]
    left = seconds_left(view)
    return [*found, f"About {clock(left)} left in the search at this pace."] if left else found


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
