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
    """The unmodified model's states for the MMD loss, ``(K, B, all layers, width)``; None without MMD."""

    frozen: Tensor | None = None


@dataclass(frozen=True)
class IDLEMethod(EncoderMethod):
    """The training task of IDLE-Adapter, with its trained ID encoder and the frozen model's states."""

    settings: IDLEStudy

    @classmethod
    def prepare(cls, settings: IDLEStudy, materials: SharedInputs, examples: Examples, say: Say) -> IDLEMethod:
        """Train or load the ID encoder, and run the frozen model on the examples."""
        encoder = study_encoder(settings.encoder, materials, settings.seed, say)
        frozen = None
        if settings.aligns:
            say("reading the examples with the frozen model")
            frozen = frozen_examples(materials, examples)
        return cls(settings, encoder, examples, frozen)

    @classmethod
    def restored(cls, settings: IDLEStudy, encoder: IDEncoder, tensors: Mapping[str, Tensor]) -> IDLEMethod:
        """The task with these `tensors` and this encoder."""
        examples = restored_examples(tensors)
        assert examples is not None
        return cls(settings, encoder, examples, tensors.get("frozen"))

    def start(self, model: IDLEAdapter, materials: SharedInputs, generator: torch.Generator) -> None:
        """Initialise the item head."""
        model.start_head(materials.item_counts.to(materials.device), materials.text_vectors.to(materials.device))

    def plan(self, materials: SharedInputs, batch_size: int) -> RowPlan:
        """Single-target examples.

        Raises:
            StudyError: if there are too few examples for MMD.
        """
        plan = super().plan(materials, batch_size)
        if len(plan) < MMD_BATCH and self.settings.aligns:
            raise StudyError(
                f"these users have {len(plan)} training examples and MMD compares samples of at least {MMD_BATCH}; "
                "raise data.bo_fraction or examples.per_user, or set losses.mmd=0"
            )
        return plan

    def draw(self, batch: SequenceBatch, materials: SharedInputs, generator: torch.Generator) -> IDLEDrawn:
        """The frozen model's states, if the batch is large enough for MMD; nothing is random."""
        if not self.settings.aligns or len(batch.users) < MMD_BATCH:
            return IDLEDrawn()
        return IDLEDrawn(self.frozen_means(batch, materials))

    def drawn_losses(
        self, model: RecommenderModel, batch: SequenceBatch, drawn: Drawn, layout: Tensor, materials: SharedInputs
    ) -> dict[str, Tensor]:
        """``next`` and, if the batch is large enough, ``mmd`` averaged over the layers that the layout aligns."""
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
        """Weights of the terms: 1 and lambda."""
        return {"next": 1.0, "mmd": self.settings.losses.mmd}
