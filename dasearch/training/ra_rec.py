"""Training RA-Rec: BPR of the two towers' products, l2, and contrastive alignment of every layer (SPEC 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dasearch.config import RARecStudy
from dasearch.data import Examples, SequenceBatch
from dasearch.models.base import RecommenderModel
from dasearch.models.prefix import Injection, frozen_layer_means
from dasearch.models.ra_rec import ITEM_BATCH, RARec
from dasearch.training.encoders import study_encoder
from dasearch.training.losses import bpr_loss, info_nce
from dasearch.training.materials import Shared
from dasearch.training.method import Say
from dasearch.training.with_encoder import EncoderMethod, frozen_examples, kept_or_computed


@dataclass(frozen=True)
class RARecMethod(EncoderMethod):
    """RA-Rec with its trained ID encoder and the frozen model's states of examples and items.

    Attributes:
        frozen_items: what each layer of the plain model reads for each item, token means: ``(items, layers, width)``.
    """

    settings: RARecStudy
    frozen_items: Tensor | None

    @classmethod
    def prepare(cls, settings: RARecStudy, materials: Shared, examples: Examples, say: Say) -> RARecMethod:
        """Train or read the ID encoder, run the frozen model over examples and items."""
        encoder = study_encoder(settings.encoder, materials, settings.seed, say)
        frozen = frozen_of_items = None
        if settings.aligns:
            say("reading examples and items with the frozen model")
            frozen, frozen_of_items = frozen_examples(materials, examples), frozen_items(materials)
        return cls(settings, encoder, examples, frozen, frozen_of_items)

    def build(self, materials: Shared, *, replace_every: int, generator: torch.Generator) -> RARec:
        model = RARec(
            materials.catalogue.backbone,
            self.settings.model,
            encoder=self.encoder,
            n_items=materials.development.n_items,
            replace_every=replace_every,
            generator=generator,
        ).to(materials.device)
        model.start_bias(materials.item_counts.to(materials.device))
        return model

    def terms(
        self,
        model: RecommenderModel,
        batch: SequenceBatch,
        layout: Tensor,
        materials: Shared,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """``bpr``, ``l2`` and, where asked for, ``align``, the mean over layers of both towers' InfoNCE."""
        assert isinstance(model, RARec)
        device = layout.device
        moved = batch.to(device)
        positive = batch.at_last(batch.targets)
        drawn = torch.randint(model.n_items, (self.settings.losses.negatives,), generator=generator)
        items = torch.cat([positive, drawn]).unique()
        rows = materials.catalogue.item_rows.select(items).to(device)
        user_prefixes, item_prefixes = model.user_prefixes(moved), model.item_prefixes(items.to(device))
        users = model.tower_states(model.user_tower, moved.rows, user_prefixes, layout)
        states = model.tower_states(model.item_tower, rows, item_prefixes, layout)
        scores = model.product(users, states, model.item_bias[items.to(device)])
        unbought = ~materials.purchases.bought(
            batch.users[:, None].expand(-1, len(drawn)).flatten(), drawn.repeat(len(batch.users))
        ).view(-1, len(drawn))
        terms = {"bpr": bpr_of_drawn(scores, items, positive, drawn, unbought)}
        trained = [parameter for _, parameter in model.trainable()]
        if self.settings.losses.l2 and trained:
            terms["l2"] = torch.stack([parameter.square().sum() for parameter in trained]).sum()
        if self.settings.aligns:
            frozen_users = self.frozen_means(batch, materials, model.replaced)
            frozen_rows = kept_or_computed(self.frozen_items, items, rows, materials, model.replaced)
            on_users = model.user_tower.injections(user_prefixes, model.replaced, layout)
            on_items = model.item_tower.injections(item_prefixes, model.replaced, layout)
            terms["align"] = self._align(on_users, frozen_users) + self._align(on_items, frozen_rows)
        return terms

    def _align(self, injections: dict[int, Injection], frozen: Tensor) -> Tensor:
        """Mean over layers of InfoNCE between a prefix's visible tokens, averaged, and the plain model's states."""
        temperature = self.settings.losses.temperature
        return torch.stack(
            [info_nce(_visible_mean(one), frozen[:, k], temperature) for k, one in enumerate(injections.values())]
        ).mean()

    @property
    def weights(self) -> dict[str, float]:
        """1, the l2 weight, and lambda."""
        losses = self.settings.losses
        return {"bpr": 1.0, "l2": losses.l2, "align": losses.align}


def bpr_of_drawn(scores: Tensor, items: Tensor, positive: Tensor, drawn: Tensor, unbought: Tensor) -> Tensor:
    """Mean of ``-log sigmoid(y_u,pos - y_u,neg)`` over each row's own positive and the drawn items the user did not buy.

    Shapes: scores ``(batch, items)`` of the sorted ``items``, positive ``(batch,)``, drawn ``(n,)``, unbought ``(batch, n)``.
    """
    device = scores.device
    own = scores.gather(1, torch.searchsorted(items, positive)[:, None].to(device))
    others = F.embedding(torch.searchsorted(items, drawn).to(device), scores.T).T
    counts = (unbought & (drawn != positive[:, None])).to(device)
    if not bool(counts.any()):
        return scores.sum() * 0
    return bpr_loss(own.expand_as(others)[counts], others[counts])


def _visible_mean(injection: Injection) -> Tensor:
    """Mean of a prefix's visible tokens: ``(batch, width)``."""
    weights = injection.visible.to(injection.tokens.dtype)
    return (injection.tokens * weights[:, None]).sum(1) / weights.sum().clamp(min=1)


def frozen_items(materials: Shared) -> Tensor:
    """What each layer of the plain model reads for each item's row, token means: ``(items, layers, width)``."""
    backbone = materials.catalogue.backbone
    layers: Sequence[int] = range(len(backbone.blocks))
    return torch.cat(
        [
            frozen_layer_means(backbone, materials.catalogue.item_rows.select(items).to(materials.device), layers).cpu()
            for items in torch.arange(materials.development.n_items).split(ITEM_BATCH)
        ]
    )
