"""Training IDLE-Adapter: cross-entropy of the next item and the MMD between prefixes and frozen states (SPEC 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dasearch.config import MMD_BATCH, IDLEStudy
from dasearch.data import Examples, RowPlan, SequenceBatch
from dasearch.errors import StudyError
from dasearch.layout import READS
from dasearch.models.base import RecommenderModel, stacked
from dasearch.models.id_encoders import IDEncoder
from dasearch.models.idle import ALIGNMENT, IDLEAdapter
from dasearch.training.encoders import study_encoder
from dasearch.training.losses import item_cross_entropy, mmd
from dasearch.training.method import Drawn, restored_examples
from dasearch.training.shared import Say, SharedInputs
from dasearch.training.with_encoder import EncoderMethod, frozen_examples


@dataclass(frozen=True)
class IDLEDrawn(Drawn):
    """The plain model's states of a batch that MMD compares with, ``(K, B, all layers, width)``; None without MMD."""

    frozen: Tensor | None = None


@dataclass(frozen=True)
class IDLEMethod(EncoderMethod):
    """IDLE-Adapter with its trained ID encoder and the frozen model's states."""

    settings: IDLEStudy

    @classmethod
    def prepare(cls, settings: IDLEStudy, materials: SharedInputs, examples: Examples, say: Say) -> IDLEMethod:
        """Train or read the ID encoder, run the frozen model over the examples."""
        encoder = study_encoder(settings.encoder, materials, settings.seed, say)
        frozen = None
        if settings.aligns:
            say("reading the examples with the frozen model")
            frozen = frozen_examples(materials, examples)
        return cls(settings, encoder, examples, frozen)

    @classmethod
    def restored(cls, settings: IDLEStudy, encoder: IDEncoder, tensors: Mapping[str, Tensor]) -> IDLEMethod:
        examples = restored_examples(tensors)
        assert examples is not None
        return cls(settings, encoder, examples, tensors.get("frozen"))

    def start(self, model: IDLEAdapter, materials: SharedInputs, generator: torch.Generator) -> None:
        model.start_head(materials.item_counts.to(materials.device), materials.text_vectors.to(materials.device))

    def plan(self, materials: SharedInputs, batch_size: int) -> RowPlan:
        found = super().plan(materials, batch_size)
        if len(found) < MMD_BATCH and self.settings.aligns:
            raise StudyError(
                f"these users have {len(found)} training examples and MMD compares samples of at least {MMD_BATCH}; "
                "raise data.bo_fraction or examples.per_user, or set losses.mmd=0"
            )
        return found

    def draw(self, batch: SequenceBatch, materials: SharedInputs, generator: torch.Generator) -> IDLEDrawn:
        """Nothing is random; the frozen model's states, where the batch is large enough for MMD."""
        if not self.settings.aligns or len(batch.users) < MMD_BATCH:
            return IDLEDrawn()
        return IDLEDrawn(self.frozen_means(batch, materials))

    def drawn_losses(
        self, model: RecommenderModel, batch: SequenceBatch, drawn: Drawn, layout: Tensor, materials: SharedInputs
    ) -> dict[str, Tensor]:
        """``next`` and, for a batch large enough, ``mmd`` averaged over the layers that the layout aligns."""
        assert isinstance(model, IDLEAdapter)
        assert isinstance(drawn, IDLEDrawn)
        k = stacked(layout) or 1
        prefixes = model.layer_prefixes(batch, layout)
        states = model.states_with(batch, prefixes, layout)
        targets = batch.at_last(batch.targets).view(k, -1)
        terms = {"next": item_cross_entropy(model.head(states).view(k, targets.shape[1], -1), targets)}
        if drawn.frozen is not None:
            means = torch.stack([prefix.mean(1) for prefix in prefixes], dim=1)  # (K * B, layers, width)
            frozen = drawn.frozen[:, :, list(model.replaced)]
            own, frozen = (part.view(k, -1, *means.shape[1:]).transpose(1, 2) for part in (means, frozen))
            aligned = (1 - layout[..., ALIGNMENT, READS]).view(k, -1)
            terms["mmd"] = (aligned * mmd(own, frozen)).sum(1) / aligned.sum(1).clamp(min=1)
        return terms

    @property
    def weights(self) -> dict[str, float]:
        """1 and lambda."""
        return {"next": 1.0, "mmd": self.settings.losses.mmd}
