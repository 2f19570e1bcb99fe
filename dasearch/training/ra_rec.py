"""Training RA-Rec: BPR of the two towers' products, L2 regularisation, and contrastive alignment of every layer (SPEC 4)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dasearch.config import RARecStudy, Reduction
from dasearch.data import Examples, Rows, SequenceBatch
from dasearch.data.rows import PAD_SEGMENT
from dasearch.models.base import RecommenderModel
from dasearch.models.id_encoders import IDEncoder
from dasearch.models.prefix import Injection, frozen_layer_means
from dasearch.models.ra_rec import ITEM_BATCH, RARec
from dasearch.training.encoders import study_encoder
from dasearch.training.losses import bpr_loss, info_nce, reduced
from dasearch.training.method import Drawn, restored_examples
from dasearch.training.shared import Say, SharedInputs
from dasearch.training.with_encoder import EncoderMethod, frozen_examples, kept_or_computed


@dataclass(frozen=True)
class RARecDrawn(Drawn):
    """The sampled inputs of RA-Rec's losses for a batch.

    Shapes: items, counted (bool, False for padding) ``(K, a)``, their rows' tokens and segments ``(K, a, m)``; positive
    ``(K, B)``, drawn ``(K, n)`` as indices into the items; unbought ``(K, B, n)`` bool; the unmodified model's states
    frozen_users ``(K, B, all layers, width)``, frozen_items ``(K, a, all layers, width)``.
    """

    items: Tensor
    counted: Tensor
    tokens: Tensor
    segments: Tensor
    positive: Tensor
    drawn: Tensor
    unbought: Tensor
    frozen_users: Tensor | None = None
    frozen_items: Tensor | None = None
    fills = {"segments": PAD_SEGMENT}  # noqa: RUF012 (a class variable of the base)


@dataclass(frozen=True)
class RARecMethod(EncoderMethod):
    """The training task of RA-Rec, with its trained ID encoder and the frozen model's states of examples and items.

    Attributes:
        frozen_items: token means of each layer's input in the unmodified model, per item: ``(items, layers, width)``.
    """

    settings: RARecStudy
    frozen_items: Tensor | None

    @classmethod
    def prepare(cls, settings: RARecStudy, materials: SharedInputs, examples: Examples, say: Say) -> RARecMethod:
        """Train or load the ID encoder, and run the frozen model on examples and items."""
        encoder = study_encoder(settings.encoder, materials, settings.seed, say)
        frozen = frozen_of_items = None
        if settings.aligns:
            say("reading examples and items with the frozen model")
            frozen, frozen_of_items = frozen_examples(materials, examples), frozen_items(materials)
        return cls(settings, encoder, examples, frozen, frozen_of_items)

    def tensors(self) -> dict[str, Tensor]:
        """The base class's tensors and the items' frozen states."""
        return super().tensors() | ({} if self.frozen_items is None else {"frozen_items": self.frozen_items})

    @classmethod
    def restored(cls, settings: RARecStudy, encoder: IDEncoder, tensors: Mapping[str, Tensor]) -> RARecMethod:
        """The task with these `tensors` and this encoder."""
        examples = restored_examples(tensors)
        assert examples is not None
        return cls(settings, encoder, examples, tensors.get("frozen"), tensors.get("frozen_items"))

    def start(self, model: RARec, materials: SharedInputs, generator: torch.Generator) -> None:
        """Initialise the items' biases."""
        model.start_bias(materials.item_counts.to(materials.device))

    def draw(self, batch: SequenceBatch, materials: SharedInputs, generator: torch.Generator) -> RARecDrawn:
        """Sample the batch's items, with their rows and, for the alignment loss, the unmodified model's states."""
        n_items = materials.development.n_items
        positive = batch.at_last(batch.targets)
        drawn = torch.randint(n_items, (self.settings.losses.negatives,), generator=generator)
        items = torch.cat([positive, drawn]).unique()
        rows = materials.catalogue.item_rows.select(items)
        owners = batch.users[:, None].expand(-1, len(drawn))
        unbought = ~materials.purchases.bought(owners.flatten(), drawn.repeat(len(owners))).view_as(owners)
        sampled = RARecDrawn(
            items[None],
            torch.ones_like(items, dtype=torch.bool)[None],
            rows.tokens[None],
            rows.segments[None],
            torch.searchsorted(items, positive)[None],
            torch.searchsorted(items, drawn)[None],
            (unbought & (drawn != positive[:, None]))[None],
        )
        if not self.settings.aligns:
            return sampled
        frozen_rows = kept_or_computed(self.frozen_items, items, rows, materials)[None]
        return dataclasses.replace(sampled, frozen_users=self.frozen_means(batch, materials), frozen_items=frozen_rows)

    def drawn_losses(
        self, model: RecommenderModel, batch: SequenceBatch, drawn: Drawn, layout: Tensor, materials: SharedInputs
    ) -> dict[str, Tensor]:
        """``bpr``, ``l2`` and, if configured, ``align``, the mean over layers of both towers' InfoNCE."""
        assert isinstance(model, RARec)
        assert isinstance(drawn, RARecDrawn)
        k, count = drawn.items.shape
        rows = Rows(drawn.tokens.flatten(0, 1), _never_empty(drawn.segments.flatten(0, 1)))
        user_prefixes, item_prefixes = model.user_prefixes(batch), model.item_prefixes(drawn.items.flatten())
        users = model.tower_states(model.user_tower, batch.rows, user_prefixes, layout).view(
            k, -1, model.backbone.width
        )
        states = model.tower_states(model.item_tower, rows, item_prefixes, layout).view(k, count, -1)
        biases = model.item_bias.expand(k, -1).gather(1, drawn.items)
        scores = model.product(users, states, biases)
        terms = {"bpr": bpr_of_drawn(scores, drawn.positive, drawn.drawn, drawn.unbought)}
        trained = [parameter for _, parameter in model.trainable()]
        if self.settings.losses.l2 and trained:
            terms["l2"] = torch.stack([parameter.reshape(k, -1).square().sum(1) for parameter in trained]).sum(0)
        if drawn.frozen_users is not None and drawn.frozen_items is not None:
            on_users = model.user_tower.injections(user_prefixes, model.replaced, layout)
            on_items = model.item_tower.injections(item_prefixes, model.replaced, layout)
            whole = torch.ones(users.shape[:2], dtype=torch.bool, device=users.device)
            of_users, of_items = (part[:, :, list(model.replaced)] for part in (drawn.frozen_users, drawn.frozen_items))
            terms["align"] = self._align(on_users, of_users, whole) + self._align(on_items, of_items, drawn.counted)
        return terms

    def _align(self, injections: dict[int, Injection], frozen: Tensor, counted: Tensor) -> Tensor:
        """Mean over layers of InfoNCE between the mean of a prefix's visible tokens and the unmodified model's states.

        Shapes: frozen ``(K, rows, layers, width)``, counted ``(K, rows)`` -> ``(K,)``.
        """
        means = torch.stack([_visible_mean(one) for one in injections.values()]).view(
            -1, *counted.shape, frozen.shape[-1]
        )
        frozen, temperature = frozen.movedim(2, 0), self.settings.losses.temperature
        return torch.stack(
            [info_nce(own, theirs, temperature, counted) for own, theirs in zip(means, frozen, strict=True)]
        ).mean(0)

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the terms: 1, the L2 weight, and lambda."""
        losses = self.settings.losses
        return {"bpr": 1.0, "l2": losses.l2, "align": losses.align}


def _never_empty(segments: Tensor) -> Tensor:
    """Segments in which rows of only padding get one token, so that their states are finite."""
    return torch.cat([segments[:, :1].clamp(min=0), segments[:, 1:]], dim=1)


def bpr_of_drawn(scores: Tensor, positive: Tensor, drawn: Tensor, unbought: Tensor) -> Tensor:
    """Mean of ``-log sigmoid(y_u,pos - y_u,neg)`` over each row's own positive and the sampled items that the user did not buy.

    Shapes: scores ``(K, batch, items)``, positive ``(K, batch)`` and drawn ``(K, n)`` as indices into the items, unbought
    ``(K, batch, n)`` -> ``(K,)``; 0 if the users bought everything.
    """
    own = scores.gather(2, positive[..., None])
    others = scores.gather(2, drawn[:, None].expand(-1, scores.shape[1], -1))
    return reduced(bpr_loss(own, others), unbought, Reduction.MEAN)


def _visible_mean(injection: Injection) -> Tensor:
    """Mean of a prefix's visible tokens: ``(rows, width)``."""
    weights = injection.visible.to(injection.tokens.dtype).expand(len(injection.tokens), -1)
    return (injection.tokens * weights[..., None]).sum(1) / weights.sum(1, keepdim=True).clamp(min=1)


def frozen_items(materials: SharedInputs) -> Tensor:
    """Token means of each layer's input in the unmodified model, per item row: ``(items, layers, width)``."""
    backbone = materials.catalogue.backbone
    layers: Sequence[int] = range(len(backbone.blocks))
    return torch.cat(
        [
            frozen_layer_means(backbone, materials.catalogue.item_rows.select(items).to(materials.device), layers).cpu()
            for items in torch.arange(materials.development.n_items).split(ITEM_BATCH)
        ]
    )
