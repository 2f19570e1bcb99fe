"""Prefixes made of an ID vector and learned tokens, read by a frozen attention: what IDLE-Adapter and RA-Rec share.

SPEC 3 and 4: ``p = W u + b`` a layer; learned tokens C; keys and values of ``[D; h]`` through the frozen projections,
D visible to every query. Where the sources print no formula (the gate), the form here is a reconstruction.
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

PREFIX_TOKENS = 10  # no length is printed with the formulas; RA-Rec's figures run from 30 to 70
PREFIX_SD = 0.02


class Refine(StrEnum):
    """How the projected ID vector and the learned tokens become a layer's prefix D."""

    GATE = "gate"  # D_t = g_t p + (1 - g_t) c_t with g_t = sigmoid(w [c_t; p] + b): a reconstruction
    SCALAR_GATE = "scalar_gate"  # the same with one g a layer
    CONCAT = "concat"  # D = [C; p], RA-Rec's
    NONE = "none"  # D = p: alignment of dimensions only


class ProjectionSharing(StrEnum):
    """One projection of ID vectors for all layers, or one a layer."""

    PER_LAYER = "per_layer"
    SHARED = "shared"  # without RA-Rec's reparameterization


class Pool(StrEnum):
    """The state that stands for a row."""

    AUTO = "auto"  # the last token of a decoder, the mean of an encoder
    LAST = "last"
    MEAN = "mean"
    FIRST = "first"

    def of(self, *, causal: bool) -> Pool:
        """What it means for a decoder or an encoder."""
        if self is not Pool.AUTO:
            return self
        return Pool.LAST if causal else Pool.MEAN


