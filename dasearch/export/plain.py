"""A trained recommender rewritten in plain PyTorch: its sizes, its tensors under plain names, and the code that reads them.

The code is one file rendered from ``templates/``, with only what this model needs. The formats ``torch``, ``hf``,
``onnx`` and ``pt2`` are all based on it; tests open each and compare its scores with the original model's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import transformers
from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor, nn

from dasearch.errors import ExportError
from dasearch.layout import Join, Layout, ModelKind
from dasearch.models.adapters import Activation, AdapterSettings, ParallelReduce
from dasearch.models.attention import MaskMode
from dasearch.models.backbone import FrozenBackbone
from dasearch.models.darec import (
    ADAPTERS,
    CONTEXT,
    CollabProjection,
    DARec,
    DARecSettings,
    HeadStates,
    ItemIDs,
    RecommendationSite,
    UserKey,
)
from dasearch.models.e4s_rec import E4SRec
from dasearch.models.id_encoders import ENCODERS, FactorEncoder, IDEncoder
from dasearch.models.id_encoders.comirec import ROUNDS
from dasearch.models.idle import IDLEAdapter, TextHead
from dasearch.models.prefix import Prefix, PrefixModel, Refine
from dasearch.models.ra_rec import RARec
from dasearch.training.recommender import Recommender

FUNCTIONS = {  # activations of frozen feed-forward parts, as the generated code calls them
    "relu": "F.relu",
    "gelu": "F.gelu",
    "silu": "F.silu",
    "swish": "F.silu",
    "gelu_pytorch_tanh": 'partial(F.gelu, approximate="tanh")',
}
ADAPTER_FUNCTIONS = {Activation.RELU: "F.relu", Activation.GELU: "F.gelu", Activation.NONE: ""}
STATIC_ROTARY = ("default", "linear", "llama3", "yarn")  # those whose angles do not depend on a row's length
OPT_OFFSET = 2  # rows of OPT's position table that are not positions
LONG_ROWS = (
    "a row holds up to {0} items and a request {1}, so the generated code cannot match vectors to items; "
    "train with --set data.max_items={1}"
)
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Part:
    """A part of the generated model: sizes (``config.json``), tensors by name, and the choices that select its code."""

    config: dict[str, Any]
    tensors: Tensors
    choices: dict[str, Any]

    def __add__(self, other: Part) -> Part:
        return Part(
            {**self.config, **other.config}, {**self.tensors, **other.tensors}, {**self.choices, **other.choices}
        )


def plain(recommender: Recommender) -> Part:
    """All of a recommender; ``choices`` are what `code` is rendered with.

    Raises:
        ExportError: for a backbone or setting that the generated code does not support.
    """
    return _backbone(recommender.model.backbone) + _rows(recommender) + KINDS[recommender.model.kind](recommender)


def catalogue(recommender: Recommender) -> dict[str, Any]:
    """``catalogue.json``: items with ids, titles and tokens, in score order; known users, in row order."""
    sentences = recommender.catalogue.row_sentences
    items = [
        {"id": item.identifier, "title": item.attributes.get("title", ""), "tokens": sentences.of(place).tolist()}
        for place, item in enumerate(recommender.items)
    ]
    return {"items": items, "users": list(recommender.users)}


def code(choices: Mapping[str, Any], template: str = "recommender.py.jinja", **more: Any) -> str:
    """The Python source for a model's choices."""
    environment = Environment(
        loader=PackageLoader("dasearch.export"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # its output is Python, not HTML
    )
    text = environment.get_template(template).render(**choices, **more)
    return re.sub(r"\n+((?:@\S+\n)?(?:class |def |if __name__))", r"\n\n\n\1", text).strip() + "\n"


# --- the frozen model -------------------------------------------------------------------------------------------------


def _backbone(backbone: FrozenBackbone) -> Part:
    config = backbone.config
    block = backbone.all_blocks[0]
    sizes = {
        "vocabulary": backbone.vocabulary,
        "width": backbone.width,
        "layers": len(backbone.blocks),
        "heads": block.heads,
        "head_width": block.head_width,
        "scale": block.scale,
    }
    part = FAMILIES[config.model_type](backbone.model)
    return Part(sizes, {}, {"causal": backbone.causal}) + part


def _opt(model: transformers.PreTrainedModel) -> Part:
    config, decoder = model.config, model.decoder
    tensors = {
        "embedding.tokens.weight": decoder.embed_tokens.weight,
        "embedding.places.weight": decoder.embed_positions.weight[OPT_OFFSET:],
        **_renamed("norm", decoder.final_layer_norm or nn.Identity()),
    }
    names = {"norm1": "self_attn_layer_norm", "norm2": "final_layer_norm", "up": "fc1", "down": "fc2"}
    names |= {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.out_proj"}
    sizes = {
        "ffn": config.ffn_dim,
        "bias": config.enable_bias,
        "norm_affine": config.layer_norm_elementwise_affine,
        "final_norm": decoder.final_layer_norm is not None,
    }
    choices = {"family": "opt", "activation": _function(config.activation_function)}
    return Part(sizes, {**tensors, **_layers(decoder.layers, names)}, choices)


def _llama(model: transformers.PreTrainedModel) -> Part:
    config, rotary = model.config, model.rotary_emb
    if rotary.rope_type not in STATIC_ROTARY:
        raise ExportError(
            f"rotary positions of kind {rotary.rope_type!r} depend on a row's length, which the generated code does "
            f"not support; export a backbone with one of {', '.join(STATIC_ROTARY)}"
        )
    tensors = {
        "embedding.tokens.weight": model.embed_tokens.weight,
        "embedding.frequencies": rotary.inv_freq,
        "norm.weight": model.norm.weight,
    }
    first = model.layers[0]
    names = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"}
    names |= {name: f"self_attn.{name}_proj" for name in "qkvo"}
    names |= {name: f"mlp.{name}_proj" for name in ("gate", "up", "down")}
    sizes = {
        "ffn": config.intermediate_size,
        "key_heads": config.num_key_value_heads,
        "bias": first.self_attn.q_proj.bias is not None,
        "out_bias": first.self_attn.o_proj.bias is not None,
        "ffn_bias": first.mlp.up_proj.bias is not None,
        "eps": config.rms_norm_eps,
        "rotary_scale": float(rotary.attention_scaling),
    }
    grouped = config.num_key_value_heads < config.num_attention_heads
    choices = {"family": "llama", "activation": _function(config.hidden_act), "grouped": grouped}
    return Part(sizes, {**tensors, **_layers(model.layers, names)}, choices)


def _bert(model: transformers.PreTrainedModel) -> Part:
    config, embeddings = model.config, model.embeddings
    tensors = {
        "embedding.tokens.weight": embeddings.word_embeddings.weight,
        "embedding.places.weight": embeddings.position_embeddings.weight,
        "embedding.kind": embeddings.token_type_embeddings.weight[0],
        **_renamed("embedding.norm", embeddings.LayerNorm),
    }
    names = {"q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value"}
    names |= {"o": "attention.output.dense", "attention_norm": "attention.output.LayerNorm"}
    names |= {"up": "intermediate.dense", "down": "output.dense", "output_norm": "output.LayerNorm"}
    sizes = {"ffn": config.intermediate_size, "eps": config.layer_norm_eps}
    choices = {"family": "bert", "activation": _function(config.hidden_act)}
    return Part(sizes, {**tensors, **_layers(model.encoder.layer, names)}, choices)


FAMILIES: dict[str, Callable[[transformers.PreTrainedModel], Part]] = {
    "opt": _opt,
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _llama,
    "bert": _bert,
}


def _function(name: str) -> str:
    if name not in FUNCTIONS:
        raise ExportError(
            f"the backbone's activation {name!r} is not one that the generated code supports "
            f"({', '.join(FUNCTIONS)}); export `--format layout` and build the model in your own code"
        )
    return FUNCTIONS[name]


def _layers(layers: nn.ModuleList, names: Mapping[str, str]) -> Tensors:
    """Tensors of Hugging Face layers under plain names."""
    return {
        key: tensor
        for index, layer in enumerate(layers)
        for name, theirs in names.items()
        for key, tensor in _renamed(f"layers.{index}.{name}", layer.get_submodule(theirs)).items()
    }


def _renamed(name: str, module: nn.Module) -> Tensors:
    return {f"{name}.{key}": tensor for key, tensor in module.state_dict().items()}


# --- the models -------------------------------------------------------------------------------------------------------


def _rows(recommender: Recommender) -> Part:
    """How token rows are built, and the size of the scores."""
    rows, model = recommender.catalogue.row_format, recommender.model
    sizes = {
        "model": recommender.settings.model.label,
        "layout": str(recommender.layout),
        "adapted_layers": list(model.replaced),
        "n_items": len(recommender.items),
        "n_users": len(recommender.users),
        "opening": rows.opening,
        "seq_token": rows.seq_token,
        "pad_token": rows.pad_token,
        "max_items": rows.max_items,
        "max_tokens": rows.max_tokens,
        "history_items": rows.history_items,
    }
    choices = {"kind": model.kind.value, "encoder": None, "has_start": rows.start_token is not None}
    return Part(sizes, {}, {**choices, "ids": False, "loras": False})


def _darec(recommender: Recommender) -> Part:
    model = cast(DARec, recommender.model)
    settings, layout = model.settings, recommender.layout
    require_repeatable(settings)
    adapters, sizes = _adapter_words(settings, layout)
    keys, two_branches = _key_words(settings, layout), settings.uses_collaborative
    if keys["keys"] == "item" or settings.item_ids is not ItemIDs.NONE:
        _require_short_rows(recommender)
    tokens = torch.cat([model.backbone.embed(torch.arange(model.backbone.vocabulary)), model.special])
    choices = {
        "variation": settings.variation.value,
        "two_branches": two_branches,
        "ids": settings.item_ids is not ItemIDs.NONE,
        **keys,
        **adapters,
        "loras": two_branches and layout.has_lora,
        "recommends_ffn": settings.rec_adapter_site is RecommendationSite.FFN,
        "key_a_layer": settings.collab_proj is CollabProjection.PER_LAYER,
    }
    ids = model.item_vectors()
    tensors = {
        "embedding.tokens.weight": tokens,
        **_renamed("head", whole_head(model)),
        **_adapters(model, layout),
        **({} if ids is None else {"ids.weight": ids}),
    }
    part = Part({**sizes, "vocabulary": len(tokens)}, tensors, choices) + _collaborative_keys(model, keys)
    return part if model.encoder is None else part + _encoder(recommender, model.encoder, ["scores"])


def _key_words(settings: DARecSettings, layout: Layout) -> dict[str, Any]:
    """The choices that select the code of collaborative keys: the vectors they come from, and whether an item has its own."""
    seen = settings.uses_collaborative and layout.active_layers(CONTEXT) > 0
    user_key = settings.user_key.value if seen and settings.user_key is not UserKey.NONE else ""
    item_key = seen and settings.item_key
    keys = ("item" if settings.key_an_item else "row") if user_key or item_key else ""
    return {"keys": keys, "user_key": user_key, "item_key": item_key}


def _require_short_rows(recommender: Recommender) -> None:
    """Reject rows of more items than a history, for models that read a vector of every item."""
    rows = recommender.catalogue.row_format
    if rows.max_items > rows.history_items:
        raise ExportError(LONG_ROWS.format(rows.max_items, rows.history_items))


def _collaborative_keys(model: DARec, words: Mapping[str, Any]) -> Part:
    """Sizes and tensors of the keys that `_key_words` describes."""
    if model.cf is None or not words["keys"]:
        return Part({}, {}, {})
    tensors: Tensors = {"items.weight": model.cf.items.weight}
    if words["user_key"]:
        tensors |= _renamed("to_key", model.user_projection)
    if words["user_key"] == UserKey.TRAINED:
        tensors |= {"users.weight": model.cf.users.weight, **_fold_in("fold_in", model.fold_in)}
    if words["item_key"]:
        tensors |= _renamed("to_item_key", model.item_projection)
    return Part({"cf_width": model.cf.width}, tensors, {})


@torch.no_grad()
def whole_head(model: DARec) -> nn.Linear:
    """The head as one linear map of the states, with their whitening and the items' texts in it."""
    weight, bias = model.head.weight.double(), model.head.bias.double()
    if model.settings.head_text:
        weight = weight + model.item_texts.double() @ model.text_map.weight.double()
    if model.settings.head_states is HeadStates.WHITENED:
        weight = weight @ model.state_map.double()
        bias = bias - weight @ model.state_mean.double()
    head = nn.Linear(model.head.in_features, model.head.out_features, device=model.device)
    head.weight.copy_(weight)
    head.bias.copy_(bias)
    return head


def require_repeatable(settings: DARecSettings) -> None:
    """Reject a model whose scores depend on the rest of the batch."""
    if settings.mask_mode is MaskMode.POST_SOFTMAX:
        raise ExportError(
            "model.mask_mode=post_softmax lets a row's padding, and so its batch, change its scores, which no export can "
            "repeat; train with --set model.mask_mode=additive"
        )


def _adapter_words(settings: AdapterSettings, layout: Layout) -> tuple[dict[str, Any], dict[str, Any]]:
    """The choices that select the code of adapters and their placement, and their entries in ``config.json``."""
    words = {
        "adapter_activation": ADAPTER_FUNCTIONS[settings.activation],
        "nones": any(not choice.adapts for choice in layout.choices),
        "sums": any(choice.join is Join.SUM for choice in layout.choices),
        "parallel_mean": settings.parallel_reduce is ParallelReduce.MEAN,
        "parallel_residual": settings.parallel_residual,
    }
    sizes = {"bottleneck": settings.bottleneck, "adapter_choices": _choices_of_letters(layout, settings)}
    return words, sizes | ({"lora_alpha": settings.lora_alpha} if layout.has_lora else {})


def _adapters(model: DARec | E4SRec, layout: Layout) -> Tensors:
    """Adapters, LoRA and routers of all layers, named without the suffix ``_adapter``."""
    names = {"attention_adapter", "ffn_adapter", "router", "lora", *ADAPTERS}
    return {
        name.replace("ffn_adapter", "ffn_update").replace("_adapter", "").replace("router.gate", "router"): tensor
        for name, tensor in model.active_tensors(layout).items()
        if name.startswith("layers.") and name.split(".")[2] in names
    }


def _choices_of_letters(layout: Layout, settings: AdapterSettings) -> dict[str, dict[str, Any]]:
    """The meaning of each letter of the layout."""
    choices = {}
    for choice in layout.choices:
        record = choice.record()
        del record["letter"]
        choices[choice.letter] = record | {"width": choice.width or settings.most(choice)}
    return choices


def _e4s_rec(recommender: Recommender) -> Part:
    """E4SRec as DARec with two sites per layer and item vectors in place of sentences."""
    model = cast(E4SRec, recommender.model)
    settings = model.settings
    _require_short_rows(recommender)
    of_adapters, sizes = _adapter_words(settings, recommender.layout)
    tokens = model.backbone.embed(torch.arange(model.backbone.vocabulary))
    tensors = {
        "embedding.tokens.weight": torch.cat([tokens, tokens.new_zeros(1, tokens.shape[1])]),
        "ids.weight": model.vectors(torch.arange(len(recommender.items), device=model.device)),
        **_renamed("head", model.head),
        **_adapters(model, recommender.layout),
    }
    choices = {
        **of_adapters,
        "kind": "darec",
        "variation": "e4s-rec" if settings.searchable else "llmrec",
        "two_branches": False,
        "loras": recommender.layout.has_lora,
        "ids": True,
        "keys": "",
        "user_key": "",
        "item_key": False,
        "recommends_ffn": True,
        "key_a_layer": False,
    }
    part = Part({**sizes, "vocabulary": len(tensors["embedding.tokens.weight"])}, tensors, choices)
    return part + _encoder(recommender, model.encoder, ["scores"] if settings.encoder_scores else [])


def _prefixed(recommender: Recommender, refine: Refine) -> Part:
    """Shared by IDLE-Adapter and RA-Rec: computing and reading prefixes, and pooling a row into one state."""
    model = cast(PrefixModel, recommender.model)
    settings = model.settings
    gives = {"ids": settings.searchable, "scores": settings.encoder_scores > 0}
    choices = {
        "injects": settings.searchable,
        "refine": refine.value,
        "pool": settings.pool.of(causal=model.backbone.causal).value,
        "parallel_mean": settings.parallel_reduce is ParallelReduce.MEAN,
    }
    part = Part({"prefix": settings.prefix}, {}, choices)
    return part + _encoder(recommender, model.encoder, [name for name, given in gives.items() if given])


def _encoder(recommender: Recommender, encoder: IDEncoder, gives: list[str]) -> Part:
    """The ID encoder, where it is used: its vectors for the language model, and its scores."""
    if not gives:
        return Part({}, {}, {"encoder_gives": gives})
    settings = recommender.settings.encoder
    sizes = {
        "id_width": encoder.width,
        "id_layers": settings.layers,
        "id_heads": settings.heads,
        "interests": settings.interests,
        "encoder_scores": recommender.settings.model.encoder_scores,
    }
    if isinstance(encoder, FactorEncoder):
        tables = {"items.weight": encoder.model.items.weight, "users.weight": encoder.model.users.weight}
        tensors = {**tables, **_fold_in("fold_in", encoder.fold_in)}
    else:
        tensors = encoder.state_dict()
    if "texts" in tensors:
        sizes["text_width"] = tensors["texts"].shape[1]
    choices = {
        "encoder": settings.name,
        "encoder_gives": gives,
        "encoder_title": ENCODERS[settings.name].title,
        "id_pool": settings.pool.value,
        "routing_rounds": ROUNDS,
    }
    return Part(sizes, {f"encoder.{name}": tensor for name, tensor in tensors.items()}, choices)


def _prefixes(name: str, prefixes: nn.ModuleList) -> Tensors:
    """Prefixes of adapted layers; a shared projection is written once per layer."""
    return {
        key: tensor
        for index, prefix in enumerate(cast("list[Prefix]", list(prefixes)))
        for key, tensor in _renamed(f"{name}.{index}", prefix).items()
    }


def _idle(recommender: Recommender) -> Part:
    model = cast(IDLEAdapter, recommender.model)
    tensors = {**_prefixes("prefixes", model.prefixes), **_renamed("head", model.head)}
    return _prefixed(recommender, model.settings.refine) + Part(
        {}, tensors, {"text_head": isinstance(model.head, TextHead)}
    )


def _ra_rec(recommender: Recommender) -> Part:
    model = cast(RARec, recommender.model)
    rows = recommender.catalogue.item_rows
    tensors = {
        "item_bias": model.item_bias,
        "item_states": _catalogue_states(recommender, model),
        **_prefixes("user_prefixes", model.user_tower.prefixes),
        **_prefixes("item_prefixes", model.item_tower.prefixes),
    }
    sizes = {"item_opening": rows.opening, "align_token": recommender.catalogue.row_format.align_token}
    refine = Refine.CONCAT if model.settings.instruction else Refine.NONE
    return _prefixed(recommender, refine) + Part(sizes, tensors, {})


@torch.inference_mode()
def _catalogue_states(recommender: Recommender, model: RARec) -> Tensor:
    return model.catalogue_states(recommender.catalogue.item_rows, model.layout_tensor(recommender.layout))


def _fold_in(name: str, matrix: Tensor) -> Tensors:
    """``[mean, 1] @ matrix`` as a linear map."""
    return {f"{name}.weight": matrix[:-1].T, f"{name}.bias": matrix[-1]}


KINDS: dict[ModelKind, Callable[[Recommender], Part]] = {
    ModelKind.DAREC: _darec,
    ModelKind.IDLE: _idle,
    ModelKind.RA_REC: _ra_rec,
    ModelKind.E4S_REC: _e4s_rec,
}
