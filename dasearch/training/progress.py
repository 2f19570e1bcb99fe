"""How far a training is: its epochs, and which of them is the best."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from dasearch.training.metrics import TOP_K, Metrics

SELECTION = f"NDCG@{TOP_K}"  # the validation metric of early stopping and of the epoch kept; the paper names none
LOSS = "loss"  # mean cross-entropy of the validation items, beside the ranking metrics


@dataclass(frozen=True)
class Epoch:
    """One epoch's means of every loss term, its validation metrics, and its seconds.

    Of candidates side by side each has its share of the seconds.
    """

    number: int
    losses: dict[str, float]
    metrics: dict[str, float]
    seconds: float


@dataclass
class Progress:
    """What a training has seen so far; all of it is in the checkpoint."""

    epochs: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0

    @property
    def best(self) -> Epoch:
        return self.epochs[self.best_epoch]

    def add(self, epoch: Epoch) -> bool:
        """Append an epoch; True if it is the best so far."""
        self.epochs.append(epoch)
        better = len(self.epochs) == 1 or epoch.metrics[SELECTION] > self.best.metrics[SELECTION]
        if better:
            self.best_epoch = len(self.epochs) - 1
        return better

    def stale(self, patience: int | None) -> bool:
        return patience is not None and len(self.epochs) - 1 - self.best_epoch >= patience

    def record(self) -> dict[str, Any]:
        return {"epochs": [asdict(epoch) for epoch in self.epochs], "best_epoch": self.best_epoch}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Progress:
        return cls([Epoch(**epoch) for epoch in record["epochs"]], record["best_epoch"])


@dataclass(frozen=True)
class Fit:
    """What is told of a finished training; its weights are in its checkpoint."""

    progress: Progress
    parameters: int
    seconds: float
    peak_memory: int  # bytes: of the GPU, or of the whole process on CPU

    @property
    def metrics(self) -> Metrics:
        """Validation metrics of the best epoch."""
        return Metrics.from_record(self.progress.best.metrics)
