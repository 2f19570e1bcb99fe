"""What a running study tells whoever watches it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dasearch.layout import Layout
from dasearch.search.confirmation import OBJECTIVE
from dasearch.search.store import Result
from dasearch.training.progress import Epoch

SEARCH, CONFIRMATION, FINAL, DONE = "search", "confirmation", "final", "done"
TRIAL = "trial"  # label of a training of the search that has nothing but its layout
ABLATION, SINGLE = "ablation", "train"  # beside a study: its ablations, and one layout without a search


@dataclass(frozen=True)
class Training:
    """A training that begins: its phase, its place in it, and its layout."""

    phase: str
    index: int
    total: int
    layout: Layout
    label: str
    epochs: int
    metric: str = OBJECTIVE  # that its study chooses by


@dataclass(frozen=True)
class Finished:
    """A training that ended: its validation score, the best of its phase so far, and the seconds the study still needs.

    The seconds are those of what will be run; none where nobody can tell, or nothing is left.
    """

    training: Training
    score: float | None  # None where the training failed
    best: float | None
    best_layout: Layout | None
    seconds: float
    seconds_left: float


class Listener:
    """Hears nothing; a terminal or a test overrides what it wants to hear."""

    def says(self, text: str) -> None:
        """A step begins; with a `Passing` how far it is, with an `Outcome` what came of it."""

    def remarks(self, text: str) -> None:
        """Something to know, as what of the data was left out; a line that stays."""

    def language_model(self, step: int, steps: int, loss: float) -> None:
        """A step of tiny-opt's own training."""

    def left(self, seconds: float) -> None:
        """How long the study still needs, where no training of a layout tells."""

    def started(self, training: Training) -> None:
        """A training begins."""

    def epoch(self, training: Training, epoch: Epoch) -> None:
        """An epoch of it is over."""

    def finished(self, finished: Finished) -> None:
        """It is over."""

    def results(self, results: Sequence[Result]) -> None:
        """The final table is there."""

    def close(self) -> None:
        """Nothing more will be said; told by whoever made the listener."""


class Listeners(Listener):
    """Several listeners, told in their order."""

    def __init__(self, *listeners: Listener) -> None:
        self.listeners = listeners

    def says(self, text: str) -> None:
        for listener in self.listeners:
            listener.says(text)

    def remarks(self, text: str) -> None:
        for listener in self.listeners:
            listener.remarks(text)

    def language_model(self, step: int, steps: int, loss: float) -> None:
        for listener in self.listeners:
            listener.language_model(step, steps, loss)

    def left(self, seconds: float) -> None:
        for listener in self.listeners:
            listener.left(seconds)

    def started(self, training: Training) -> None:
        for listener in self.listeners:
            listener.started(training)

    def epoch(self, training: Training, epoch: Epoch) -> None:
        for listener in self.listeners:
            listener.epoch(training, epoch)

    def finished(self, finished: Finished) -> None:
        for listener in self.listeners:
            listener.finished(finished)

    def results(self, results: Sequence[Result]) -> None:
        for listener in self.listeners:
            listener.results(results)

    def close(self) -> None:
        for listener in self.listeners:
            listener.close()
