"""DARec: a frozen language model with two relation adapters, a router and a recommendation adapter in each layer.

Liu et al. 2024, "Beyond Inter-Item Relations", https://arxiv.org/abs/2408.07427.
Differs from the paper: frozen FFN, norms and residuals of the block stay; masks act before the softmax; two new token
rows are trained; readings of SPEC 1 where the text is silent. Each such reading is a field of `DARecSettings`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import cached_property
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dasearch.data import ItemRows, Rows, SequenceBatch
from dasearch.data.rows import NO_ITEM
from dasearch.layout import ACTIVE, LORA, SERIAL, SITES, Choice, Layout, ModelKind
from dasearch.models.adapters import AdapterSettings, MaskRouter, unused_numbers
from dasearch.models.attention import (
    SQUARE_TOKENS,
    ItemBlocks,
    Keys,
    MaskMode,
    Projected,
    additive,
    attend_causally,
    attend_under,
)
from dasearch.models.backbone import AttentionScale, DecoderBlock, FrozenBackbone, Positions
from dasearch.models.base import (
    HEAD_SD,
    HeadBias,
    HeadRows,
    ParameterGroup,
    RecommenderModel,
    Scorer,
    centred_directions,
    layer_gates,
    new_linear,
    start_head,
)
from dasearch.models.collaborative import (
    CF_WIDTH,
    MatrixFactorization,
    NCFEmbedding,
    NeuralCollaborativeFiltering,
    fold_in_matrix,
    own_or_estimated,
)
from dasearch.models.compilation import compiled
from dasearch.models.id_encoders import IDEncoder
from dasearch.models.lora import add_lora, unused_updates
from dasearch.models.masks import causal_mask, context_mask
from dasearch.models.stacking import Linear, Table, gather_tokens, linear

SPECIAL_TOKENS = 2  # [SEQ] and [ALIGN], the ids after the backbone's vocabulary
TOKEN_SD = 0.02  # of the new token embeddings, as in OPT
NO_SEGMENT = -2  # segment of a key that no token attends to
BRANCHES = SITES[ModelKind.DAREC][:2]  # the sites with an attention branch
Update = Callable[[Projected, Tensor | None], Projected]


class Variation(StrEnum):
    """The paper's own variations of DARec (sec. 3.1.3, 3.3 and fig. 6)."""

    DAREC = "darec"
    SERIAL = "variation-2"  # DARec with every adapter serial
    BASE = "darec-base"  # variation 1: one causal attention, serial adapters after attention and FFN, no CF
    LLMREC = "llmrec"  # the frozen model and a trained head, L_seq alone
    BOTH_CAUSAL = "both-causal"  # both branches under the causal mask


class CollaborativeKind(StrEnum):
    """The kind of collaborative model: NCF or matrix factorization."""

    NCF = "ncf"
    MF = "mf"


class CFMode(StrEnum):
    """Whether the collaborative model is trained jointly or frozen (fig. 14)."""

    JOINT = "joint"
    FROZEN = "frozen"


class CollabProjection(StrEnum):
    """Whether layers share one projection of collaborative vectors to the language model."""

    SHARED = "shared"
    PER_LAYER = "per_layer"


class Branch(StrEnum):
    """What a query of a dynamically adapted layer attends to (sec. 2.3.1, fig. 6)."""

    CAUSAL = "causal"
    CONTEXT = "context"
    CAUSAL_WITH_KEY = "causal with key"  # the context branch of `Variation.BOTH_CAUSAL`


class ItemIDs(StrEnum):
    """The vector that is added at an item's ``[SEQ]``."""

    NONE = "none"
    EMBEDDING = "embedding"
    ENCODER = "encoder"  # trained like `EMBEDDING`, but initialised from a trained ID encoder's item vectors
    COLLABORATIVE = "collaborative"


class UserKey(StrEnum):
    """The vector that represents the user among the context branch's keys."""

    TRAINED = "trained"
    HISTORY = "history"
    NONE = "none"


class HeadStates(StrEnum):
    """Whether the head reads plain states or states whitened by the frozen model's statistics."""

    PLAIN = "plain"
    WHITENED = "whitened"


class RecommendationSite(StrEnum):
    """The module that the third adapter wraps."""

    FFN = "ffn"
    ROUTER_OUTPUT = "router_output"


