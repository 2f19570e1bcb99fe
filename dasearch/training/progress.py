"""The progress of a training: its epochs, and the best of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from dasearch.training.metrics import TOP_K, Metrics

SELECTION = f"NDCG@{TOP_K}"  # validation metric of early stopping and epoch selection; the paper names none
LOSS = "loss"  # mean cross-entropy of the validation items, in addition to the ranking metrics


@dataclass(frozen=True)
class Epoch:
    """One epoch's mean loss terms, validation metrics and seconds.

    Candidates that are trained together each get their share of the seconds.
    """

    number: int
    losses: dict[str, float]
    metrics: dict[str, float]
    seconds: float


@dataclass
class Progress:
    """The history of a training, which is saved in the checkpoint."""

    epochs: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0

    @property
    def best(self) -> Epoch:
        """The epoch with the best validation metric."""
        return self.epochs[self.best_epoch]

    def add(self, epoch: Epoch) -> bool:
        """Append an epoch; returns whether it is the best so far."""
        self.epochs.append(epoch)
        better = len(self.epochs) == 1 or epoch.metrics[SELECTION] > self.best.metrics[SELECTION]
        if better:
            self.best_epoch = len(self.epochs) - 1
        return better

    def stale(self, patience: int | None) -> bool:
        """Whether the metric has not improved for ``patience`` epochs; False if ``patience`` is None."""
        return patience is not None and len(self.epochs) - 1 - self.best_epoch >= patience

    def record(self) -> dict[str, Any]:
        """The history as JSON values."""
        return {"epochs": [asdict(epoch) for epoch in self.epochs], "best_epoch": self.best_epoch}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Progress:
        """The history from its `record`."""
        return cls([Epoch(**epoch) for epoch in record["epochs"]], record["best_epoch"])


@dataclass(frozen=True)
class Fit:
    """The result of a finished training; the weights are in its checkpoint."""

    progress: Progress
    parameters: int
    seconds: float
    peak_memory: int  # bytes, of the GPU or of the whole process on a CPU

    @property
    def metrics(self) -> Metrics:
        """Validation metrics of the best epoch."""
        return Metrics.from_record(self.progress.best.metrics)
