"""Prefixes composed of an ID vector and learned tokens, read by a frozen attention: shared by IDLE-Adapter and RA-Rec.

SPEC 3 and 4: ``p = W u + b`` per layer; learned tokens C; keys and values of ``[D; h]`` through the frozen projections,
D visible to every query. Where the sources print no formula (the gate), ours is a reconstruction.
Placement is a tensor: 0 puts D inside the frozen softmax, 1 beside it, ``(SA(h) + XA(h, D)) / 2``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from dasearch.data import Rows, SequenceBatch
from dasearch.models.adapters import ParallelReduce
from dasearch.models.attention import SQUARE_TOKENS, Keys, Projected, attend, attend_causally
from dasearch.models.backbone import AttentionScale, Block, FrozenBackbone, Positions
from dasearch.models.base import RecommenderModel, new_linear
from dasearch.models.id_encoders import IDEncoder
from dasearch.models.over_encoder import OverEncoderSettings
from dasearch.models.stacking import Linear, gather_tokens, per_row

PREFIX_TOKENS = 10  # the formulas state no length; RA-Rec's figures range from 30 to 70
PREFIX_SD = 0.02


class Refine(StrEnum):
    """How the projected ID vector and the learned tokens are combined into a layer's prefix D."""

    GATE = "gate"  # D_t = g_t p + (1 - g_t) c_t with g_t = sigmoid(w [c_t; p] + b): a reconstruction
    SCALAR_GATE = "scalar_gate"  # the same with one g per layer
    CONCAT = "concat"  # D = [C; p], as in RA-Rec
    NONE = "none"  # D = p: projection only


class ProjectionSharing(StrEnum):
    """Whether layers share one projection of ID vectors."""

    PER_LAYER = "per_layer"
    SHARED = "shared"  # without RA-Rec's reparameterization


class Pool(StrEnum):
    """The state that represents a row."""

    AUTO = "auto"  # the last token of a decoder, the mean of an encoder
    LAST = "last"
    MEAN = "mean"
    FIRST = "first"

    def of(self, *, causal: bool) -> Pool:
        """The resolved pooling for a decoder (``causal``) or an encoder."""
        if self is not Pool.AUTO:
            return self
        return Pool.LAST if causal else Pool.MEAN


class PrefixSettings(OverEncoderSettings):
    """Settings shared by IDLE-Adapter and RA-Rec."""

    prefix: int = Field(PREFIX_TOKENS, description="T, learned tokens in front of every adapted layer")
    projection: ProjectionSharing = Field(
        ProjectionSharing.PER_LAYER, description="a projection of ID vectors for each layer, or one for all"
    )
    parallel_reduce: ParallelReduce = Field(
        ParallelReduce.MEAN, description="how attention to a parallel prefix is combined with the frozen attention"
    )
    pool: Pool = Field(Pool.AUTO, description="the state of a row: auto is last for decoders, mean for encoders")
    attn_scale: AttentionScale = Field(AttentionScale.HEAD, description="attention scale of the frozen model")
    encoder_scores: float = Field(
        0.0, ge=0, description="weight of the ID encoder's scores added to the model's own; 0: not added"
    )

    @field_validator("prefix")
    @classmethod
    def _some_tokens(cls, prefix: int) -> int:
        if prefix < 1:
            raise ValueError(
                f"a prefix has at least 1 token, got {prefix}; to inject the ID vector alone see refine=none"
            )
        return prefix

    @property
    def layout_facts(self) -> dict[str, Any]:
        """Fields of ``layout.json`` that are specific to this kind of model."""
        return {"prefix": self.prefix}


