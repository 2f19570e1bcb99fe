"""E4SRec: a trained ID encoder's item vectors as the input tokens of a frozen language model.

Li et al. 2023, https://arxiv.org/abs/2312.02443: the item vectors of a frozen SASRec are mapped by one trained linear layer to
the language model's width and follow an instruction's words, one token per item; the last state scores the whole catalogue with
one trained row per item. The paper fine-tunes by LoRA; here a layer has an adapter at each sublayer, placed by the layout: sites
``attention``, ``h + place(SA, LN1(h))``, and ``ffn``, ``h + place(FFN, LN2(h))``, or LoRA on queries and values instead of the
attention adapter.
Differs from the paper: every item of a training row predicts the next one, as in SASRec, so that no prompt follows the items.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dasearch.data import ItemRows, SequenceBatch
from dasearch.data.rows import NO_ITEM
from dasearch.layout import LORA, Choice, Layout, ModelKind
from dasearch.models.adapters import AdapterSettings, unused_numbers
from dasearch.models.attention import MaskMode, Projected
from dasearch.models.backbone import AttentionScale, DecoderBlock, FrozenBackbone, Positions
from dasearch.models.base import (
    HEAD_SD,
    HeadBias,
    HeadRows,
    ParameterGroup,
    RecommenderModel,
    Scorer,
    layer_gates,
    start_head,
)
from dasearch.models.darec import SPECIAL_TOKENS, LayerInputs, PlainLayer, attend_under_causal, chosen_states
from dasearch.models.id_encoders import IDEncoder
from dasearch.models.lora import add_lora, unused_updates
from dasearch.models.over_encoder import OverEncoderSettings, Variation
from dasearch.models.stacking import Linear


class E4SRecSettings(AdapterSettings, OverEncoderSettings):
    """Interpretations of the paper that a study can choose between, and the sizes of the model."""

    kind: Literal[ModelKind.E4S_REC] = Field(description="E4SRec's study")
    variation: Variation = Field(Variation.WHOLE, description="whole, or frozen: without adapters")
    attn_scale: AttentionScale = Field(AttentionScale.HEAD, description="attention scale of the frozen model")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout rate of item vectors and head states")
    encoder_scores: float = Field(
        0.0, ge=0, description="weight of the ID encoder's scores added to the model's own; 0: not added"
    )
    head_bias: HeadBias = Field(HeadBias.LOG_FREQUENCY, description="initialisation of the item head's bias")
    head_rows: HeadRows = Field(
        HeadRows.ZERO, description="initialisation of its rows: frozen text vectors, normal, or zero"
    )

    @property
    def groups(self) -> tuple[ParameterGroup, ...]:
        """The parameter groups trained by the full model."""
        return ParameterGroup.ADAPTERS, ParameterGroup.IDS, ParameterGroup.HEAD


ATTENTION = "attention"
ADAPTERS = ("attention_adapter", "ffn_adapter")  # names in a layer, in the order of its sites


class TwoSiteLayer(nn.Module):
    """A frozen layer with an adapter at each sublayer.

    Shapes: hidden ``(batch, m, width)``; layout ``(2, k)`` with the two sites' numbers, or ``(2, k, batch, 1, 1)`` if the rows
    belong to several candidates.
    """

    def __init__(self, block: DecoderBlock, settings: E4SRecSettings, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.block, self.settings = block, settings
        self.attention_adapter = settings.adapter(width, generator)
        self.ffn_adapter = settings.adapter(width, generator)
        self.lora = nn.ModuleDict()  # at the site attention, if there is any

    def forward(
        self, hidden: Tensor, inputs: LayerInputs, layout: Tensor, collaborative: None, *, last: bool = False
    ) -> Tensor:
        """The layer's output ``(batch, m, width)``; only for the tokens that are read, ``(batch, n, width)``, if ``last``."""
        block, early = self.block, last and torch.is_grad_enabled()
        normed = block.norm1(hidden)
        update = partial(self._updated, normed, inputs.positions, layout[0])
        attention = attend_under_causal(block, normed, inputs, MaskMode.ADDITIVE, last=early, update=update)
        hidden, normed = (chosen_states(states, inputs, last=early) for states in (hidden, normed))
        hidden = hidden + self.settings.place(attention, normed, self.attention_adapter, layout[0])
        normed = block.norm2(hidden)
        hidden = hidden + self.settings.place(block.ffn(normed), normed, self.ffn_adapter, layout[1])
        return chosen_states(hidden, inputs, last=last and not early)

    def unused(self, choices: Sequence[Choice]) -> dict[str, Tensor]:
        """Masks of the numbers that both sites' choices leave unused: bool, with the parameters' shapes, by their names."""
        updates = unused_updates(self.lora, {ATTENTION: choices[0]})
        return unused_numbers(self, ADAPTERS, choices) | updates

    def _updated(
        self, normed: Tensor, positions: Positions, choice: Tensor, projected: Projected, at: Tensor | None
    ) -> Projected:
        """The frozen projection, with LoRA's updates if the layout may have them."""
        if len(choice) <= LORA:
            return projected
        updated: Projected = self.lora[ATTENTION](self.block, projected, normed, positions, choice, at)
        return updated


