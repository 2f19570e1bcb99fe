"""A study in an experiment tracker: TensorBoard, MLflow or Weights & Biases, each a few lines over `Listener`.

Use `dasearch run --track NAME` (`train` and `ablate` too), or ``study.run(listener=...)`` with what `track` gives. A tracker
keeps a run for the study and one for each training; the database stays the study's memory, so a tracker that fails is left
out and nothing is lost. What was trained before a tracker was asked for is not told to it.
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
}  # class in the module so named
STUDY = "study"  # the run of the study itself
SCORE = "score"  # of a training's run
RESULT_COLUMNS = ("name", "layout", "metric", "value", "low", "high", "sd", "seeds", "p")


class Tracker(Protocol):
    """Keeps runs by name; how, and where, is its own."""

    def begin(self, run: str, facts: Mapping[str, str]) -> None:
        """A run begins; ``facts`` do not change while it lasts."""

    def log(self, run: str, numbers: Mapping[str, float], step: int) -> None:
        """A point of each curve."""

    def table(self, run: str, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table with a heading a column."""

    def end(self, run: str, *, failed: bool) -> None:
        """The run is over."""

    def close(self) -> None:
        """No run goes on; those that did not end were interrupted."""


class Tracking(Listener):
    """Tells one tracker what a study says, until the tracker fails."""

    def __init__(self, name: str, tracker: Tracker, study: Study, say: Callable[[str], None]) -> None:
        self.name, self.study, self.say = name, study, say
        self._tracker: Tracker | None = tracker
        self._begun = False

    def started(self, training: Training) -> None:
        def begin(tracker: Tracker) -> None:
            if not self._begun:
                tracker.begin(STUDY, flat(self.study.settings.model_dump(mode="json")))
                self._begun = True
            tracker.begin(run_name(training), self._facts(training))

        self._tell(begin)

    def epoch(self, training: Training, epoch: Epoch) -> None:
        numbers = {f"loss/{name}": value for name, value in epoch.losses.items()}
        numbers |= {f"validation/{name}": value for name, value in epoch.metrics.items()}
        numbers["seconds/epoch"] = epoch.seconds
        self._tell(lambda tracker: tracker.log(run_name(training), numbers, epoch.number))

    def finished(self, finished: Finished) -> None:
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
        plain = [result._replace(name=str(result.name)) for result in results]  # W&B's tables know no other strings
        rows = [tuple(getattr(result, column) for column in RESULT_COLUMNS) for result in plain]
        numbers = {f"test/{result.metric}/{result.name}": result.value for result in results}

        def conclude(tracker: Tracker) -> None:
            tracker.log(STUDY, numbers, 0)
            tracker.table(STUDY, "test", RESULT_COLUMNS, rows)

        self._tell(conclude)

    def close(self) -> None:
        self._tell(lambda tracker: tracker.close())

    def _facts(self, training: Training) -> dict[str, str]:
        space, layout = self.study.space(), training.layout
        sites = as_record(layout, space.names) if layout.layers == space.layers else {}  # an ablation may adapt fewer
        about = {"layout": str(training.layout), "phase": training.phase, "label": training.label}
        return about | {name: str(choice) for name, choice in sites.items()}

    def _tell(self, tell: Callable[[Tracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            tell(self._tracker)
        except Exception as error:  # whatever a tracker's own server or disk does, the training goes on
            self._tracker = None
            reason = " ".join(str(error).split()) or "no further reason"
            self.say(f"{self.name} failed ({type(error).__name__}: {reason}); the study goes on without it")


def track(study: Study, *names: str, say: Callable[[str], None] = warnings.warn) -> Listener:
    """A listener that tells every tracker named; close it when the study has run.

    Args:
        say: told, once, of a tracker that failed.

    Raises:
        WrongUse: for an unknown name, or a tracker whose package is not installed.
    """
    known = dict.fromkeys(spelled(name, TRACKERS) for name in names)
    return Listeners(*(Tracking(name, open_tracker(name, study.settings), study, say) for name in known))


def open_tracker(name: str, settings: StudySettings) -> Tracker:
    """The tracker of that name; it writes nothing before its first run begins."""
    if name not in TRACKERS:
        raise WrongUse(f"there is no tracker {name!r}{suggestion(name, list(TRACKERS))}; choose {', '.join(TRACKERS)}")
    try:
        module = import_module(f"dasearch.report.trackers.{name}")
    except ImportError as error:
        raise WrongUse(f'tracking with {name} wants its package ({error}); pip install "dasearch[{name}]"') from None
    tracker: Tracker = getattr(module, TRACKERS[name])(settings)
    return tracker


def run_name(training: Training) -> str:
    """``search/003-SPS-PPS`` or ``confirmation/004-all-serial-seed-1``: a path, and in the order of the phase."""
    own = {SEARCH: str(training.layout), SINGLE: f"{training.label} {training.layout}"}
    label = own.get(training.phase, training.label)
    return f"{training.phase}/{training.index:03}-{re.sub(r'[^A-Za-z0-9.]+', '-', label).strip('-')}"


def flat(record: Mapping[str, Any]) -> dict[str, str]:
    """``{"trial.epochs": "3"}`` for nested settings."""
    return {key: str(value) for key, value in flattened(record).items()}


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table as Markdown; nothing stands for None."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(value: Any) -> str:
    return "" if value is None else str(value).replace("|", "\\|")


def _known(numbers: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in numbers.items() if value is not None}
