"""Events of a running study and the listeners that receive them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dasearch.layout import Layout
from dasearch.search.confirmation import OBJECTIVE
from dasearch.search.store import Result
from dasearch.training.progress import Epoch

SEARCH, CONFIRMATION, FINAL, DONE = "search", "confirmation", "final", "done"
TRIAL = "trial"  # label of a search training that has only its layout
ABLATION, SINGLE = "ablation", "train"  # phases outside a study: its ablations, and one layout without a search


@dataclass(frozen=True)
class Training:
    """A training at its start: its phase, its position in it, and its layout."""

    phase: str
    index: int
    total: int
    layout: Layout
    label: str
    epochs: int
    metric: str = OBJECTIVE  # the selection metric of its study


@dataclass(frozen=True)
class Finished:
    """A training that ended: its validation score, the best of its phase so far, and the study's estimated remaining seconds.

    The seconds are None where they cannot be estimated, or nothing is left.
    """

    training: Training
    score: float | None  # None where the training failed
    best: float | None
    best_layout: Layout | None
    seconds: float
    seconds_left: float


class Listener:
    """Ignores all events; subclasses override the callbacks they need."""

    def says(self, text: str) -> None:
        """A step begins; a `Passing` gives its progress, an `Outcome` its result."""

    def remarks(self, text: str) -> None:
        """A permanent note, such as on data that were dropped."""

    def language_model(self, step: int, steps: int, loss: float) -> None:
        """A step of tiny-opt's training is done."""

    def left(self, seconds: float) -> None:
        """The estimated remaining seconds, outside the trainings of layouts."""

    def started(self, training: Training) -> None:
        """A training begins."""

    def epoch(self, training: Training, epoch: Epoch) -> None:
        """An epoch of a training is done."""

    def finished(self, finished: Finished) -> None:
        """A training has ended."""

    def results(self, results: Sequence[Result]) -> None:
        """The results table is complete."""

    def close(self) -> None:
        """No event will follow; called by the creator of the listener."""


class Listeners(Listener):
    """Several listeners, called in order."""

    def __init__(self, *listeners: Listener) -> None:
        self.listeners = listeners

    def says(self, text: str) -> None:
        """Forward to every listener."""
        for listener in self.listeners:
            listener.says(text)

    def remarks(self, text: str) -> None:
        """Forward to every listener."""
        for listener in self.listeners:
            listener.remarks(text)

    def language_model(self, step: int, steps: int, loss: float) -> None:
        """Forward to every listener."""
        for listener in self.listeners:
            listener.language_model(step, steps, loss)

    def left(self, seconds: float) -> None:
        """Forward to every listener."""
        for listener in self.listeners:
            listener.left(seconds)

    def started(self, training: Training) -> None:
        """Forward to every listener."""
        for listener in self.listeners:
            listener.started(training)

    def epoch(self, training: Training, epoch: Epoch) -> None:
        """Forward to every listener."""
        for listener in self.listeners:
            listener.epoch(training, epoch)

    def finished(self, finished: Finished) -> None:
        """Forward to every listener."""
        for listener in self.listeners:
            listener.finished(finished)

    def results(self, results: Sequence[Result]) -> None:
        """Forward to every listener."""
        for listener in self.listeners:
            listener.results(results)

    def close(self) -> None:
        """Forward to every listener."""
        for listener in self.listeners:
            listener.close()
