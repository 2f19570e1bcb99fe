"""The current activity of a running study."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from dasearch.commands import command
from dasearch.report.view import State, StudyView, Trial
from dasearch.search.events import CONFIRMATION, DONE, FINAL
from dasearch.search.progress import clock
from dasearch.search.store import GRACE_SECONDS, PostSearchTraining, Progress
from dasearch.short_layout import short_text

AFTER = {CONFIRMATION: "trainings with fresh seeds", FINAL: "final trainings"}


class Share(NamedTuple):
    """Number of complete trainings of a phase, and their total."""

    what: str
    done: int
    total: int


def is_silent(progress: Progress, now: datetime | None = None) -> bool:
    """Whether a running trial has had no heartbeat for too long."""
    if progress.heard is None:
        return False
    return ((now or datetime.now(UTC)) - progress.heard).total_seconds() > GRACE_SECONDS


def live_version(progress: Progress) -> str:
    """The version that a page polls to detect changes."""
    return progress.version + ("-silent" if is_silent(progress) else "")


def progress_sentences(view: StudyView, progress: Progress) -> list[str]:
    """Sentences on progress, running trainings, and the remaining time."""
    done, budget = len(view.completed), view.settings.search.budget
    first = f"{view.phase}: {done} of {budget} evaluations complete"
    if view.best is not None:
        best = "the best" if view.phase == DONE else "the best so far"
        first += f", {best} {view.metric} {view.best.score:.4f} (trial {view.best.number})"
    sentences = [first + "."]
    if view.phase in AFTER:
        sentences.append(_later_sentence(view))
    if is_silent(progress) and progress.heard is not None:
        silent = clock((datetime.now(UTC) - progress.heard).total_seconds())
        return [
            *sentences,
            f"No heartbeat for {silent}: its process may have ended; `{command('resume', view.name)}` goes on.",
        ]
    sentences += _running_sentences(view, [trial for trial in view.trials if trial.state is State.RUNNING])
    left = seconds_left(progress)
    return sentences if left is None else [*sentences, f"About {clock(left)} left at this pace."]


def share(view: StudyView) -> Share:
    """Progress of the evaluations, or after the search of the phase's trainings."""
    own = _of_phase(view)
    if not own:
        return Share("evaluations", len(view.completed), view.settings.search.budget)
    begun = max(one.place for one in own)
    return Share(AFTER[view.phase], begun - len(_running(own)) - len(_failed(own)), own[-1].total)


def _of_phase(view: StudyView) -> list[PostSearchTraining]:
    """The trainings of the study's current phase, if that is after the search."""
    return [one for one in view.later_trainings if one.phase == view.phase]


def _running(trainings: Sequence[PostSearchTraining]) -> list[PostSearchTraining]:
    return [one for one in trainings if one.ended is None]


def _failed(trainings: Sequence[PostSearchTraining]) -> list[PostSearchTraining]:
    return [one for one in trainings if one.reason is not None]


def _later_sentence(view: StudyView) -> str:
    """Sentences on the done and running trainings after the search; for older studies only what was recorded."""
    own = _of_phase(view)
    if not own:
        return f"{len(view.confirmations)} trainings with fresh seeds are complete."
    (what, done, total), failed = share(view), len(_failed(own))
    said = f"{done} of {total} {what} are complete" + (f", {failed} failed" if failed else "")
    if running := _running(own):
        return f"{said}; {_named(running)}."
    rest = "; ID models and the test split remain" if view.phase == FINAL and done + failed == total else ""
    return f"{said}{rest}."


def _named(running: Sequence[PostSearchTraining]) -> str:
    since = f"since {running[0].began:%H:%M} UTC"
    if len(running) == 1:
        return f"{running[0].label} runs {since}: {short_text(running[0].layout)}"
    return f"{len(running)} run side by side {since}: {'; '.join(f'{one.label}: {short_text(one.layout)}' for one in running)}"


def _running_sentences(view: StudyView, trials: Sequence[Trial]) -> list[str]:
    """One sentence for the trials that train side by side, one for each that is being proposed."""
    proposed = [trial for trial in trials if trial.layout is not None]
    asking = [f"Trial {trial.number} runs: its layout is being proposed." for trial in trials if trial.layout is None]
    return [*([_side_by_side(view, proposed)] if proposed else []), *asking]


def _side_by_side(view: StudyView, trials: Sequence[Trial]) -> str:
    """A sentence on the running trials, their layouts, and the epochs that all have done."""
    numbers, layouts = (
        [str(trial.number) for trial in trials],
        ", ".join(short_text(t.layout) for t in trials if t.layout),
    )
    epochs = f"{min(len(trial.curve or {}) for trial in trials)} of at most {view.settings.trial.epochs} epochs done"
    if len(trials) == 1:
        return f"Trial {numbers[0]} runs: {layouts}, {epochs}."
    return f"Trials {', '.join(numbers[:-1])} and {numbers[-1]} run side by side, {epochs}: {layouts}."


def seconds_left(progress: Progress, now: datetime | None = None) -> float | None:
    """The study's remaining seconds by its own last estimate; None where that is unknown or exceeded."""
    if progress.ends is None:
        return None
    seconds = (progress.ends - (now or datetime.now(UTC))).total_seconds()
    return seconds if seconds >= 1 else None
