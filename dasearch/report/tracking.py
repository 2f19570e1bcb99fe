"""A study in an experiment tracker: TensorBoard, MLflow or Weights & Biases, each a few lines over `Listener`.

Use `dasearch run --track NAME` (`train` and `ablate` too), or ``study.run(listener=...)`` with what `track` gives. A tracker
has a run for the study and one for each training. The database remains the source of truth, so a failing tracker is dropped
without loss. Trainings before a tracker was enabled are not sent to it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol

from dasearch.config import StudySettings, flattened
from dasearch.errors import WrongUse, spelled, suggestion
from dasearch.layout import as_record
from dasearch.search.events import SEARCH, SINGLE, Finished, Listener, Listeners, Training
from dasearch.search.store import Result
from dasearch.search.study import Study
from dasearch.training.progress import Epoch

TRACKERS = {
    "tensorboard": "TensorBoard",
    "mlflow": "MLflow",
    "wandb": "WeightsAndBiases",
}  # class in the module of the same name
STUDY = "study"  # the run of the study itself
SCORE = "score"  # of a training's run
RESULT_COLUMNS = ("name", "layout", "metric", "value", "low", "high", "sd", "seeds", "p")


class Tracker(Protocol):
    """Stores runs by name in its own backend."""

    def begin(self, run: str, facts: Mapping[str, str]) -> None:
        """Start a run; ``facts`` are constant during it."""

    def log(self, run: str, numbers: Mapping[str, float], step: int) -> None:
        """Add a point to each curve."""

    def table(self, run: str, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Write a table with one heading per column."""

    def end(self, run: str, *, failed: bool) -> None:
        """End a run."""

    def close(self) -> None:
        """End all tracking; open runs were interrupted."""


class Tracking(Listener):
    """Forwards a study's events to one tracker, until the tracker fails."""

    def __init__(self, name: str, tracker: Tracker, study: Study, say: Callable[[str], None]) -> None:
        self.name, self.study, self.say = name, study, say
        self._tracker: Tracker | None = tracker
        self._begun = False

    def started(self, training: Training) -> None:
        """Start the training's run, and before the first one the study's."""

        def begin(tracker: Tracker) -> None:
            if not self._begun:
                tracker.begin(STUDY, flat(self.study.settings.model_dump(mode="json")))
                self._begun = True
            tracker.begin(run_name(training), self._facts(training))

        self._tell(begin)

    def epoch(self, training: Training, epoch: Epoch) -> None:
        """Log losses, validation metrics and seconds of an epoch."""
        numbers = {f"loss/{name}": value for name, value in epoch.losses.items()}
        numbers |= {f"validation/{name}": value for name, value in epoch.metrics.items()}
        numbers["seconds/epoch"] = epoch.seconds
        self._tell(lambda tracker: tracker.log(run_name(training), numbers, epoch.number))

    def finished(self, finished: Finished) -> None:
        """Log the score in the study's run, and end the training's."""
        training, run = finished.training, run_name(finished.training)
        own = {SCORE: finished.score, "seconds/training": finished.seconds}
        of_phase = {training.metric: finished.score, "best": finished.best, "seconds": finished.seconds}

        def end(tracker: Tracker) -> None:
            tracker.log(run, _known(own), training.epochs)
            tracker.end(run, failed=finished.score is None)
            points = {f"{training.phase}/{name}": value for name, value in _known(of_phase).items()}
            tracker.log(STUDY, points, training.index)

        self._tell(end)

    def results(self, results: Sequence[Result]) -> None:
        """Log the test metrics and the results table in the study's run."""
        plain = [result._replace(name=str(result.name)) for result in results]  # W&B's tables accept only str
        rows = [tuple(getattr(result, column) for column in RESULT_COLUMNS) for result in plain]
        numbers = {f"test/{result.metric}/{result.name}": result.value for result in results}

        def conclude(tracker: Tracker) -> None:
            tracker.log(STUDY, numbers, 0)
            tracker.table(STUDY, "test", RESULT_COLUMNS, rows)

        self._tell(conclude)

    def close(self) -> None:
        """End the study's run."""
        self._tell(lambda tracker: tracker.close())

    def _facts(self, training: Training) -> dict[str, str]:
        space, layout = self.study.space(), training.layout
        sites = (
            as_record(layout, space.names) if layout.layers == space.layers else {}
        )  # an ablation may adapt fewer layers
        about = {"layout": str(training.layout), "phase": training.phase, "label": training.label}
        return about | {name: str(choice) for name, choice in sites.items()}

    def _tell(self, tell: Callable[[Tracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            tell(self._tracker)
        except Exception as error:  # a tracker's failure never stops the training
            self._tracker = None
            reason = " ".join(str(error).split()) or "no further reason"
            self.say(f"{self.name} failed ({type(error).__name__}: {reason}); the study continues without it")


def track(study: Study, *names: str, say: Callable[[str], None] = warnings.warn) -> Listener:
    """A listener that forwards to every named tracker; close it after the run.

    Args:
        study: whose events are tracked.
        *names: of `TRACKERS`.
        say: callback for one message per failed tracker.

    Raises:
        WrongUse: for an unknown name, or a tracker whose package is not installed.
    """
    known = dict.fromkeys(spelled(name, TRACKERS) for name in names)
    return Listeners(*(Tracking(name, open_tracker(name, study.settings), study, say) for name in known))


def open_tracker(name: str, settings: StudySettings) -> Tracker:
    """The tracker of a name; it writes nothing before its first run."""
    if name not in TRACKERS:
        raise WrongUse(f"there is no tracker {name!r}{suggestion(name, list(TRACKERS))}; choose {', '.join(TRACKERS)}")
    try:
        module = import_module(f"dasearch.report.trackers.{name}")
    except ImportError as error:
        raise WrongUse(f'tracking with {name} needs its package ({error}); pip install "dasearch[{name}]"') from None
    tracker: Tracker = getattr(module, TRACKERS[name])(settings)
    return tracker


def run_name(training: Training) -> str:
    """``search/003-SPS-PPS`` or ``confirmation/004-all-serial-seed-1``: a path that sorts in the order of the phase."""
    own = {SEARCH: str(training.layout), SINGLE: f"{training.label} {training.layout}"}
    label = own.get(training.phase, training.label)
    return f"{training.phase}/{training.index:03}-{re.sub(r'[^A-Za-z0-9.]+', '-', label).strip('-')}"


def flat(record: Mapping[str, Any]) -> dict[str, str]:
    """``{"trial.epochs": "3"}`` for nested settings."""
    return {key: str(value) for key, value in flattened(record).items()}


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table as Markdown; None becomes an empty cell."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(value: Any) -> str:
    return "" if value is None else str(value).replace("|", "\\|")


def _known(numbers: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in numbers.items() if value is not None}
