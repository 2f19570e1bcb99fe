"""A trained DARec model as adapters by name and other trained parts, to be inserted into its frozen backbone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from dasearch.errors import ExportError, LayoutError
from dasearch.export.layout import write_layout_file
from dasearch.export.plain import require_repeatable, whole_head
from dasearch.export.pytorch import write_tokenizer
from dasearch.layout import SITES, Layout, ModelKind
from dasearch.models.backbone import AttentionScale
from dasearch.models.darec import DARec, DARecSettings, ItemIDs, Variation
from dasearch.models.insertion import ADAPTERS, CONTEXT, TWO_SITES, chosen_sites, three_site_choices
from dasearch.training.checkpoints import copied
from dasearch.training.recommender import Recommender

BACKBONE_FOLDER = "backbone"
ADAPTERS_NAME = "adapters.safetensors"
PARTS_NAME = "recommender.safetensors"
ITEMS_NAME, USERS_NAME = "items.json", "users.json"  # ids, in the order of the head's rows and of the keys
USER_KEYS = "user_keys"


class AdapterWeights(NamedTuple):
    """A trained layout as `dasearch.models.insertion.apply_layout` inserts it.

    Attributes:
        layout: a letter for each of ``sites``.
        replaced: the layers that carry adapters, counted from 1.
        adapters: trained tensors by their names in the frozen decoder's state dict.
        parts: the rows of ``[SEQ]`` and ``[ALIGN]``, the item head, and with the context site the collaborative key of
            every user of the training data, ``user_keys (users, projections, width)``.
    """

    settings: DARecSettings
    layout: Layout
    sites: tuple[str, ...]
    replaced: tuple[int, ...]
    adapters: dict[str, Tensor]
    parts: dict[str, Tensor]


def adapter_weights(recommender: Recommender, form: str, wanted: Sequence[str] | None) -> AdapterWeights:
    """The adapters of the ``wanted`` sites (None: all).

    Raises:
        ExportError: for a model without adapters, or a setting that a frozen Hugging Face model cannot have.
    """
    model, settings = recommender.model, recommender.settings.model
    if not (isinstance(model, DARec) and isinstance(settings, DARecSettings)):
        raise ExportError(
            f"{settings.kind} reads vectors of an ID encoder, and --format {form} writes adapters of a model that reads tokens "
            "alone; use --format hf or torch"
        )
    have = TWO_SITES if settings.variation is Variation.BASE else SITES[ModelKind.DAREC]
    sites = _sites(recommender.layout, have, wanted)
    _refuse(settings, sites, form)
    layers = three_site_choices(recommender.layout, sites)
    layout = Layout(tuple(tuple(choice for choice in choices if choice is not None) for choices in layers))
    replaced = tuple(layer + 1 for layer in model.replaced)
    users = len(recommender.users) if CONTEXT in sites else 0
    return AdapterWeights(settings, layout, sites, replaced, _adapters(recommender, model, sites), _parts(model, users))


def _sites(layout: Layout, have: tuple[str, ...], wanted: Sequence[str] | None) -> tuple[str, ...]:
    try:
        sites = chosen_sites(layout, have if wanted is None else wanted)
    except LayoutError as error:
        raise ExportError(str(error)) from None
    if not set(sites) <= set(have):
        raise ExportError(f"the model has no site {CONTEXT}; choose {', '.join(have)}")
    return sites


def _refuse(settings: DARecSettings, sites: tuple[str, ...], form: str) -> None:
    """Reject settings that change the frozen attention, or leave nothing to insert."""
    require_repeatable(settings)
    refused = {
        "model.variation=llmrec has no adapters": settings.variation is Variation.LLMREC,
        "model.attn_scale=model changes the frozen attention": settings.attn_scale is AttentionScale.MODEL,
        f"model.item_ids={settings.item_ids} adds vectors to the token embeddings": settings.item_ids
        is not ItemIDs.NONE,
        "model.encoder_scores adds the scores of an ID encoder": settings.encoder_scores > 0,
        "a key for each item (model.item_key, model.user_key=history) is not an input of the context branch": (
            settings.key_an_item and settings.uses_collaborative and CONTEXT in sites
        ),
        "the context branch of model.variation=both-causal has a causal mask": (
            settings.variation is Variation.BOTH_CAUSAL and CONTEXT in sites
        ),
    }
    for reason, holds in refused.items():
        if holds:
            raise ExportError(f"{reason}, which --format {form} cannot express; use --format hf or torch")


def _adapters(recommender: Recommender, model: DARec, sites: tuple[str, ...]) -> dict[str, Tensor]:
    """The sites' adapters and LoRA, and the router where there is a context branch."""
    wanted = {f"{site}_adapter" for site in sites} | ({"router"} if CONTEXT in sites else set())
    wanted |= {f"lora.{site}" for site in sites}
    adapters = {}
    for name, tensor in model.active_tensors(recommender.layout).items():
        name = name.replace("attention_adapter", "causal_adapter")  # its name in darec-base
        top, place, rest = name.split(".", 2) if name.startswith("layers.") else ("", "", "")
        if rest.startswith(tuple(f"{part}." for part in wanted)):
            adapters[f"{top}.{place}.{ADAPTERS}.{rest}"] = tensor
    return adapters


@torch.no_grad()
def _parts(model: DARec, users: int) -> dict[str, Tensor]:
    head = whole_head(model)
    parts = {"special": model.special, "head.weight": head.weight, "head.bias": head.bias}
    keys = model.user_keys(torch.arange(users)) if users else None
    return parts if keys is None else {**parts, USER_KEYS: keys.transpose(0, 1)}


def write_model_files(recommender: Recommender, found: AdapterWeights, folder: Path) -> None:
    """``layout.json`` of the whole model, the frozen backbone, the other trained parts, and the ids of their rows."""
    write_layout_file(recommender, folder)
    recommender.model.backbone.model.save_pretrained(folder / BACKBONE_FOLDER)
    write_tokenizer(recommender, folder / BACKBONE_FOLDER)
    save_file(copied(found.parts), folder / PARTS_NAME)
    rows = {ITEMS_NAME: [item.identifier for item in recommender.items]}
    if USER_KEYS in found.parts:
        rows[USERS_NAME] = list(recommender.users)
    for name, identifiers in rows.items():
        (folder / name).write_text(json.dumps(identifiers, ensure_ascii=False) + "\n", encoding="utf-8")


def row_in_words(recommender: Recommender) -> str:
    """The format of a token row, as a phrase."""
    form = recommender.catalogue.row_format
    opening = "".join(f"token {token}, " for token in form.opening)
    return f"{opening}then each item's sentence and [SEQ], token {form.seq_token}; [ALIGN] is token {form.align_token}"
