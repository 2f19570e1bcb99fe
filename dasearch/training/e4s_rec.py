"""Training E4SRec: cross-entropy of the next item at each item of a user's row (Li et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dasearch.config import E4SRecStudy
from dasearch.data import Examples, SequenceBatch
from dasearch.models.base import RecommenderModel, stacked
from dasearch.models.e4s_rec import E4SRec
from dasearch.models.id_encoders import IDEncoder
from dasearch.training.encoders import study_encoder
from dasearch.training.losses import item_cross_entropy
from dasearch.training.method import SHARED_READS, Drawn, TrainingTask, kept, restored_examples
from dasearch.training.shared import Say, SharedInputs


@dataclass(frozen=True)
class E4SRecDrawn(Drawn):
    """Dropout factors (0, or one over the keep probability) of item vectors and states, ``(K, B, n, width)``."""

    kept_vectors: Tensor | None = None
    kept_states: Tensor | None = None


@dataclass(frozen=True)
class E4SRecMethod(TrainingTask):
    """The training task of E4SRec, with its trained ID encoder."""

    settings: E4SRecStudy
    reads = (*SHARED_READS, "encoder")

    @classmethod
    def prepare(
        cls, settings: E4SRecStudy, materials: SharedInputs, examples: Examples | None, say: Say
    ) -> E4SRecMethod:
        """Train or load the ID encoder."""
        return cls(settings, study_encoder(settings.encoder, materials, settings.seed, say), examples)

    @classmethod
    def restored(cls, settings: E4SRecStudy, encoder: IDEncoder, tensors: Mapping[str, Tensor]) -> E4SRecMethod:
        """The task with these `tensors` and this encoder."""
        return cls(settings, encoder, restored_examples(tensors))

    def start(self, model: E4SRec, materials: SharedInputs, generator: torch.Generator) -> None:
        """Initialise the head and the scale of item vectors."""
        model.start(materials.item_counts.to(materials.device), materials.text_vectors.to(materials.device))

    def draw(self, batch: SequenceBatch, materials: SharedInputs, generator: torch.Generator) -> E4SRecDrawn:
        """Dropout."""
        if not self.settings.model.dropout:
            return E4SRecDrawn()
        shape = (1, *batch.items.shape, materials.catalogue.backbone.width)
        vectors, states = (kept(shape, self.settings.model.dropout, generator) for _ in range(2))
        return E4SRecDrawn(vectors, states)

    def drawn_losses(
        self, model: RecommenderModel, batch: SequenceBatch, drawn: Drawn, layout: Tensor, materials: SharedInputs
    ) -> dict[str, Tensor]:
        """``sequence``: cross-entropy of each item's next item."""
        assert isinstance(model, E4SRec)
        assert isinstance(drawn, E4SRecDrawn)
        k = stacked(layout) or 1
        parts = (drawn.kept_vectors, drawn.kept_states)
        vectors, states = (None if part is None else part.flatten(0, 1) for part in parts)
        hidden = model.hidden(batch, layout, batch.ends, vectors)
        scores = model.head(hidden if states is None else hidden * states)
        targets = batch.targets.view(k, -1)
        return {"sequence": item_cross_entropy(scores.view(k, targets.shape[1], -1), targets)}

    @property
    def weights(self) -> dict[str, float]:
        """``sequence`` with weight 1."""
        return {"sequence": 1.0}