class DARecSettings(AdapterSettings):
    """Interpretations of the paper that a study can choose between, and the sizes of the model."""

    kind: Literal[ModelKind.DAREC] = Field(ModelKind.DAREC, description="DARec's study")
    variation: Variation = Field(Variation.DAREC, description="darec, or one of the paper's own variations of it")
    rec_adapter_site: RecommendationSite = Field(RecommendationSite.FFN, description="what the third adapter wraps")
    mask_mode: MaskMode = Field(
        MaskMode.ADDITIVE, description="masks before the softmax; post_softmax leaks the future"
    )
    attn_scale: AttentionScale = Field(AttentionScale.HEAD, description="attention scale; model is the printed form")
    collaborative: CollaborativeKind = Field(CollaborativeKind.NCF, description="CF model: ncf or mf")
    ncf_embedding: NCFEmbedding = Field(NCFEmbedding.SHARED, description="one table for both NCF paths, or two")
    cf_width: int = Field(CF_WIDTH, ge=2, description="width of CF vectors")
    cf_mode: CFMode = Field(
        CFMode.JOINT, description="train CF with the model, or freeze it after pre-training (fig. 14)"
    )
    collab_proj: CollabProjection = Field(
        CollabProjection.SHARED, description="one projection to the LLM, or one a layer"
    )
    item_ids: ItemIDs = Field(
        ItemIDs.NONE,
        description="what is added at an item's [SEQ]: a vector trained from a random start (embedding) or from the ID "
        "encoder's (encoder), the projected CF vector, or nothing",
    )
    item_key: bool = Field(False, description="let each item's tokens attend to its CF vector in the context branch")
    user_key: UserKey = Field(
        UserKey.TRAINED,
        description="the user there: the CF vector (which has seen the targets), the mean of the items so far, or none",
    )
    head_states: HeadStates = Field(
        HeadStates.PLAIN, description="states the head reads: plain, or whitened by the frozen model's statistics"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout rate of item vectors and head states")
    encoder_scores: float = Field(
        0.0, ge=0, description="weight of the ID encoder's scores added to the model's own; 0: not added"
    )
    router_start: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="initial weight of the causal branch in the router; the context branch has the rest",
    )
    collab_in_align: bool = Field(True, description="inject the item's CF vector into its own alignment row")
    collab_stop_grad: bool = Field(False, description="stop the gradients of L_seq and L_align to the CF vectors")
    prompt_group: bool = Field(
        True, description="an alignment row is one segment; if false, its prompt is a segment of its own"
    )
    head_bias: HeadBias = Field(HeadBias.LOG_FREQUENCY, description="initialisation of the item head's bias")
    head_rows: HeadRows = Field(
        HeadRows.TEXT, description="initialisation of its rows: frozen text vectors, normal, or zero"
    )
    head_text: bool = Field(
        False, description="add a trained map of the item's frozen text vector to its row of the head"
    )

    @property
    def label(self) -> str:
        """The model's name in reports."""
        return self.variation.value

    @property
    def searchable(self) -> bool:
        """Whether the layout affects the model."""
        return self.variation in (Variation.DAREC, Variation.BOTH_CAUSAL)

    @property
    def holds_encoder(self) -> bool:
        """Whether the model contains an ID encoder, other than as an initialisation."""
        return self.encoder_scores > 0

    @property
    def compared(self) -> tuple[str, ...]:
        """The variations compared with the search's winner in the results table (sec. 3.1.3, 3.3)."""
        return Variation.LLMREC, Variation.BASE

    @property
    def groups(self) -> tuple[ParameterGroup, ...]:
        """The parameter groups trained by the full model."""
        ids = () if self.item_ids is ItemIDs.NONE else (ParameterGroup.IDS,)
        cf = () if self.cf_mode is CFMode.FROZEN else (ParameterGroup.CF,)
        return ParameterGroup.ADAPTERS, *ids, *cf, ParameterGroup.HEAD

    @property
    def uses_collaborative(self) -> bool:
        """Whether the model has a context branch and thus collaborative keys."""
        return self.variation not in (Variation.BASE, Variation.LLMREC)

    @property
    def has_collaborative(self) -> bool:
        """Whether the model has a CF model."""
        return self.uses_collaborative or self.item_ids is ItemIDs.COLLABORATIVE

    @property
    def trains_item_ids(self) -> bool:
        """Whether every item has its own trained vector."""
        return self.item_ids in (ItemIDs.EMBEDDING, ItemIDs.ENCODER)

    @property
    def key_an_item(self) -> bool:
        """Whether each item of a row has its own collaborative key, rather than one key per row."""
        return self.item_key or self.user_key is UserKey.HISTORY


ADAPTERS = tuple(f"{site}_adapter" for site in SITES[ModelKind.DAREC])  # of a layer, in the order of its sites
CONTEXT = SITES[ModelKind.DAREC].index("context")


