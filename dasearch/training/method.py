"""What the training loop asks of each model: how to build it, what it trains on, which losses, which baselines."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor

from dasearch.config import StudySettings
from dasearch.data import Development, IntArray, SequenceBatch
from dasearch.models.base import RecommenderModel

if TYPE_CHECKING:
    from dasearch.training.materials import Shared

Say = Callable[[str], None]
SHARED_READS = ("seed", "device", "data", "backbone", "examples", "model.kind", "model.attn_scale")


@dataclass(frozen=True)
class Method(ABC):
    """One of the models with all that a study prepared for it; no layout, recipe or seed changes it."""

    settings: StudySettings
    reads: ClassVar[tuple[str, ...]]  # the settings that preparation reads, sections or keys

    @classmethod
    def prepared_by(cls, key: str) -> bool:
        """Whether preparation reads this dotted setting, so that another value needs another preparation."""
        return any(key == read or key.startswith(f"{read}.") for read in cls.reads)

    def under(self, settings: StudySettings) -> Self:
        """The same preparation for a variation of the study's model."""
        return dataclasses.replace(self, settings=settings)

    @abstractmethod
    def build(self, materials: Shared, *, replace_every: int, generator: torch.Generator) -> RecommenderModel:
        """A recommender at its start."""

    @abstractmethod
    def n_batches(self, development: Development, batch_size: int) -> int:
        """Batches of an epoch."""

    @abstractmethod
    def batches(self, materials: Shared, batch_size: int, generator: torch.Generator) -> Iterator[SequenceBatch]:
        """One epoch."""

    @abstractmethod
    def terms(
        self,
        model: RecommenderModel,
        batch: SequenceBatch,
        layout: Tensor,
        materials: Shared,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """The terms of the loss whose weight is not zero, by name."""

    @property
    @abstractmethod
    def weights(self) -> dict[str, float]:
        """The weight of every term."""

    def baseline_ranks(self, users: IntArray, histories: Sequence[IntArray], targets: IntArray) -> dict[str, IntArray]:
        """Ranks of the targets by the ID model alone, under its name; empty where there is none."""
        return {}


def weighted_total(terms: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """The loss: each term times its weight, summed."""
    return torch.stack([weights[name] * value for name, value in terms.items()]).sum()
