"""A replacement of `train_together`: scores by a formula, epochs in checkpoints, faults on demand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from dasearch.errors import TrainingError
from dasearch.layout import Layout, Structure
from dasearch.models.base import RecommenderModel
from dasearch.training.loop import Trained
from dasearch.training.progress import Epoch, Progress
from dasearch.training.stack import Candidate

EPOCHS = 2
NO_MODEL = RecommenderModel.__new__(RecommenderModel)


def curve(layout: Layout, seed: int) -> list[float]:
    """Validation MRR by epoch: parallel bits late in the layout help, and each pair of neighbours alike."""
    bits = layout.z
    alike = sum(a == b for a, b in pairwise(bits))
    value = 0.1 + 0.01 * sum(place * bit for place, bit in enumerate(bits)) + 0.005 * alike + 0.001 * seed
    return [0.8 * value, value]


class Stub:
    """Trains in no time and keeps account.

    Attributes:
        batches: the layouts of each call.
        epochs: every epoch that was trained, in order.
        diverges: told a layout.
        curve: the scores by epoch of a layout and a seed.
        fault: told the layouts of a call and the epoch that one of them is about to end; raises what it wants.
    """

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.epochs: list[tuple[str, int]] = []
        self.curve: Callable[[Layout, int], list[float]] = curve
        self.diverges: Callable[[str], bool] = lambda layout: False
        self.fault: Callable[[list[str], str, int], None] = lambda together, layout, epoch: None

    def __call__(
        self,
        settings: Any,
        materials: Any,
        candidates: Sequence[Candidate],
        recipe: Any,
        *,
        structure: Structure,
        at_once: int,
        on_epoch: Callable[[int, Epoch], None],
        peers: Any = None,
    ) -> list[Trained | TrainingError]:
        together = [str(candidate.layout) for candidate in candidates]
        self.batches.append(together)
        runs = [_read(candidate) for candidate in candidates]
        for number in range(EPOCHS):  # side by side: all of them end an epoch before any begins the next
            for place, (candidate, run) in enumerate(zip(candidates, runs, strict=True)):
                if len(run.epochs) == number and not self.diverges(together[place]):
                    self.fault(together, together[place], number)
                    self.epochs.append((together[place], number))
                    self._end_epoch(candidate, run, number)
                    on_epoch(place, run.epochs[-1])
        return [
            TrainingError("diverged") if self.diverges(str(c.layout)) else Trained(run, 1, 0.5, 1, c.layout, NO_MODEL)
            for c, run in zip(candidates, runs, strict=True)
        ]

    def _end_epoch(self, candidate: Candidate, run: Progress, number: int) -> None:
        score = self.curve(candidate.layout, candidate.seed)[number]
        metrics = {"MRR": score, "NDCG@10": score, "Recall@10": score, "loss": 1.0}
        run.add(Epoch(number, {"total": 1.0}, metrics, 0.25))
        assert candidate.checkpoint is not None
        candidate.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        candidate.checkpoint.write_text(json.dumps(run.record()))


def _read(candidate: Candidate) -> Progress:
    path = candidate.checkpoint
    return Progress.from_record(json.loads(path.read_text())) if path is not None and path.exists() else Progress()
