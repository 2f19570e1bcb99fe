"""A layout's adapters inside a Hugging Face decoder, for training with any trainer.

The frozen layers remain Hugging Face's own, with their masks, caches and kernels; hooks insert each adapter where the layout
places it. With the context site this is DARec's layer (Liu et al. 2024, sec. 2.3.3), without it a layer of two sites,
``h + place(SA, LN1(h))`` and ``h + place(FFN, LN2(h))``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import transformers
from pydantic import ValidationError
from torch import Tensor, nn

from dasearch.errors import LayoutError, suggestion
from dasearch.layout import (
    NONE,
    SITES,
    Choice,
    Layout,
    ModelKind,
    replaced_layers,
    require_lora_sites,
)
from dasearch.models.adapters import BOTTLENECK, Activation, AdapterInit, ParallelReduce
from dasearch.models.backbone import DecoderBlock, FrozenBackbone, Positions
from dasearch.models.darec import BRANCHES, AdaptedSites, DARecSettings, LayerInputs, RecommendationSite
from dasearch.models.darec import CONTEXT as CONTEXT_PLACE
from dasearch.models.lora import ALPHA, RANK, LoRA, LowRank

CONTEXT = "context"  # the site with its own attention, within each item
TWO_SITES = ("causal", "recommendation")
ADAPTERS = "adapters"  # attribute of a layer: ``layers.0.adapters.causal_adapter.down.weight``
SEGMENTS, KEYS, ROWS = "segment_ids", "collaborative_keys", "dasearch_rows"  # keyword arguments of a forward pass


def apply_layout(
    model: transformers.PreTrainedModel,
    layout: Layout,
    *,
    sites: Sequence[str] | None = None,
    replaced: Sequence[int] | None = None,
    bottleneck: int = BOTTLENECK,
    activation: Activation | str = Activation.RELU,
    adapter_init: AdapterInit | str = AdapterInit.ZERO,
    parallel_reduce: ParallelReduce | str = ParallelReduce.MEAN,
    parallel_residual: bool = True,
    rec_adapter_site: RecommendationSite | str = RecommendationSite.FFN,
    lora_rank: int = RANK,
    lora_alpha: float = ALPHA,
    generator: torch.Generator | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> transformers.PreTrainedModel:
    """Freeze ``model`` and insert the layout's adapters; it is modified in place and returned.

    State dict, devices, dtypes, modes, gradient checkpointing and (with two sites) cached generation work as in Hugging Face;
    `torch.nn.DataParallel` is not supported, use one process per device. A frozen model with dropout applies it in train mode;
    dasearch trains without, as after ``from_pretrained(..., dropout=0.0)``.

    With the context site every forward pass requires ``segment_ids`` ``(batch, tokens)``, the item that each token belongs to and
    -1 for padding on the right, and accepts ``collaborative_keys`` ``(batch, layers or 1, width)``; there is no cache,
    and a `Trainer` needs ``remove_unused_columns=False``.

    Args:
        model: a decoder of a family that dasearch supports, with or without a head.
        layout: a group for each layer with adapters; a letter for each of ``sites``, or for all three.
        sites: DARec's three, or ``("causal", "recommendation")``; None: as many as the layout has.
        replaced: the layers with adapters, counted from 1; None: as evenly spaced as the layout's groups allow.
        bottleneck: units between an adapter's projections.
        activation: nonlinearity between an adapter's projections.
        adapter_init: initialisation of the up-projection.
        parallel_reduce: how a parallel adapter is combined with its sublayer.
        parallel_residual: whether a parallel adapter adds its own input.
        rec_adapter_site: the module that the recommendation adapter wraps.
        lora_rank: rank of LoRA choices without their own width.
        lora_alpha: scale of LoRA updates times their rank.
        generator: random generator of the initial weights; None: one seeded with 0.
        weights: trained weights by their names in ``model.get_decoder().state_dict()``, all of them.

    Raises:
        LayoutError: if the layout, sites, settings or weights do not match, or the model already has adapters.
        BackboneError: for an unsupported family, or an encoder.

    Examples:
        >>> from transformers import OPTConfig, OPTForCausalLM
        >>> from dasearch import Layout, apply_layout
        >>> sizes = {"hidden_size": 8, "word_embed_proj_dim": 8, "ffn_dim": 16, "num_attention_heads": 2}
        >>> model = OPTForCausalLM(OPTConfig(vocab_size=20, num_hidden_layers=2, **sizes))
        >>> model = apply_layout(model, Layout.parse("SP-PN"), bottleneck=4)
        >>> sum(one.numel() for one in model.parameters() if one.requires_grad)  # 3 of 2 * 8 * 4 + 4 + 8 each
        228
    """
    settings = _settings(
        bottleneck=bottleneck,
        activation=activation,
        adapter_init=adapter_init,
        parallel_reduce=parallel_reduce,
        parallel_residual=parallel_residual,
        rec_adapter_site=rec_adapter_site,
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
    )
    sites = chosen_sites(layout, sites)
    context = CONTEXT in sites
    was_training = model.training
    blocks = FrozenBackbone(model.base_model, name=model.config.name_or_path).decoder_blocks
    if any(hasattr(block.layer, ADAPTERS) for block in blocks):
        raise LayoutError("the model has adapters already; load it again and apply one layout")
    places = _places(layout, len(blocks), replaced)
    model.requires_grad_(False).train(was_training)
    generator = generator or torch.Generator().manual_seed(0)
    for index, (place, choices) in enumerate(zip(places, three_site_choices(layout, sites), strict=True)):
        block, width = blocks[place], model.config.hidden_size
        _insert(block, AdapterHooks(block, settings, width, generator, choices=choices, adapted_index=index))
    if context:
        model.get_decoder().register_forward_pre_hook(_read_rows, with_kwargs=True)
    if weights is not None:
        _load(model.get_decoder(), weights)
    return model


class AdapterHooks(AdaptedSites):
    """The adapters of one layer at the layout's placements, called by hooks of the frozen layer.

    Args:
        block: the frozen layer.
        settings: the adapters' settings.
        width: width of the language model.
        generator: random generator of the initial weights.
        choices: choices of DARec's three sites; None for an omitted site.
        adapted_index: index of this layer among the adapted ones, from 0.
    """

    layout: Tensor

    def __init__(
        self,
        block: DecoderBlock,
        settings: DARecSettings,
        width: int,
        generator: torch.Generator,
        *,
        choices: Sequence[Choice | None],
        adapted_index: int,
    ) -> None:
        super().__init__(settings, width, generator, choices=choices)
        ranks = {
            site: choice.width or settings.lora_rank
            for site, choice in zip(BRANCHES, choices, strict=False)
            if choice is not None and choice.lora
        }
        for site, rank in ranks.items():
            self.lora[site] = LoRA(block, width, rank=rank, alpha=settings.lora_alpha, generator=generator)
        self.adapted_index = adapted_index
        self.ffn_input: Tensor | None = None  # passed between the hooks of one forward pass
        self.within_items = False  # set while the context branch projects, which must not get the causal branch's LoRA
        self.register_buffer("layout", _numbers(choices), persistent=False)


def chosen_sites(layout: Layout, sites: Sequence[str] | None) -> tuple[str, ...]:
    """The sites to insert, in DARec's order.

    Raises:
        LayoutError: for sites of another model, or a combination of sites that forms no layer.
    """
    three = SITES[ModelKind.DAREC]
    chosen = tuple(sites) if sites is not None else (TWO_SITES if layout.sites == len(TWO_SITES) else three)
    for site in chosen:
        for kind in (ModelKind.IDLE, ModelKind.RA_REC):
            if site in SITES[kind]:
                raise LayoutError(
                    f"site {site!r} is of {kind}, whose prefixes are made of ID vectors and are no adapters; "
                    "use `dasearch export --format hf` or torch"
                )
        if site not in three:
            raise LayoutError(f"there is no site {site!r}{suggestion(site, list(three))}; choose {', '.join(three)}")
    ordered = tuple(site for site in three if site in chosen)
    if ordered not in (three, TWO_SITES):
        raise LayoutError(
            f"sites {', '.join(chosen)} make no layer; choose {', '.join(three)} or {', '.join(TWO_SITES)}"
        )
    if layout.sites not in (len(three), len(ordered)):
        raise LayoutError(
            f"the layout {layout} has {layout.sites} sites a layer; give {len(ordered)}, for {', '.join(ordered)}"
        )
    require_lora_sites(layout, three if layout.sites == len(three) else ordered)
    return ordered


def three_site_choices(layout: Layout, sites: Sequence[str]) -> tuple[tuple[Choice | None, ...], ...]:
    """Each layer's choices at DARec's three sites; None for an omitted site."""
    three = SITES[ModelKind.DAREC]
    written = three if layout.sites == len(three) else sites
    by_name = [dict(zip(written, group, strict=True)) for group in layout.groups]
    return tuple(tuple(group[site] if site in sites else None for site in three) for group in by_name)


def _numbers(choices: Sequence[Choice | None]) -> Tensor:
    """The layout's numbers: ``(3, 3)``, or ``(3, 5)`` with LoRA; all units are in use, as adapters are built to their width."""
    return Layout((tuple(replace(choice or NONE, width=None) for choice in choices),)).tensor()[0]