class LayerInputs:
    """Inputs shared by all layers of one forward pass, each built on first use: positions, masks, item blocks.

    Args:
        positions: rotary positions of the rows' tokens.
        segments: ``(batch, m)``, the item that each token belongs to, -1 for padding.
        at: tokens of each row whose state is read after the last layer, ``(batch, n)``; None: all.
        keyed: the segment that attends to each collaborative key, ``(batch, keys)``; None: one key for all segments.
    """

    def __init__(
        self, positions: Positions, segments: Tensor, at: Tensor | None = None, keyed: Tensor | None = None
    ) -> None:
        self.positions = positions
        self.segments = segments
        self.at = at
        self.keyed = keyed
        self._biases: dict[tuple[Branch, bool, bool], Tensor] = {}

    @cached_property
    def blocks(self) -> ItemBlocks:
        """The rows split into items, for attention without a mask."""
        return ItemBlocks(self.segments, self.keyed)

    @cached_property
    def flat_positions(self) -> Positions:
        """Positions of every token of all rows, concatenated: ``(batch * m, head width)``."""
        batch, m = self.segments.shape
        cos, sin = (None if part is None else part.expand(batch, m, -1).flatten(0, 1) for part in self.positions)
        return Positions(cos, sin)

    @property
    def square(self) -> bool:
        """Whether attention uses masks over the whole row rather than item blocks."""
        short = self.segments.shape[1] <= SQUARE_TOKENS
        return self.segments.is_cuda or (short and (self.at is not None or torch.is_grad_enabled()))

    def bias(self, branch: Branch, dtype: torch.dtype, *, key: bool, chosen: bool) -> Tensor:
        """The branch's additive mask for `attend_under`, with columns for the collaborative keys if there is a ``key``.

        Shapes: ``(batch, 1, m or n, keys + m or m)``; only the rows of the tokens ``at`` if ``chosen``.
        """
        bias = self._biases.get((branch, key, chosen))
        if bias is None:
            mask = self._mask(branch)[..., 0 if key else self._keys :]
            if chosen and self.at is not None:
                mask = mask.gather(1, self.at[..., None].expand(-1, -1, mask.shape[-1]))
            bias = self._biases[branch, key, chosen] = additive(mask, dtype)
        return bias

    @property
    def _keys(self) -> int:
        return 1 if self.keyed is None else self.keyed.shape[1]

    def _mask(self, branch: Branch) -> Tensor:
        if branch is Branch.CONTEXT:
            return context_mask(self.segments, self.keyed)
        mask = causal_mask(self.segments, self._keys)
        if branch is Branch.CAUSAL_WITH_KEY:
            keys = context_mask(self.segments, self.keyed)[:, :, : self._keys]
            mask = torch.cat([keys, mask[:, :, self._keys :]], dim=2)
        return mask


class PlainLayer(nn.Module):
    """The unmodified frozen layer: below the first adapted layer, between adapted layers for r > 1, everywhere in LLMRec."""

    def __init__(self, block: DecoderBlock) -> None:
        super().__init__()
        self.block = block

    def forward(
        self, hidden: Tensor, inputs: LayerInputs, layout: Tensor, collaborative: Tensor | None, *, last: bool = False
    ) -> Tensor:
        """The layer's output; arguments and shapes as of `DALayer`, of which layout and collaborative keys are unused."""
        chosen = last and torch.is_grad_enabled()
        normed = self.block.norm1(hidden)
        attention = attend_under_causal(self.block, normed, inputs, MaskMode.ADDITIVE, last=chosen)
        output: Tensor = self.block.finish(chosen_states(hidden, inputs, last=chosen), attention)
        return chosen_states(output, inputs, last=last and not chosen)


