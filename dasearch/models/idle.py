"""IDLE-Adapter: the user vector of an ID model as extra keys and values in every layer of a frozen language model.

SPEC 3. The sources print ``p = W u + b`` per layer, the injected attention, and a loss of cross-entropy plus MMD; we found no
printed formula for the gate and the MMD kernel, so both are options whose default is a reconstruction.
Sites of a layer: ``injection`` (serial: D inside the frozen softmax, parallel: beside it), ``refinement`` (serial: gate,
parallel: plain average), ``alignment`` (serial: the layer counts in the MMD loss, parallel: it does not).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dasearch.data import ItemRows, SequenceBatch
from dasearch.layout import READS, ModelKind
from dasearch.models.base import (
    HEAD_SD,
    HeadBias,
    HeadRows,
    ParameterGroup,
    Scorer,
    centred_directions,
    layer_gates,
    log_frequency,
    new_linear,
    start_head,
)
from dasearch.models.prefix import Injection, PrefixModel, PrefixSettings, Refine
from dasearch.models.stacking import Linear, linear, per_row

INJECTION, REFINEMENT, ALIGNMENT = range(3)


class Head(StrEnum):
    """How items are scored from a state."""

    ITEM_LINEAR = "item_linear"  # a trained row per item
    DOT_ITEM_TEXT = "dot_item_text"  # a trained map to the frozen text vectors


class IDLESettings(PrefixSettings):
    """Interpretations of the sources that a study can choose between, and the sizes of the model."""

    kind: Literal[ModelKind.IDLE] = Field(description="IDLE-Adapter's study")
    refine: Refine = Field(Refine.GATE, description="how the ID vector and learned tokens are combined into a prefix")
    head: Head = Field(Head.ITEM_LINEAR, description="a trained row per item, or a map to the items' text vectors")
    head_bias: HeadBias = Field(HeadBias.LOG_FREQUENCY, description="initialisation of the item head's bias")
    head_rows: HeadRows = Field(
        HeadRows.TEXT, description="initialisation of its rows: frozen text vectors, normal, or zero"
    )

    @property
    def groups(self) -> tuple[ParameterGroup, ...]:
        """The parameter groups trained by the full model."""
        return ParameterGroup.ADAPTERS, ParameterGroup.HEAD


class TextHead(nn.Module):
    """Scores as dot products with the frozen text vectors: ``(W h) . t_i + b_i``."""

    texts: Tensor

    def __init__(self, width: int, n_items: int, generator: torch.Generator) -> None:
        super().__init__()
        self.map = new_linear(width, width, generator)
        self.bias = nn.Parameter(torch.zeros(n_items))
        self.register_buffer("texts", torch.zeros(n_items, width))

    def forward(self, states: Tensor) -> Tensor:
        """Scores of every item. Shapes: states ``(rows, width)`` -> ``(rows, items)``."""
        scores = linear(self.map(states), self.texts, None)
        bias = self.bias if self.bias.dim() == 1 else per_row(self.bias, len(states))
        return scores + bias


class IDLEAdapter(PrefixModel):
    """A hard prompt with the history in, item scores out; the layout is an argument.

    Arguments are those of `dasearch.models.prefix.PrefixModel`.

    Examples:
        >>> import torch
        >>> from dasearch import Layout
        >>> from dasearch.models import IDLEAdapter
        >>> from dasearch.models.examples import tiny_backbone, tiny_encoder
        >>> from dasearch.models.idle import IDLESettings
        >>> generator = torch.Generator().manual_seed(0)
        >>> settings = IDLESettings(kind="idle", prefix=2)
        >>> model = IDLEAdapter(tiny_backbone(), settings, encoder=tiny_encoder(3, 5), n_items=5, generator=generator)
        >>> model.layout_tensor(Layout.parse("SPS-PPS")).shape
        torch.Size([2, 3, 3])
    """

    kind = ModelKind.IDLE
    groups = {ParameterGroup.ADAPTERS: ("prefixes",), ParameterGroup.HEAD: ("head",)}  # noqa: RUF012 (of the base)
    settings: IDLESettings

    def build_modules(self, generator: torch.Generator) -> None:
        """The prefixes of the adapted layers and the item head."""
        self.prefixes = self.build_prefixes(self.settings.refine, generator)
        self.head: nn.Linear | TextHead
        if self.settings.head is Head.DOT_ITEM_TEXT:
            self.head = TextHead(self.backbone.width, self.n_items, generator)
        else:
            self.head = Linear(self.backbone.width, self.n_items)
            nn.init.normal_(self.head.weight, std=HEAD_SD, generator=generator)
            nn.init.zeros_(self.head.bias)

    def layer_prefixes(self, batch: SequenceBatch, layout: Tensor) -> list[Tensor]:
        """The prefix D of every adapted layer, each ``(rows, tokens, width)``."""
        ids = self.user_ids(batch)
        gates = layer_gates(layout, len(ids))
        return [prefix(ids, gates[k, REFINEMENT, READS]) for k, prefix in enumerate(self.prefixes)]

    def states(self, batch: SequenceBatch, layout: Tensor) -> Tensor:
        """The pooled last state of each row; see `RecommenderModel.states`."""
        return self.states_with(batch, self.layer_prefixes(batch, layout), layout)

    def states_with(self, batch: SequenceBatch, prefixes: list[Tensor], layout: Tensor) -> Tensor:
        """`states` with given prefixes."""
        gates = layer_gates(layout, len(batch.users))
        injections = {
            layer: Injection(
                tokens, torch.ones(tokens.shape[1], dtype=torch.bool, device=tokens.device), gates[k, INJECTION, READS]
            )
            for k, (layer, tokens) in enumerate(zip(self.replaced, prefixes, strict=False))
        }
        return self.pooled_states(batch.rows, injections)

    def scorer(self, item_rows: ItemRows, layout: Tensor) -> Scorer:
        """The item head, which needs no rows of items."""
        return self.head

    @torch.no_grad()
    def start_head(self, item_counts: Tensor, text_vectors: Tensor) -> None:
        """Initialise the head; shapes as `dasearch.models.base.start_head`."""
        bias, rows = self.settings.head_bias, self.settings.head_rows
        if isinstance(self.head, nn.Linear):
            start_head(self.head, item_counts, text_vectors, bias=bias, rows=rows, sd=HEAD_SD)
            return
        self.head.texts.copy_(centred_directions(text_vectors))
        if bias is HeadBias.LOG_FREQUENCY:
            self.head.bias.copy_(log_frequency(item_counts))