def _settings(**choices: Any) -> DARecSettings:
    try:
        return DARecSettings.model_validate(choices)
    except ValidationError as error:
        first = error.errors()[0]
        reason = first["msg"][0].lower() + first["msg"][1:]
        raise LayoutError(f"{first['loc'][0]}={first['input']!r} is no choice: {reason}") from None


def _places(layout: Layout, layers: int, replaced: Sequence[int] | None) -> tuple[int, ...]:
    """Indices of the layers with adapters, from 0."""
    if replaced is None:
        if layers % layout.layers:
            raise LayoutError(
                f"the layout {layout} has {layout.layers} groups, which the model's {layers} layers cannot share evenly; "
                "name the layers with replaced="
            )
        return replaced_layers(layers, layers // layout.layers)
    rising = sorted(set(replaced))
    if list(replaced) != rising or len(rising) != layout.layers or not 1 <= rising[0] <= rising[-1] <= layers:
        raise LayoutError(
            f"replaced={list(replaced)} must name {layout.layers} layers, one for each group of {layout}, "
            f"in rising order from 1 to {layers}"
        )
    return tuple(layer - 1 for layer in rising)


def _insert(block: DecoderBlock, places: AdapterHooks) -> None:
    """Attach the adapters to the layer, on its device and in its dtype."""
    like = next(block.layer.parameters())
    block.layer.add_module(ADAPTERS, places.to(device=like.device, dtype=like.dtype))
    block.attention.register_forward_hook(partial(_after_attention, places, block), with_kwargs=True)
    if "causal" in places.lora:
        lora: Any = places.lora["causal"]
        for projection, part in (
            (block.layer.self_attn.q_proj, lora.queries),
            (block.layer.self_attn.v_proj, lora.values),
        ):
            projection.register_forward_hook(partial(_after_projection, places, part))
    first, last = block.ffn_ends
    first.register_forward_pre_hook(partial(_before_ffn, places))
    last.register_forward_hook(partial(_after_ffn, places))


def _read_rows(decoder: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Compute what all layers of a forward pass share about its rows, once."""
    segments = kwargs.pop(SEGMENTS, None)
    if segments is None:
        raise LayoutError(
            f"the context site attends within items: pass {SEGMENTS}= of shape (batch, tokens), "
            f"or apply the layout with sites={TWO_SITES}"
        )
    return args, {**kwargs, ROWS: LayerInputs(Positions(None, None), segments)}


def _after_projection(
    places: AdapterHooks, update: LowRank, module: nn.Module, args: tuple[Tensor], output: Tensor
) -> Tensor:
    """The causal branch's queries or values with their LoRA update."""
    if places.within_items:
        return output
    lora: Any = places.lora["causal"]
    updated: Tensor = output + update(args[0], lora.scale(places.layout[0]))
    return updated


def _after_attention(
    places: AdapterHooks, block: DecoderBlock, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any
) -> Any:
    normed = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    causal, *others = output
    context = None if places.router is None else _attend_within_items(places, block, normed, kwargs)
    return (places.after_attention(normed, causal, context, places.layout), *others)


def _attend_within_items(
    places: AdapterHooks, block: DecoderBlock, normed: Tensor, kwargs: Mapping[str, Any]
) -> Tensor:
    """The context branch: the frozen attention under the item mask, and on the collaborative key."""
    rows: LayerInputs = kwargs[ROWS]
    if rows.segments.shape != normed.shape[:2]:
        raise LayoutError(
            f"{SEGMENTS} has shape {tuple(rows.segments.shape)} and the row {tuple(normed.shape[:2])}; "
            "give a segment for every token, and pass use_cache=False where tokens come one by one"
        )
    keys, cos_and_sin = kwargs.get(KEYS), kwargs.get("position_embeddings")
    positions = Positions(*(cos_and_sin or (None, None)))
    places.within_items = True
    try:
        key = None if keys is None else block.project_key(keys[:, min(places.adapted_index, keys.shape[1] - 1)])
        projected = block.project(normed, positions)
    finally:
        places.within_items = False
    if CONTEXT in places.lora:
        projected = places.lora[CONTEXT](block, projected, normed, positions, places.layout[CONTEXT_PLACE])
    return block.output(rows.blocks.attend(projected, key))


def _before_ffn(places: AdapterHooks, module: nn.Module, args: tuple[Tensor]) -> None:
    (places.ffn_input,) = args


def _after_ffn(places: AdapterHooks, module: nn.Module, args: Any, output: Tensor) -> Tensor:
    normed, places.ffn_input = places.ffn_input, None
    assert normed is not None
    return places.after_ffn(normed, output, places.layout)


def _load(decoder: nn.Module, weights: Mapping[str, Tensor]) -> None:
    own = {name: tensor for name, tensor in decoder.state_dict().items() if f".{ADAPTERS}." in name}
    unlike = sorted(set(own) ^ set(weights)) or [n for n, t in own.items() if t.shape != weights[n].shape]
    if unlike:
        raise LayoutError(
            f"the weights and the layout disagree on {unlike[0]}; "
            "give the sites, replaced layers and bottleneck that they were trained with"
        )
    decoder.load_state_dict(dict(weights), strict=False)