class BaseLayer(nn.Module):
    """DARec_base (sec. 2.2.5, fig. 1): a serial adapter after attention and one after the FFN, before the residuals."""

    def __init__(self, block: DecoderBlock, settings: DARecSettings, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.block = block
        self.settings = settings
        self.attention_adapter = settings.adapter(width, generator)
        self.recommendation_adapter = settings.adapter(width, generator)

    def forward(
        self, hidden: Tensor, inputs: LayerInputs, layout: Tensor, collaborative: Tensor | None, *, last: bool = False
    ) -> Tensor:
        """The layer's output; arguments and shapes as of `DALayer`, of which layout and collaborative keys are unused."""
        chosen = last and torch.is_grad_enabled()
        normed = self.block.norm1(hidden)
        attention = attend_under_causal(self.block, normed, inputs, self.settings.mask_mode, last=chosen)
        hidden = chosen_states(hidden, inputs, last=chosen) + (attention + self.attention_adapter(attention))
        out = self.block.ffn(self.block.norm2(hidden))
        hidden = hidden + (out + self.recommendation_adapter(out))
        return chosen_states(hidden, inputs, last=last and not chosen)


def chosen_states(states: Tensor, inputs: LayerInputs, *, last: bool) -> Tensor:
    """The states that a layer passes on: for the last layer, only those that are read.

    In training they are selected after the attention. Without gradients the frozen layers compute all states, as exported models
    do, so that the scores are identical to the last digit.
    """
    return gather_tokens(states, inputs.at) if last and inputs.at is not None else states


class AdaptedSites(nn.Module):
    """The trained modules of one dynamically adapted layer, and how they combine with the frozen layer (sec. 2.3.3).

    If the context site has neither adapter nor LoRA there is no context branch, only the causal one; with none at all three sites
    the layer equals the frozen one. A site with LoRA has no module after its sublayer.

    Shapes: everything ``(..., width)`` except the layout, whose three sites have numbers as of `place`.

    Args:
        choices: choices of the three sites, to build only the modules that they need; None: full adapters, for every layout.
    """

    def __init__(
        self,
        settings: DARecSettings,
        width: int,
        generator: torch.Generator,
        *,
        choices: Sequence[Choice | None] | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.causal_adapter, self.context_adapter, self.recommendation_adapter = (
            settings.adapter(width, generator, choice.width) if choice is not None and choice.adapts else None
            for choice in choices or (SERIAL,) * len(ADAPTERS)
        )
        context = SERIAL if choices is None else choices[CONTEXT]
        self.router = MaskRouter(width, settings.router_start) if context is not None and context.active else None
        self.lora = nn.ModuleDict()  # by site, if there is any

    def unused(self, choices: Sequence[Choice]) -> dict[str, Tensor]:
        """Masks of the numbers that the three sites' choices leave unused: bool, with the parameters' shapes, by their names."""
        chosen = dict(zip(SITES[ModelKind.DAREC], choices, strict=True))
        masks = unused_numbers(self, ADAPTERS, choices) | unused_updates(self.lora, chosen)
        if not choices[CONTEXT].active and self.router is not None:
            masks |= {
                f"router.{key}": torch.ones(tensor.shape, dtype=torch.bool)
                for key, tensor in self.router.named_parameters()
            }
        return masks

    def after_attention(self, normed: Tensor, causal: Tensor, context: Tensor | None, layout: Tensor) -> Tensor:
        """The residual's summand, from the attention's input and its output under each mask."""
        joined: Tensor = self._place(causal, normed, self.causal_adapter, layout[0])
        if self.router is not None:
            assert context is not None
            other = self._place(context, normed, self.context_adapter, layout[CONTEXT])
            joined = self.router(joined, other, _present(layout[CONTEXT]))
        if self.settings.rec_adapter_site is RecommendationSite.ROUTER_OUTPUT:
            joined = self._place(joined, normed, self.recommendation_adapter, layout[2])
        return joined

    def after_ffn(self, normed: Tensor, out: Tensor, layout: Tensor) -> Tensor:
        """The residual's summand, from the FFN's input and output."""
        if self.settings.rec_adapter_site is not RecommendationSite.FFN:
            return out
        return self._place(out, normed, self.recommendation_adapter, layout[2])

    def _place(self, out: Tensor, seen: Tensor, adapter: nn.Module | None, choice: Tensor) -> Tensor:
        return out if adapter is None else self.settings.place(out, seen, adapter, choice)


def _present(choice: Tensor) -> Tensor:
    """1 if a site has an adapter or LoRA, else 0."""
    return choice[ACTIVE] + choice[LORA] if len(choice) > LORA else choice[ACTIVE]


class DALayer(AdaptedSites):
    """Dynamically adapted layer (sec. 2.3.3, fig. 4).

    Shapes: hidden ``(batch, m, width)``; layout ``(3, k)`` with the three sites' numbers, or ``(3, k, batch, 1, 1)`` if the rows
    belong to several candidates; collaborative ``(batch, width)`` or ``(batch, keys, width)``.
    """

    def __init__(self, block: DecoderBlock, settings: DARecSettings, width: int, generator: torch.Generator) -> None:
        super().__init__(settings, width, generator)
        self.block = block
        self.compiled = False

    def forward(
        self, hidden: Tensor, inputs: LayerInputs, layout: Tensor, collaborative: Tensor | None, *, last: bool = False
    ) -> Tensor:
        """The layer's output ``(batch, m, width)``; ``(batch, n, width)``, for the tokens that are read, if ``last``."""
        at = inputs.at if last else None
        mode, key = self.settings.mask_mode, collaborative is not None
        both_causal = self.settings.variation is Variation.BOTH_CAUSAL
        if not inputs.square and mode is MaskMode.ADDITIVE and not both_causal and at is None:
            return self._within_items(hidden, inputs, layout, collaborative)
        other = Branch.CAUSAL_WITH_KEY if both_causal else Branch.CONTEXT
        biases = [
            inputs.bias(branch, hidden.dtype, key=key, chosen=at is not None) for branch in (Branch.CAUSAL, other)
        ]
        block = self.block
        if self.compiled and at is None:
            normed, projected = self._projected(hidden, inputs)
        else:
            normed = block.norm1(hidden)
            projected = block.project(normed, inputs.positions, at)
        extra = None if collaborative is None else block.project_key(collaborative.to(normed.dtype))
        branches = self._branches(projected, normed, inputs.positions, layout, at)
        causal, context = _attended(branches, extra, biases, mode, whole=at is None)
        if at is not None:
            return self._joined(gather_tokens(hidden, at), gather_tokens(normed, at), causal, context, layout)
        return self._after_branches(hidden, normed, causal, context, layout)

    def _projected(self, hidden: Tensor, inputs: LayerInputs) -> tuple[Tensor, Projected]:
        """Normed states and their projection, as one compiled function whose only dynamic size is the number of tokens."""
        rows, m, _ = hidden.shape
        normed, *parts = compiled(DALayer._projected_tokens)(self, hidden.flatten(0, 1), inputs.flat_positions)
        by_row = (part.view(rows, m, -1, part.shape[-1]).transpose(1, 2) for part in parts)
        return normed.view_as(hidden), Projected(*by_row)

    def _projected_tokens(self, hidden: Tensor, positions: Positions) -> tuple[Tensor, ...]:
        """Norm and projection of tokens.

        Shapes: hidden ``(tokens, width)`` -> normed ``(tokens, width)``; queries, keys, values ``(tokens, heads, head width)``.
        """
        normed = self.block.norm1(hidden)
        return normed, self.block.project_queries(normed, positions), *self.block.project_keys(normed, positions)

    def _branches(
        self, projected: Projected, normed: Tensor, positions: Positions, layout: Tensor, at: Tensor | None = None
    ) -> tuple[Projected, Projected]:
        """The projections of the causal and the context branch: the frozen one, with the LoRA of each if there is any."""
        if layout.shape[1] <= LORA:
            return projected, projected
        causal, context = (
            self.lora[site](self.block, projected, normed, positions, layout[place], at)
            for place, site in enumerate(BRANCHES)
        )
        return causal, context

    def _within_items(
        self, hidden: Tensor, inputs: LayerInputs, layout: Tensor, collaborative: Tensor | None
    ) -> Tensor:
        """Both branches computed without a mask, for long rows."""
        block = self.block
        normed = block.norm1(hidden)
        projected = block.project(normed, inputs.positions)
        key = None if collaborative is None else block.project_key(collaborative.to(normed.dtype))
        of_causal, of_context = self._branches(projected, normed, inputs.positions, layout)
        causal, context = attend_causally(of_causal), inputs.blocks.attend(of_context, key)
        return self._after_branches(hidden, normed, causal, context, layout)

    def _after_branches(
        self, hidden: Tensor, normed: Tensor, causal: Tensor, context: Tensor, layout: Tensor
    ) -> Tensor:
        """`_joined`, optionally as one compiled function whose only dynamic size is the number of tokens."""
        if not self.compiled:
            return self._joined(hidden, normed, causal, context, layout)
        assert self.router is not None  # a DALayer is built with all modules
        weight = self.router.gate.weight
        k = len(weight) if weight.dim() == 3 else 1
        gates = layout if k == 1 else layout[:, :, :: len(hidden) // k]
        flat = (part.reshape(k, -1, part.shape[-1]) for part in (hidden, normed, causal, context))
        joined: Tensor = compiled(DALayer._joined)(self, *flat, gates)
        return joined.view_as(hidden)

    def _joined(self, hidden: Tensor, normed: Tensor, causal: Tensor, context: Tensor, layout: Tensor) -> Tensor:
        """The rest of the layer after the attention branches, token by token."""
        causal, context = self.block.output(causal), self.block.output(context)
        hidden = hidden + self.after_attention(normed, causal, context, layout)
        normed = self.block.norm2(hidden)
        return hidden + self.after_ffn(normed, self.block.ffn(normed), layout)


def _attended(
    branches: tuple[Projected, Projected], extra: Keys | None, biases: Sequence[Tensor], mode: MaskMode, *, whole: bool
) -> tuple[Tensor, Tensor]:
    """The causal and the context branch under their masks, from one product of queries and keys if both share a projection.

    ``extra`` holds the collaborative keys, for which the masks have columns; ``whole`` says whether every token is a query.
    """
    causal, context = branches
    widened = context if extra is None else context.with_key(extra)
    if causal.queries.is_cuda and mode is MaskMode.ADDITIVE and whole:
        return attend_causally(causal), attend_under(widened, biases[1:])[0]
    if causal is context:
        first, second = attend_under(widened, biases, mode)
        return first, second
    of_causal = causal if extra is None else causal.with_key(extra)
    return attend_under(of_causal, biases[:1], mode)[0], attend_under(widened, biases[1:], mode)[0]


def attend_under_causal(
    block: DecoderBlock,
    normed: Tensor,
    inputs: LayerInputs,
    mode: MaskMode,
    *,
    last: bool = False,
    update: Update = lambda projected, at: projected,
) -> Tensor:
    """The frozen causal attention with its output projection; collaborative keys are not among its keys.

    ``update`` modifies the frozen projection; its second argument is the tokens whose queries the projection holds (None: all).
    """
    at = inputs.at if last else None
    projected = update(block.project(normed, inputs.positions, at), at)
    chosen = last and inputs.at is not None
    without_mask = normed.is_cuda or not inputs.square or not torch.is_grad_enabled()
    if mode is MaskMode.ADDITIVE and not chosen and without_mask:
        return block.output(attend_causally(projected))
    (attended,) = attend_under(projected, [inputs.bias(Branch.CAUSAL, normed.dtype, key=False, chosen=chosen)], mode)
    return block.output(attended)


class DARec(RecommenderModel):
    """The recommender: rows of item sentences in, hidden states and item scores out; the layout is an argument.

    Args:
        backbone: a frozen decoder.
        settings: the model's settings.
        n_users, n_items: sizes of the CF tables and the item head.
        replace_every: replacement frequency r (fig. 10).
        generator: random generator of all initial weights.
        encoder: a frozen, trained ID encoder whose scores are added.
        lora: whether the attention sites have LoRA, for layouts that choose it; other initial weights do not depend on it.

    Raises:
        BackboneError: if the backbone is an encoder.

    Examples:
        >>> import torch
        >>> from dasearch import Layout
        >>> from dasearch.models import DARec
        >>> from dasearch.models.darec import DARecSettings
        >>> from dasearch.models.examples import tiny_backbone
        >>> generator = torch.Generator().manual_seed(0)
        >>> model = DARec(tiny_backbone(), DARecSettings(bottleneck=4), n_users=3, n_items=5, generator=generator)
        >>> model.count_trained(Layout.parse("SPS-PPS")) - model.count_trained(Layout.parse("SPS-PPN"))  # an adapter
        76
    """

    kind = ModelKind.DAREC
    groups = {  # noqa: RUF012 (a class variable of the base)
        ParameterGroup.ADAPTERS: ("layers",),
        ParameterGroup.IDS: ("item_ids", "id_projection"),
        ParameterGroup.CF: ("cf",),
        ParameterGroup.HEAD: ("head", "text_map"),
    }
    settings: DARecSettings
    fold_in: Tensor
    item_texts: Tensor
    state_mean: Tensor
    state_map: Tensor

    def __init__(
        self,
        backbone: FrozenBackbone,
        settings: DARecSettings,
        *,
        n_users: int,
        n_items: int,
        replace_every: int = 1,
        generator: torch.Generator,
        encoder: IDEncoder | None = None,
        lora: bool = False,
    ) -> None:
        super().__init__(backbone, settings, n_items=n_items, replace_every=replace_every, encoder=encoder)
        width = backbone.width
        self.special = nn.Parameter(torch.empty(SPECIAL_TOKENS, width).normal_(std=TOKEN_SD, generator=generator))
        self.layers = nn.ModuleList(
            self._layer(index, block, generator) for index, block in enumerate(backbone.decoder_blocks)
        )
        self.head = Linear(width, n_items)
        nn.init.normal_(self.head.weight, std=HEAD_SD, generator=generator)
        nn.init.zeros_(self.head.bias)
        if settings.head_text:
            self.text_map = Linear(width, width, bias=False)
            nn.init.zeros_(self.text_map.weight)
            self.register_buffer("item_texts", torch.zeros(n_items, width))
        self.cf = self._collaborative(n_users, n_items, generator) if settings.has_collaborative else None
        if self.cf is not None and settings.uses_collaborative:
            copies = len(self.replaced) if settings.collab_proj is CollabProjection.PER_LAYER else 1
            if settings.user_key is not UserKey.NONE:
                self.user_projection = _projections(copies, self.cf.width, width, generator)
            self.item_projection = _projections(copies, self.cf.width, width, generator)
            self.register_buffer("fold_in", torch.zeros(self.cf.width + 1, self.cf.width))
        if settings.trains_item_ids:
            self.item_ids = Table(n_items, width)
            nn.init.normal_(self.item_ids.weight, std=backbone.token_sd, generator=generator)
        elif settings.item_ids is ItemIDs.COLLABORATIVE:
            assert self.cf is not None
            self.id_projection = new_linear(self.cf.width, width, generator)
        if settings.head_states is HeadStates.WHITENED:
            self.register_buffer("state_mean", torch.zeros(width))
            self.register_buffer("state_map", torch.eye(width))
        self.has_lora = lora
        if lora:
            ranks = dict.fromkeys(BRANCHES, settings.lora_rank)
            adapted = [(layer.lora, layer.block) for layer in self.layers if isinstance(layer, DALayer)]
            add_lora(adapted, width, ranks, settings.lora_alpha, generator)

    def _layer(self, index: int, block: DecoderBlock, generator: torch.Generator) -> nn.Module:
        if index not in self.replaced or self.settings.variation is Variation.LLMREC:
            return PlainLayer(block)
        kind = BaseLayer if self.settings.variation is Variation.BASE else DALayer
        return kind(block, self.settings, self.backbone.width, generator)

    def _collaborative(
        self, n_users: int, n_items: int, generator: torch.Generator
    ) -> MatrixFactorization | NeuralCollaborativeFiltering:
        cf = build_collaborative(self.settings, n_users, n_items, generator)
        return cf.requires_grad_(self.settings.cf_mode is CFMode.JOINT)

    def hidden(
        self,
        rows: Rows,
        layout: Tensor,
        collaborative: Tensor | None = None,
        at: Tensor | None = None,
        *,
        keyed: Tensor | None = None,
        marks: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Last hidden states after the final norm.

        Shapes: rows of m tokens, layout as of `layout_tensor`, or of `layout_tensors` for the K candidates that the rows belong
        to, collaborative ``(adapted layers or 1, batch, width)`` (None: nothing is injected), or ``(..., batch, keys, width)``
        with keyed ``(batch, keys)``, the segment that attends to each; at ``(batch, n)`` (None: every token); marks: vectors
        ``(batch, n, width)`` to add at the tokens ``(batch, n)`` -> ``(batch, n or m, width)``.
        """
        embedded = self.backbone.embed(rows.tokens, self.special)
        if marks is not None:
            added, ends = marks
            embedded = embedded.scatter_add(1, ends[..., None].expand_as(added), added.to(embedded.dtype))
        hidden, positions = self.backbone.start(embedded)
        inputs = LayerInputs(positions, rows.segments, at, keyed)
        gates = layer_gates(layout, len(hidden))
        adapted, top = 0, len(self.layers) - 1
        for index, (block, layer) in enumerate(zip(self.backbone.all_blocks, self.layers, strict=True)):
            if index not in self.replaced:
                hidden = self.layer_states(block, layer, hidden, inputs, gates[0], None, last=index == top)
                continue
            vectors = None if collaborative is None else collaborative[min(adapted, len(collaborative) - 1)]
            hidden = self.layer_states(block, layer, hidden, inputs, gates[adapted], vectors, last=index == top)
            adapted += 1
        return self.backbone.final_norm(hidden)

    def inactive(self, layout: Layout) -> dict[str, Tensor]:
        """Masks of unused numbers in adapted layers, and of the collaborative projections if there is no context branch."""
        adapted = zip(self.replaced, layout.groups, strict=True)
        layers = ((place, self.layers[place], choices) for place, choices in adapted)
        masks = {
            f"layers.{place}.{name}": mask
            for place, layer, choices in layers
            if isinstance(layer, DALayer)
            for name, mask in layer.unused(choices).items()
        }
        if masks and not layout.active_layers(CONTEXT):
            projections = (p for p in self.trainable() if p[0].startswith(("user_projection.", "item_projection.")))
            masks |= {name: torch.ones_like(parameter, dtype=torch.bool) for name, parameter in projections}
        return masks

    def multiply_adds(self, layout: Layout, *, item_tokens: int) -> int:
        """The base class's count plus the cost of each context branch.

        With q = heads x head width, a context branch applies the frozen output projection again, ``q d``, and adds
        ``2 q (item_tokens + 2)`` for a token's attention to its item's tokens, their ``[SEQ]`` and one collaborative key.
        """
        block = self.backbone.decoder_blocks[0]
        q = block.heads * block.head_width
        branches = layout.active_layers(CONTEXT)
        return super().multiply_adds(layout, item_tokens=item_tokens) + branches * (
            q * self.backbone.width + 2 * q * (item_tokens + 2)
        )

    def compile_layers(self) -> None:
        """Let every adapted layer use its compiled functions."""
        for layer in self.layers:
            if isinstance(layer, DALayer):
                layer.compiled = True

    def user_keys(self, users: Tensor) -> Tensor | None:
        """The collaborative keys of users' rows, if each row has one: ``(projections, batch, width)``."""
        settings = self.settings
        if self.cf is None or not settings.uses_collaborative or settings.user_key is not UserKey.TRAINED:
            return None
        return self._project(self.cf.user_vectors(users), self.user_projection)

    def row_keys(self, batch: SequenceBatch, *, known: bool = False) -> tuple[Tensor | None, Tensor | None]:
        """The collaborative keys of users' rows, and the segment that attends to each.

        ``known`` states that all users are in the training data, which avoids reading from the device to find out.

        Shapes: ``(projections, batch, width)`` and None if a row has one key; ``(projections, batch, n, width)`` and
        ``(batch, n)`` if each item has its own, which is the sum of the user's and the item's part.
        """
        settings = self.settings
        if self.cf is None or not settings.uses_collaborative:
            return None, None
        parts = []
        if settings.user_key is UserKey.TRAINED:
            users = self.cf.user_vectors(batch.users) if known else self._user_vectors(batch)
            parts.append(self._project(users, self.user_projection))
        elif settings.user_key is UserKey.HISTORY:
            parts.append(self._project(self._means_so_far(batch), self.user_projection))
        if not settings.key_an_item:
            return (parts[0], None) if parts else (None, None)
        if settings.item_key:
            items = self.cf.item_vectors(batch.items.clamp(min=0))
            parts.append(self._project(items, self.item_projection))
        if settings.user_key is UserKey.TRAINED:
            parts[0] = parts[0][:, :, None]
        keyed = batch.rows.segments.gather(1, batch.ends).masked_fill(batch.items < 0, NO_SEGMENT)
        return torch.stack(torch.broadcast_tensors(*parts)).sum(0), keyed

    def _means_so_far(self, batch: SequenceBatch) -> Tensor:
        """The mean CF vector of the user's items up to each item of a row: ``(batch, n, cf width)``.

        It covers the newest items in the batch's histories, which are more than the row holds.
        """
        assert self.cf is not None
        known, n = batch.histories, batch.items.shape[1]
        longest = max(known.shape[1], n)
        known, items = (F.pad(part, (0, longest - part.shape[1]), value=NO_ITEM) for part in (known, batch.items))
        counts, own = (known >= 0).sum(1, keepdim=True), (items >= 0).sum(1, keepdim=True)
        known = torch.where(counts >= own, known, items)
        first = (counts - own).clamp(min=0)
        vectors = self.cf.item_vectors(known.clamp(min=0)).cumsum(1)
        at = (first + torch.arange(n, device=known.device)).clamp(max=longest - 1)
        return gather_tokens(vectors, at) / (at + 1)[..., None]

    def _marks(self, batch: SequenceBatch, kept: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """The vectors added at each item's ``[SEQ]``, and their positions."""
        vectors = self._id_vectors(batch.items.clamp(min=0))
        if vectors is None:
            return None
        vectors = vectors * (batch.items >= 0)[..., None]
        return vectors if kept is None else vectors * kept, batch.ends

    def _id_vectors(self, items: Tensor) -> Tensor | None:
        if self.settings.item_ids is ItemIDs.NONE:
            return None
        if self.settings.trains_item_ids:
            own: Tensor = self.item_ids(items)
            return own
        assert self.cf is not None
        projected: Tensor = self.id_projection(self.cf.item_vectors(items))
        return projected

    @torch.no_grad()
    def start_item_ids(self, vectors: Tensor, generator: torch.Generator) -> None:
        """Initialise the item IDs from other vectors, in a random basis of the language model's width, at its tokens' scale.

        E4SRec (Li et al. 2023, https://arxiv.org/abs/2312.02443) uses an ID encoder's frozen vectors through a trained linear
        map; here they are only the initialisation.

        Shape: vectors ``(items, any width)``.
        """
        basis = torch.empty(vectors.shape[1], self.backbone.width)
        nn.init.orthogonal_(basis, generator=generator)
        turned = vectors.cpu() @ basis
        self.item_ids.weight.copy_(turned * (self.backbone.token_sd / turned.std().clamp(min=1e-6)))

    @torch.no_grad()
    def item_vectors(self) -> Tensor | None:
        """The vectors added at items' ``[SEQ]``: ``(items, width)``; None if nothing is added."""
        return self._id_vectors(torch.arange(self.n_items, device=self.device))

    def states(self, batch: SequenceBatch, layout: Tensor) -> Tensor:
        """The last ``[SEQ]`` state of each row; see `RecommenderModel.states`."""
        (keys, keyed), at = self.row_keys(batch), batch.at_last(batch.ends)[:, None]
        return self.hidden(batch.rows, layout, keys, at, keyed=keyed, marks=self._marks(batch, None)).squeeze(1)

    def scorer(self, item_rows: ItemRows, layout: Tensor) -> Scorer:
        """The item head, which needs no rows of items."""
        return self.logits

    def _user_vectors(self, batch: SequenceBatch) -> Tensor:
        """CF vectors ``(batch, cf width)``: the user's own, or an estimate from the history (`fit_cold_start`)."""
        assert self.cf is not None
        return own_or_estimated(self.cf, self.fold_in, batch.users, batch.histories)

    def fit_cold_start(self, users: Tensor, sequences: Sequence[Tensor]) -> None:
        """Fit the regression that estimates CF vectors from histories, if the model uses them."""
        if self.cf is not None and self.settings.uses_collaborative:
            self.fold_in.copy_(fold_in_matrix(self.cf, users, sequences))

    def item_keys(self, items: Tensor) -> Tensor | None:
        """The collaborative keys of alignment rows; None if ``collab_in_align`` is off."""
        if self.cf is None or not (self.settings.uses_collaborative and self.settings.collab_in_align):
            return None
        return self._project(self.cf.item_vectors(items), self.item_projection)

    def _project(self, vectors: Tensor, projections: nn.ModuleList) -> Tensor:
        if self.settings.collab_stop_grad:
            vectors = vectors.detach()
        return torch.stack([projection(vectors) for projection in projections])

    def sequence_hidden(self, batch: SequenceBatch, layout: Tensor, kept: Tensor | None = None) -> Tensor:
        """Hidden states of the ``[SEQ]`` tokens of training users' rows: ``(batch, n, width)``.

        ``kept``, of the same shape, is a dropout factor of the vectors added there.
        """
        keys, keyed = self.row_keys(batch, known=True)
        return self.hidden(batch.rows, layout, keys, batch.ends, keyed=keyed, marks=self._marks(batch, kept))

    def alignment_hidden(self, rows: Rows, items: Tensor, ends: Tensor, layout: Tensor) -> Tensor:
        """Hidden states of the ``[ALIGN]`` tokens; ends ``(k,)`` -> ``(k, width)``."""
        return self.hidden(rows, layout, self.item_keys(items), ends[:, None]).squeeze(1)

    def logits(self, hidden: Tensor, kept: Tensor | None = None) -> Tensor:
        """Item scores ``(..., items)`` of hidden states ``(..., width)``; one head serves both tasks.

        ``kept``, of the same shape as ``hidden``, is a dropout factor of the head's input.
        """
        if self.settings.head_states is HeadStates.WHITENED:
            hidden = linear(hidden.float() - self.state_mean, self.state_map, None).to(hidden.dtype)
        read = hidden if kept is None else hidden * kept
        scores: Tensor = self.head(read)
        if self.settings.head_text:
            scores = scores + linear(self.text_map(read), self.item_texts, None)
        return scores

    def start_head(self, item_counts: Tensor, text_vectors: Tensor) -> None:
        """Initialise the head as ``head_bias`` and ``head_rows`` specify; shapes as `dasearch.models.base.start_head`."""
        bias, rows = self.settings.head_bias, self.settings.head_rows
        if self.settings.head_states is HeadStates.WHITENED:
            text_vectors = text_vectors @ self.state_map.T
        start_head(self.head, item_counts, text_vectors, bias=bias, rows=rows, sd=HEAD_SD)
        if self.settings.head_text:
            self.item_texts.copy_(centred_directions(text_vectors))


def build_collaborative(
    settings: DARecSettings, n_users: int, n_items: int, generator: torch.Generator
) -> MatrixFactorization | NeuralCollaborativeFiltering:
    """An untrained CF model as the settings specify."""
    if settings.collaborative is CollaborativeKind.MF:
        return MatrixFactorization(n_users, n_items, width=settings.cf_width, generator=generator)
    return NeuralCollaborativeFiltering(
        n_users, n_items, width=settings.cf_width, embedding=settings.ncf_embedding, generator=generator
    )


def _projections(copies: int, inputs: int, outputs: int, generator: torch.Generator) -> nn.ModuleList:
    return nn.ModuleList(new_linear(inputs, outputs, generator) for _ in range(copies))
