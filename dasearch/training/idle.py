"""Training IDLE-Adapter: cross-entropy of the next item and the MMD between prefixes and frozen states (SPEC 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dasearch.config import IDLEStudy
from dasearch.data import Development, Examples, SequenceBatch
from dasearch.errors import StudyError
from dasearch.models.base import RecommenderModel
from dasearch.models.idle import ALIGNMENT, IDLEAdapter
from dasearch.training.encoders import study_encoder
from dasearch.training.losses import MMD_BATCH, item_cross_entropy, mmd
from dasearch.training.materials import Shared
from dasearch.training.method import Say
from dasearch.training.with_encoder import EncoderMethod, frozen_examples


@dataclass(frozen=True)
class IDLEMethod(EncoderMethod):
    """IDLE-Adapter with its trained ID encoder and the frozen model's states."""

    settings: IDLEStudy

    @classmethod
    def prepare(cls, settings: IDLEStudy, materials: Shared, examples: Examples, say: Say) -> IDLEMethod:
        """Train or read the ID encoder, run the frozen model over the examples."""
        encoder = study_encoder(settings.encoder, materials, settings.seed, say)
        frozen = None
        if settings.aligns:
            say("reading the examples with the frozen model")
            frozen = frozen_examples(materials, examples)
        return cls(settings, encoder, examples, frozen)

    def build(self, materials: Shared, *, replace_every: int, generator: torch.Generator) -> IDLEAdapter:
        model = IDLEAdapter(
            materials.catalogue.backbone,
            self.settings.model,
            encoder=self.encoder,
            n_items=materials.development.n_items,
            replace_every=replace_every,
            generator=generator,
        ).to(materials.device)
        model.start_head(materials.item_counts.to(materials.device), materials.text_vectors.to(materials.device))
        return model

    def n_batches(self, development: Development, batch_size: int) -> int:
        found = len(self.examples.of(development.users))
        if found < MMD_BATCH and self.settings.aligns:
            raise StudyError(
                f"these users have {found} training examples and MMD compares samples of at least {MMD_BATCH}; "
                "raise data.bo_fraction or examples.per_user, or set losses.mmd=0"
            )
        return super().n_batches(development, batch_size)

    def terms(
        self,
        model: RecommenderModel,
        batch: SequenceBatch,
        layout: Tensor,
        materials: Shared,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """``next`` and, for a batch large enough, ``mmd`` averaged over the layers that the layout aligns."""
        assert isinstance(model, IDLEAdapter)
        moved = batch.to(layout.device)
        prefixes = model.layer_prefixes(moved, layout)
        states = model.states_with(moved, prefixes, layout)
        terms = {"next": item_cross_entropy(model.head(states), moved.at_last(moved.targets))}
        if self.settings.aligns and len(batch.users) >= MMD_BATCH:
            frozen = self.frozen_means(batch, materials, model.replaced)
            aligned = 1 - layout[:, ALIGNMENT]
            each = torch.stack([mmd(prefix.mean(1), frozen[:, k]) for k, prefix in enumerate(prefixes)])
            terms["mmd"] = (aligned * each).sum() / aligned.sum().clamp(min=1)
        return terms

    @property
    def weights(self) -> dict[str, float]:
        """1 and lambda."""
        return {"next": 1.0, "mmd": self.settings.losses.mmd}