class PrefixSettings(OverEncoderSettings):
    """What IDLE-Adapter and RA-Rec can both choose."""

    prefix: int = Field(PREFIX_TOKENS, description="T, learned tokens in front of every adapted layer")
    projection: ProjectionSharing = Field(
        ProjectionSharing.PER_LAYER, description="a projection of ID vectors for each layer, or one for all"
    )
    parallel_reduce: ParallelReduce = Field(
        ParallelReduce.MEAN, description="how attention beside the frozen one joins it"
    )
    pool: Pool = Field(Pool.AUTO, description="the state of a row: auto is last for decoders, mean for encoders")
    attn_scale: AttentionScale = Field(AttentionScale.HEAD, description="attention scale of the frozen model")
    encoder_scores: float = Field(
        0.0, ge=0, description="weight of the ID encoder's scores beside the model's own; 0: none are added"
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
        """What ``layout.json`` says of this kind of model alone."""
        return {"prefix": self.prefix}


class Prefix(nn.Module):
    """The prefix D of one layer.

    Shapes: ids ``(rows, vectors, id width)``, average ``()`` or ``(rows, 1, 1)`` of 0 (the gate) and 1 (``(p + c_t) / 2``)
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
        projected: Tensor = self.projection(ids)
        if self.refine is Refine.NONE:
            return projected
        learned = self._at_rows(self.learned, 2, len(ids))
        if self.refine is Refine.CONCAT:
            return torch.cat([learned, projected], dim=1)
        gate = self._gate(learned, projected)
        share = torch.lerp(gate, gate.new_tensor(0.5), average.to(gate.dtype))  # lerp mixes no types: autocast's differ
        return share * projected + (1 - share) * learned

    def _gate(self, learned: Tensor, projected: Tensor) -> Tensor:
        if self.refine is Refine.SCALAR_GATE:
            return torch.sigmoid(self._at_rows(self.gate_logit, 0, len(projected)).view(-1, 1, 1))
        return torch.sigmoid(self.gate(torch.cat([learned, projected.expand_as(learned)], dim=-1)))

    @staticmethod
    def _at_rows(parameter: Tensor, dims: int, rows: int) -> Tensor:
        """A parameter of so many dimensions at each row: one for all, or its candidate's where they are stacked."""
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
    """A `Prefix` for each adapted layer, with a projection each or one for all."""
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
    """One layer's prefix.

    Shapes: tokens ``(rows, t, width)``; visible ``(t,)`` or ``(rows, t)`` bool, beside ``()`` or ``(rows, 1, 1)`` of 0 and 1.
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
    """A frozen layer whose attention also reads a prefix; where nothing of it is visible, the frozen layer itself.

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
    """The row's own attention, the one that also reads the prefix, and the one that reads nothing else.

    Shapes: visible ``(rows, t)``, seen ``(rows, queries, t)`` -> each ``(rows, queries, heads * head width)``. In training on
    short rows from one product of queries and keys, whose weights the three share.
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

    ``mask`` None is causal, the same for every row; a row is padded on the right, so that no real token sees padding.
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
    through: Callable[..., Tensor] = lambda layer, *inputs: layer(*inputs),
) -> Tensor:
    """Last hidden states of the frozen model with prefixes in the layers of ``injections``.

    Shapes: at ``(rows, n)``, the tokens whose states are read (None: all) -> ``(rows, m or n, width)``.

    Args:
        through: calls a layer, as `RecommenderModel.layer_states` does.
    """
    hidden, positions = backbone.start(backbone.embed(rows.tokens))
    mask = backbone.mask(rows.real)
    *_, top = range(len(backbone.blocks))
    early = at if torch.is_grad_enabled() else None  # without gradients as exports do it, to the last digit
    for index, block in enumerate(backbone.all_blocks):
        chosen = early if index == top else None
        if index in injections:
            hidden = through(inject, block, hidden, positions, mask, injections[index], reduce, chosen)
        else:
            hidden = through(block, hidden, positions, mask)
            hidden = hidden if chosen is None else gather_tokens(hidden, chosen)
    return backbone.final_norm(hidden if at is None or early is not None else gather_tokens(hidden, at))


def read_tokens(rows: Rows, pool: Pool, *, causal: bool) -> Tensor | None:
    """The token of each row whose state `pooled` reads, ``(rows, 1)``; None where it reads all."""
    pool = pool.of(causal=causal)
    if pool is Pool.MEAN:
        return None
    last = rows.real.sum(1, keepdim=True) - 1
    return torch.zeros_like(last) if pool is Pool.FIRST else last


def pooled(hidden: Tensor, rows: Rows, pool: Pool, *, causal: bool) -> Tensor:
    """One state a row, of the states of all its tokens: ``(rows, width)``."""
    at = read_tokens(rows, pool, causal=causal)
    return token_mean(hidden, rows.real) if at is None else gather_tokens(hidden, at).squeeze(1)


def token_mean(hidden: Tensor, real: Tensor) -> Tensor:
    """Mean over the real tokens. Shapes: hidden ``(batch, m, width)``, real ``(batch, m)`` -> ``(batch, width)``."""
    return (hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True)


@torch.no_grad()
def frozen_layer_means(backbone: FrozenBackbone, rows: Rows, layers: Sequence[int]) -> Tensor:
    """What the given layers of the plain model read, averaged over tokens: ``(batch, layers, width)``."""
    states = [state for k, state in enumerate(backbone.layer_states(rows.tokens, rows.real)) if k in layers]
    return torch.stack([token_mean(state.float(), rows.real) for state in states], dim=1)


class PrefixModel(RecommenderModel):
    """A recommender whose frozen layers read prefixes made of a trained ID encoder's vectors.

    Args:
        encoder: stays as it is, in evaluation mode.
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
        replace_every: int,
    ) -> None:
        super().__init__(backbone, settings, n_items=n_items, replace_every=replace_every, encoder=encoder)

    def build_prefixes(self, refine: Refine, generator: torch.Generator) -> nn.ModuleList:
        """A `Prefix` for each adapted layer; none where nothing is injected."""
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
        """One last state a row: ``(batch, width)``."""
        at = read_tokens(rows, self.settings.pool, causal=self.backbone.causal)
        hidden = run_layers(self.backbone, rows, injections, self.settings.parallel_reduce, at, self.layer_states)
        return token_mean(hidden, rows.real) if at is None else hidden.squeeze(1)