class E4SRec(RecommenderModel):
    """Item vectors in, item scores out; the layout is an argument.

    Args:
        backbone: a frozen decoder.
        settings: the model's settings.
        n_items: size of the catalogue.
        replace_every: replacement frequency r.
        encoder: a frozen, trained ID encoder.
        generator: random generator of all initial weights.
        lora: whether the attention site has LoRA, for layouts that choose it; other initial weights do not depend on it.

    Examples:
        >>> import torch
        >>> from dasearch import Layout
        >>> from dasearch.models import E4SRec
        >>> from dasearch.models.e4s_rec import E4SRecSettings
        >>> from dasearch.models.examples import tiny_backbone, tiny_encoder
        >>> generator = torch.Generator().manual_seed(0)
        >>> settings = E4SRecSettings(kind="e4s-rec", bottleneck=4)
        >>> model = E4SRec(tiny_backbone(), settings, encoder=tiny_encoder(3, 5), n_items=5, generator=generator)
        >>> model.count_trained(Layout.parse("SP-PS")) - model.count_trained(Layout.parse("SP-PN"))  # an adapter
        76
    """

    kind = ModelKind.E4S_REC
    groups = {  # noqa: RUF012 (a class variable of the base)
        ParameterGroup.ADAPTERS: ("layers",),
        ParameterGroup.IDS: ("projection",),
        ParameterGroup.HEAD: ("head",),
    }
    settings: E4SRecSettings
    encoder: IDEncoder

    def __init__(
        self,
        backbone: FrozenBackbone,
        settings: E4SRecSettings,
        *,
        encoder: IDEncoder,
        n_items: int,
        replace_every: int = 1,
        generator: torch.Generator,
        lora: bool = False,
    ) -> None:
        super().__init__(backbone, settings, n_items=n_items, replace_every=replace_every, encoder=encoder)
        width = backbone.width
        self.layers = nn.ModuleList(
            TwoSiteLayer(block, settings, width, generator)
            if settings.searchable and index in self.replaced
            else PlainLayer(block)
            for index, block in enumerate(backbone.decoder_blocks)
        )
        self.projection = Linear(encoder.width, width)
        nn.init.orthogonal_(self.projection.weight, generator=generator)
        nn.init.zeros_(self.projection.bias)
        self.head = Linear(width, n_items)
        nn.init.normal_(self.head.weight, std=HEAD_SD, generator=generator)
        nn.init.zeros_(self.head.bias)
        self.has_lora = lora
        if lora:
            adapted = [(layer.lora, layer.block) for layer in self.layers if isinstance(layer, TwoSiteLayer)]
            add_lora(adapted, width, {ATTENTION: settings.lora_rank}, settings.lora_alpha, generator)

    def vectors(self, items: Tensor) -> Tensor:
        """The language model's input embeddings of items: ``(..., width)``."""
        with torch.no_grad():
            known = self.encoder.item_embedding(items)
        embedded: Tensor = self.projection(known)
        return embedded

    def hidden(self, batch: SequenceBatch, layout: Tensor, at: Tensor, kept: Tensor | None = None) -> Tensor:
        """Last hidden states, after the final norm, of the tokens ``at`` ``(batch, n)``: ``(batch, n, width)``.

        ``kept`` ``(batch, items, width)`` is a dropout factor of the items' vectors.
        """
        vectors = self.vectors(batch.items.clamp(min=0)) * (batch.items != NO_ITEM)[..., None]
        vectors = vectors if kept is None else vectors * kept
        embedded = self.backbone.embed(batch.rows.tokens, vectors.new_zeros(SPECIAL_TOKENS, self.backbone.width))
        ends = batch.ends[..., None].expand_as(vectors)
        hidden, positions = self.backbone.start(embedded.scatter_add(1, ends, vectors.to(embedded.dtype)))
        inputs = LayerInputs(positions, batch.rows.segments, at)
        gates, top = layer_gates(layout, len(hidden)), len(self.layers) - 1
        numbers = dict(zip(self.replaced, gates, strict=True))
        for index, (block, layer) in enumerate(zip(self.backbone.all_blocks, self.layers, strict=True)):
            hidden = self.layer_states(block, layer, hidden, inputs, numbers.get(index), None, last=index == top)
        return self.backbone.final_norm(hidden)

    def states(self, batch: SequenceBatch, layout: Tensor) -> Tensor:
        """The last item's state of each row; see `RecommenderModel.states`."""
        return self.hidden(batch, layout, batch.at_last(batch.ends)[:, None]).squeeze(1)

    def scorer(self, item_rows: ItemRows, layout: Tensor) -> Scorer:
        """The item head, which needs no rows of items."""
        return self.head

    def inactive(self, layout: Layout) -> dict[str, Tensor]:
        """Masks of unused numbers in the adapted layers; see `RecommenderModel.inactive`."""
        if not self.settings.searchable:
            return {}
        return {
            f"layers.{place}.{name}": mask
            for place, choices in zip(self.replaced, layout.groups, strict=True)
            for name, mask in self.layers[place].unused(choices).items()  # type: ignore[operator]
        }

    @torch.no_grad()
    def start(self, item_counts: Tensor, text_vectors: Tensor) -> None:
        """Initialise the head (shapes as `dasearch.models.base.start_head`), and scale items like the model's own tokens."""
        items = self.vectors(torch.arange(self.n_items, device=self.device))
        self.projection.weight.mul_(self.backbone.token_sd / items.std().clamp(min=1e-6))
        bias, rows = self.settings.head_bias, self.settings.head_rows
        start_head(self.head, item_counts, text_vectors, bias=bias, rows=rows, sd=HEAD_SD)
