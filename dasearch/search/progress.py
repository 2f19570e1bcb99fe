"""Progress of a study in a terminal: a line for each finished training, one live line for the running ones."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from rich.console import Console
from rich.status import Status as Spinner
from rich.text import Text

from dasearch.bayes.quiet import warnings_only
from dasearch.fitting import GAP, progress_line
from dasearch.models.pretrained import without_bars
from dasearch.search.events import (
    ABLATION,
    CONFIRMATION,
    FINAL,
    SEARCH,
    SINGLE,
    TRIAL,
    Finished,
    Listener,
    Training,
)
from dasearch.training.progress import Epoch
from dasearch.training.request_files import Progress
from dasearch.training.shared import Outcome, Passing

HEADINGS = {
    SEARCH: "Search: validation {metric} on Data_BO",
    CONFIRMATION: "Confirmation: the best and the controls again, with fresh seeds",
    FINAL: "Final training on all users",
    SINGLE: "Training on all users",
    ABLATION: "Ablation: one thing changed at a time, the same seeds for all",
}
SPINNER = 2  # characters in front of a live line
BAR = 16  # characters: fits with its label into a line of 80
LM_EVERY = 25  # steps of tiny-opt's training between two updates of the live line


@contextmanager
def heard(listener: Listener | None, *, progress: bool) -> Iterator[Listener]:
    """The given listener; by default a `Terminal` on stderr for the block, or with ``progress`` false none."""
    if listener is not None or not progress:
        yield listener or Listener()
        return
    with closing(Terminal(_stderr())) as terminal:
        yield terminal


def _stderr() -> Console:
    """In a notebook finished lines as text: Rich would make a block of HTML of each, and a live line leaves its traces."""
    in_notebook = Console().is_jupyter
    return Console(stderr=True, highlight=False, force_jupyter=False, force_terminal=False if in_notebook else None)


@contextmanager
def libraries_quiet() -> Iterator[None]:
    """Silence Optuna's log and transformers' progress bars in the block; both are restored afterwards."""
    with warnings_only(), without_bars():
        yield


class Terminal(Listener):
    """Prints the progress of a run. Without a terminal (a file, a pipe) only permanent lines are printed."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._spinner: Spinner | None = None
        self._phase = ""
        self._best: list[str] = []  # best score of the phase, from its last finished training
        self._done_at = 0.0  # of `time.monotonic`
        self._epochs: dict[Training, int] = {}  # epochs done of the running trainings

    def close(self) -> None:
        """Remove the live line."""
        if self._spinner is not None:
            self._spinner.stop()
            self._spinner = None

    def _live(self, text: str) -> None:
        if not self.console.is_terminal:
            return
        line = Text(text)
        line.truncate(self.console.width - SPINNER, overflow="ellipsis")  # a second line would flicker
        if self._spinner is None:
            self._spinner = self.console.status(line)
            self._spinner.start()
        self._spinner.update(line)

    def says(self, text: str) -> None:
        """Show a step in the live line, and an `Outcome` as a permanent line."""
        if isinstance(text, Outcome):
            self._print(text)
        elif isinstance(text, Passing):
            self._live(GAP.join((text, *self._time_left())))
        elif self.console.is_terminal:
            self._live(f"{text} ...")
        else:
            self._print(text)

    def left(self, seconds: float) -> None:
        """Set the remaining seconds that the live line counts down."""
        self._done_at = time.monotonic() + seconds

    def _time_left(self) -> list[str]:
        """The remaining time, counted down between two trainings; empty once the estimate is exceeded."""
        seconds = self._done_at - time.monotonic()
        return [f"left {clock(seconds)}"] if seconds >= 1 else []

    def language_model(self, step: int, steps: int, loss: float) -> None:
        """Show the progress of tiny-opt's training in the live line."""
        if step % LM_EVERY == 0 or step == steps:
            done = round(BAR * step / steps)
            self._live(
                f"training tiny-opt on the catalogue's text {'█' * done}{'░' * (BAR - done)} {step}/{steps}  loss {loss:.2f}"
            )
        if step == steps:
            self._print(f"tiny-opt trained on the catalogue's text: {steps} steps, loss {loss:.2f}")

    def started(self, training: Training) -> None:
        """Print a heading at the start of a phase, and count the training as running."""
        if training.phase != self._phase:
            self._phase, self._best = training.phase, []
            self._print("")
            heading = HEADINGS[training.phase].format(metric=training.metric)
            self.console.print(Text(heading, style="bold"))
        self._epochs[training] = 0
        self._trains()

    def epoch(self, training: Training, epoch: Epoch) -> None:
        """Show the running trainings and the last metric in the live line."""
        self._epochs[training] = epoch.number + 1
        self._trains(f"{training.metric} {epoch.metrics[training.metric]:.4f}")

    def _trains(self, *told: str) -> None:
        """The running trainings, and the current epoch of the slowest."""
        slowest = min(self._epochs, key=lambda training: self._epochs[training])
        now = f"epoch {min(self._epochs[slowest] + 1, slowest.epochs)}/{slowest.epochs}"
        so_far = [*self._best, *self._time_left()]
        places = sorted(training.index for training in self._epochs)
        if len(places) > 1:
            head = f"{places[0]}-{places[-1]}/{slowest.total} side by side"
            self._live(GAP.join((head, now, *told, *so_far)))
            return
        head = f"{slowest.index}/{slowest.total}"
        width = self.console.width - SPINNER
        tail = [now, *told, *so_far]
        self._live(progress_line(head, slowest.layout, _label(slowest), tail, width=width, spare=so_far))

    def finished(self, finished: Finished) -> None:
        """Print the line of a finished training."""
        training = finished.training
        self._epochs.pop(training, None)
        score = "failed" if finished.score is None else f"{training.metric} {finished.score:.4f}"
        best = [] if finished.best is None else [f"best {finished.best:.4f}"]
        self.left(finished.seconds_left)
        self._best = best
        head = f"{training.index:>{len(str(training.total))}}/{training.total}"
        tail = [
            score.ljust(len(training.metric) + len(" 0.0000")),
            *best,
            f"{finished.seconds:5.1f} s",
            *self._time_left(),
        ]
        width = self.console.width if self.console.is_terminal else None
        self._print(progress_line(head, training.layout, _label(training), tail, width=width, spare=best))

    def answering(self, progress: Progress) -> None:
        """Progress in a file of histories."""
        left = f"  left {clock(progress.seconds_left)}" if progress.seconds_left is not None else ""
        self._live(f"{progress.words}{left}")

    def remarks(self, text: str) -> None:
        """Print a permanent line above the live one."""
        self._print(text)

    def _print(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True)


def _label(training: Training) -> str:
    """The settings of a trial that are searched besides its layout."""
    return "" if training.label == TRIAL else training.label


def clock(seconds: float) -> str:
    """``1:05:09`` or ``4:10``."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
