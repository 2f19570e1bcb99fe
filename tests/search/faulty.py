"""A worker whose trainings cost nothing and go wrong as their layouts say."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dasearch.search import objective
from dasearch.search.executors import slurm
from dasearch.search.executors.ray import Worker
from dasearch.training.encoders import EncoderTraining
from dasearch.training.progress import Epoch
from dasearch.training.stack import Candidate
from tests.search.trainings import Stub

# of the layouts that the study of `tests.search.test_workers` begins with
RAISES, DIVERGES, HANGS, DIES = "PPP-PPP", "PPS-PSS", "SSP-SPP", "PSP-SSS"
DIES_ONCE, GREEDY, HUNGRY = "SPS-PPP", "SSP-PSP", "PPS-SPS"
TOO_MUCH = 1 << 50  # bytes


class Faulty(Worker):
    """In its own process, where it takes the place of the training loop."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        objective.train_together = Faults()


class Faults(Stub):
    """What happens to each layout as its second epoch ends."""

    def __init__(self) -> None:
        super().__init__()
        self.diverges = lambda layout: layout == DIVERGES

    def __call__(self, settings: Any, materials: Any, candidates: Sequence[Candidate], recipe: Any, **rest: Any) -> Any:
        def fault(together: list[str], layout: str, epoch: int) -> None:
            if epoch:
                self._misbehave(layout, recipe, candidates[0].checkpoint)

        self.fault = fault
        return super().__call__(settings, materials, candidates, recipe, **rest)

    @staticmethod
    def _misbehave(layout: str, recipe: Any, checkpoint: Path | None) -> None:
        assert checkpoint is not None
        if layout == RAISES:
            raise ValueError("no such thing")
        if layout == HANGS:
            time.sleep(600)
        if layout == GREEDY or (layout == HUNGRY and recipe.accumulate == 1):
            bytearray(TOO_MUCH)
        died = checkpoint.with_suffix(".died")
        if layout == DIES or (layout == DIES_ONCE and not died.exists()):
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def train(*given: Any) -> None:
    """What a job of SLURM does, likewise."""
    objective.train_together = Faults()
    slurm.train(*given)


class Dying(Worker):
    """A worker that is killed when the ID encoder it trains has two epochs, the first time."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        original = EncoderTraining.epoch

        def epoch(training: EncoderTraining) -> Epoch:
            found = original(training)
            assert training.checkpoint is not None
            died = training.checkpoint.with_suffix(".died")
            if len(training.progress.epochs) == 2 and not died.exists():
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        EncoderTraining.epoch = epoch  # type: ignore[method-assign]