class Prefix(nn.Module):
    """The prefix D of one layer.

    Shapes: ids ``(rows, vectors, id width)``, average ``()`` or ``(rows, 1, 1)`` with 0 (the gate) and 1 (``(p + c_t) / 2``)
    -> ``(rows, tokens, width)``.
    """

    def __init__(
        self, projection: nn.Linear, *, tokens: int, refine: Refine, width: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.projection = projection
        self.refine = refine
        if refine is not Refine.NONE:
            self.learned = nn.Parameter(torch.empty(tokens, width).normal_(std=PREFIX_SD, generator=generator))
        if refine is Refine.GATE:
            self.gate = Linear(2 * width, 1)
            nn.init.zeros_(self.gate.weight)
            nn.init.zeros_(self.gate.bias)
        elif refine is Refine.SCALAR_GATE:
            self.gate_logit = nn.Parameter(torch.zeros(()))

    def forward(self, ids: Tensor, average: Tensor) -> Tensor:
        """The prefix of each row; shapes as of the class."""
        projected: Tensor = self.projection(ids)
        if self.refine is Refine.NONE:
            return projected
        learned = self._at_rows(self.learned, 2, len(ids))
        if self.refine is Refine.CONCAT:
            return torch.cat([learned, projected], dim=1)
        gate = self._gate(learned, projected)
        share = torch.lerp(
            gate, gate.new_tensor(0.5), average.to(gate.dtype)
        )  # lerp requires equal dtypes, which autocast does not guarantee
        return share * projected + (1 - share) * learned

    def _gate(self, learned: Tensor, projected: Tensor) -> Tensor:
        if self.refine is Refine.SCALAR_GATE:
            return torch.sigmoid(self._at_rows(self.gate_logit, 0, len(projected)).view(-1, 1, 1))
        return torch.sigmoid(self.gate(torch.cat([learned, projected.expand_as(learned)], dim=-1)))

    @staticmethod
    def _at_rows(parameter: Tensor, dims: int, rows: int) -> Tensor:
        """A parameter with this many dimensions, broadcast to rows; if stacked, each row gets its candidate's."""
        return parameter.expand(rows, *parameter.shape) if parameter.dim() == dims else per_row(parameter, rows)


def build_prefixes(
    layers: int,
    *,
    id_width: int,
    width: int,
    tokens: int,
    refine: Refine,
    sharing: ProjectionSharing,
    generator: torch.Generator,
) -> nn.ModuleList:
    """A `Prefix` for each adapted layer, with separate or shared projections."""
    shared = new_linear(id_width, width, generator) if sharing is ProjectionSharing.SHARED else None
    return nn.ModuleList(
        Prefix(
            shared or new_linear(id_width, width, generator),
            tokens=tokens,
            refine=refine,
            width=width,
            generator=generator,
        )
        for _ in range(layers)
    )


@dataclass(frozen=True)
class Injection:
    """One layer's prefix and its placement.

    Shapes: tokens ``(rows, t, width)``; visible ``(t,)`` or ``(rows, t)`` bool, beside ``()`` or ``(rows, 1, 1)`` with 0 and 1.
    """

    tokens: Tensor
    visible: Tensor
    beside: Tensor


def inject(
    block: Block,
    hidden: Tensor,
    positions: Positions,
    mask: Tensor | None,
    injection: Injection,
    reduce: ParallelReduce = ParallelReduce.MEAN,
    at: Tensor | None = None,
) -> Tensor:
    """A frozen layer whose attention also reads a prefix; equals the frozen layer if none of it is visible.

    Shapes: hidden ``(rows, m, width)``, mask as `FrozenBackbone.mask`, at ``(rows, n)`` (None: every token)
    -> ``(rows, m or n, width)``.
    """
    projected = block.project(block.norm1(hidden), positions, at)
    extra = block.project_keys(block.norm1(injection.tokens.to(hidden.dtype)), None)
    visible = injection.visible.expand(len(hidden), -1)
    any_visible = visible.any(dim=1)[:, None, None]
    seen = (visible[:, None] | ~any_visible).expand(-1, projected.queries.shape[2], -1)
    own, inside, side = _attend_thrice(projected, extra, mask, at, visible, seen)
    side = own + side
    if reduce is ParallelReduce.MEAN:
        side = side / 2
    beside = injection.beside.to(inside.dtype)
    attended = torch.lerp(inside, torch.where(any_visible, side, own), beside)
    return block.finish(hidden if at is None else gather_tokens(hidden, at), block.output(attended))


def _attend_thrice(
    projected: Projected, extra: Keys, mask: Tensor | None, at: Tensor | None, visible: Tensor, seen: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention to the row itself, to the row and the prefix, and to the prefix alone.

    Shapes: visible ``(rows, t)``, seen ``(rows, queries, t)`` -> each ``(rows, queries, heads * head width)``. In training on
    short rows the three share one product of queries and keys.
    """
    rows, m = len(visible), projected.keys.shape[2]
    whole = joint_mask(visible, m, mask, at)
    if projected.queries.is_cuda or not torch.is_grad_enabled() or m > SQUARE_TOKENS:
        alone = whole[..., visible.shape[1] :]
        own = attend_causally(projected) if mask is None and at is None else attend(projected, alone)
        beside = attend(Projected(projected.queries, *extra), seen)
        return own, attend(projected.with_key(extra), whole.expand(rows, -1, -1)), beside
    widened, t = projected.with_key(extra), visible.shape[1]
    scores = widened.queries @ widened.keys.transpose(-1, -2)
    hidden = scores.masked_fill(~whole[:, None], -torch.inf)
    own = torch.softmax(hidden[..., t:], dim=-1) @ projected.values
    inside = torch.softmax(hidden, dim=-1) @ widened.values
    beside = torch.softmax(scores[..., :t].masked_fill(~seen[:, None], -torch.inf), dim=-1) @ extra.values
    return tuple(out.transpose(1, 2).flatten(2) for out in (own, inside, beside))  # type: ignore[return-value]


def joint_mask(visible: Tensor, m: int, mask: Tensor | None, at: Tensor | None = None) -> Tensor:
    """The row's own mask with the prefix's columns in front: ``(rows, m or n, t + m)``.

    ``mask`` None is causal, the same for every row; rows are padded on the right, so that no real token attends to padding.
    """
    if mask is None:
        places = torch.arange(m, device=visible.device)
        own = places <= (places if at is None else at)[..., None]
        own = own.expand(len(visible), -1, -1)
    elif at is not None:
        own = mask.gather(1, at[..., None].expand(-1, -1, m))
    else:
        own = mask
    return torch.cat([visible[:, None].expand(-1, own.shape[1], -1), own], dim=2)


def run_layers(
    backbone: FrozenBackbone,
    rows: Rows,
    injections: dict[int, Injection],
    reduce: ParallelReduce = ParallelReduce.MEAN,
    at: Tensor | None = None,
    through: Callable[..., Tensor] = lambda block, layer, *inputs: block.through(layer, *inputs),
) -> Tensor:
    """Last hidden states of the frozen model with prefixes in the layers of ``injections``.

    Shapes: ``(rows, m or n, width)``.

    Args:
        backbone: the frozen model.
        rows: the rows' tokens.
        injections: prefixes by layer index; other layers are unmodified.
        reduce: how attention to a parallel prefix is combined with the frozen attention.
        at: tokens whose states are read, ``(rows, n)``; None: all.
        through: calls a layer, as `RecommenderModel.layer_states` does.
    """
    hidden, positions = backbone.start(backbone.embed(rows.tokens))
    mask = backbone.mask(rows.real)
    *_, top = range(len(backbone.blocks))
    early = at if torch.is_grad_enabled() else None  # without gradients all states, as in exports, for identical digits
    for index, block in enumerate(backbone.all_blocks):
        chosen = early if index == top else None
        if index in injections:
            hidden = through(block, inject, block, hidden, positions, mask, injections[index], reduce, chosen)
        else:
            hidden = through(block, block.forward, hidden, positions, mask)
            hidden = hidden if chosen is None else gather_tokens(hidden, chosen)
    return backbone.final_norm(hidden if at is None or early is not None else gather_tokens(hidden, at))


def read_tokens(rows: Rows, pool: Pool, *, causal: bool) -> Tensor | None:
    """The token of each row whose state `pooled` reads, ``(rows, 1)``; None if it reads all."""
    pool = pool.of(causal=causal)
    if pool is Pool.MEAN:
        return None
    last = rows.real.sum(1, keepdim=True) - 1
    return torch.zeros_like(last) if pool is Pool.FIRST else last


def pooled(hidden: Tensor, rows: Rows, pool: Pool, *, causal: bool) -> Tensor:
    """One state per row, pooled from the states of all its tokens: ``(rows, width)``."""
    at = read_tokens(rows, pool, causal=causal)
    return token_mean(hidden, rows.real) if at is None else gather_tokens(hidden, at).squeeze(1)


def token_mean(hidden: Tensor, real: Tensor) -> Tensor:
    """Mean over real tokens. Shapes: hidden ``(batch, m, width)``, real ``(batch, m)`` -> ``(batch, width)``."""
    return (hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True)


@torch.no_grad()
def frozen_layer_means(backbone: FrozenBackbone, rows: Rows, layers: Sequence[int]) -> Tensor:
    """Inputs of the given layers in the unmodified model, averaged over tokens: ``(batch, layers, width)``."""
    states = [state for k, state in enumerate(backbone.layer_states(rows.tokens, rows.real)) if k in layers]
    return torch.stack([token_mean(state.float(), rows.real) for state in states], dim=1)


class PrefixModel(RecommenderModel):
    """A recommender whose frozen layers read prefixes computed from a trained ID encoder's vectors.

    Args:
        backbone: a frozen decoder or encoder.
        settings: the model's settings.
        encoder: a frozen, trained ID encoder in evaluation mode.
        n_items: size of the catalogue.
        replace_every: replacement frequency r.
        generator: random generator of all initial weights.
    """

    settings: PrefixSettings
    encoder: IDEncoder

    def __init__(
        self,
        backbone: FrozenBackbone,
        settings: PrefixSettings,
        *,
        encoder: IDEncoder,
        n_items: int,
        replace_every: int = 1,
        generator: torch.Generator,
    ) -> None:
        super().__init__(backbone, settings, n_items=n_items, replace_every=replace_every, encoder=encoder)
        self.build_modules(generator)

    def build_modules(self, generator: torch.Generator) -> None:
        """Add the trained modules, with their initial weights."""
        raise NotImplementedError

    def build_prefixes(self, refine: Refine, generator: torch.Generator) -> nn.ModuleList:
        """A `Prefix` for each adapted layer; an empty list if nothing is injected."""
        return build_prefixes(
            len(self.replaced) if self.settings.searchable else 0,
            id_width=self.encoder.width,
            width=self.backbone.width,
            tokens=self.settings.prefix,
            refine=refine,
            sharing=self.settings.projection,
            generator=generator,
        )

    @torch.no_grad()
    def user_ids(self, batch: SequenceBatch) -> Tensor:
        """The encoder's vectors of a batch's users: ``(batch, vectors, id width)``."""
        return self.encoder.user_embedding(batch.users, batch.histories)

    @torch.no_grad()
    def item_ids(self, items: Tensor) -> Tensor:
        """The encoder's vectors of items ``(k,)``: ``(k, 1, id width)``."""
        return self.encoder.item_embedding(items)[:, None]

    def pooled_states(self, rows: Rows, injections: dict[int, Injection]) -> Tensor:
        """One pooled last state per row: ``(batch, width)``."""
        at = read_tokens(rows, self.settings.pool, causal=self.backbone.causal)
        hidden = run_layers(self.backbone, rows, injections, self.settings.parallel_reduce, at, self.layer_states)
        return token_mean(hidden, rows.real) if at is None else hidden.squeeze(1)
