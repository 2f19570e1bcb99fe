"""A study's prepared inputs as a folder that other processes open: written once by the driver, named by its sha256.

A bundle contains ``materials.safetensors`` (tokens, `Development`, purchases, vectors, the training task's prepared tensors), the
items' texts, and the frozen model if a worker cannot load it by its name. It contains nothing of the test split, and nothing is
pickled. The paths and the device of the preparation are not part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from torch import Tensor

from dasearch.config import StudySettings, flattened
from dasearch.data import Development, IntArray, RowFormat, Sentences
from dasearch.errors import BundleError
from dasearch.folders import IfExists, put, sha256, unfinished_in
from dasearch.models.backbone import FrozenBackbone
from dasearch.models.pretrained import load_pretrained, opens_by_name, weights_sha256
from dasearch.models.tiny_opt import TINY_OPT
from dasearch.training.catalogue_files import (
    catalogue_dataset,
    read_backbone,
    read_items,
    write_backbone,
    write_items,
)
from dasearch.training.checkpoints import load_tensors, prefixed, save_tensors, under
from dasearch.training.encoders import filled_encoder
from dasearch.training.materials import StudyContext, Tokens, lay_out, resolve_device
from dasearch.training.preparation import TRAINING_TASKS
from dasearch.training.shared import Catalogue, PurchaseIndex, SharedInputs

FORMAT = 1
MATERIALS = "materials.safetensors"
PLACES = {"device", "data.source", "data.items", "encoder.file"}  # settings that may differ between machines


def save_bundle(materials: StudyContext, folder: Path) -> str:
    """Write ``folder/SHA256`` atomically, unless it exists and is undamaged; returns the sha256 of its content.

    The same materials give the same name, whatever the folder, the process or the machine.
    """
    with unfinished_in(folder, "bundle") as unfinished:
        _write(unfinished, materials)
        name = sha256(unfinished)
        place = folder / name
        if not place.is_dir():
            put(unfinished, place, IfExists.KEPT)
        elif sha256(place) != name:
            put(unfinished, place, IfExists.REPLACED)
    return name


def load_bundle(folder: Path, name: str, settings: StudySettings) -> StudyContext:
    """The materials that `save_bundle` wrote under this sha256, on the device of ``settings``.

    Raises:
        BundleError: if the bundle is missing, damaged or was prepared for other settings, or if the backbone of its name has
            other weights here.
        BackboneError: if the backbone is not in the bundle and cannot be loaded by its name.
    """
    place = folder / name
    if not place.is_dir():
        raise BundleError(f"there is no bundle {name} in {folder}; start the study again to build it")
    if sha256(place) != name:
        raise BundleError(f"the bundle {place} is damaged; delete it and start the study again to rebuild it")
    tensors, record = load_tensors(place / MATERIALS)
    _require_fit(settings, record, place)
    return _restored(place, settings, tensors, record)


def _write(folder: Path, materials: StudyContext) -> None:
    catalogue = materials.catalogue
    record = {
        "format": FORMAT,
        "prepared": _prepared(materials.method.settings),
        "dataset": catalogue.dataset_name,
        "row_format": asdict(catalogue.row_format),
        "item_prompt": catalogue.item_rows.opening[len(catalogue.row_format.start) :],
        "n_users": materials.development.n_users,
        "n_items": materials.development.n_items,
        "backbone": _write_backbone(folder, catalogue),
    }
    save_tensors(folder / MATERIALS, _tensors(materials), record)
    write_items(folder, catalogue.items)


def _write_backbone(folder: Path, catalogue: Catalogue) -> dict[str, str | None]:
    """The backbone's name, and the sha256 of its weights if a worker can load it by name; otherwise it is stored."""
    backbone = catalogue.backbone
    if backbone.name != TINY_OPT and opens_by_name(backbone.name):
        return {"name": backbone.name, "weights": weights_sha256(backbone.model)}
    write_backbone(folder, backbone, catalogue.tokenizer)
    return {"name": None, "weights": None}


def _tensors(materials: StudyContext) -> dict[str, Tensor]:
    sentences, development, method = materials.catalogue.sentences, materials.development, materials.method
    lengths = [len(sequence) for sequence in development.train]
    return {
        **prefixed("sentences", {"flat": sentences.flat, "lengths": sentences.lengths}),
        **prefixed("development", {"users": development.users, "valid": development.valid}),
        **prefixed("development", {"train": np.concatenate(development.train), "lengths": np.array(lengths)}),
        "purchases": materials.purchases.keys,
        "item_counts": materials.item_counts,
        "text_vectors": materials.text_vectors,
        **prefixed("encoder", None if method.encoder is None else method.encoder.state_dict()),
        **prefixed("method", method.tensors()),
    }


def _prepared(settings: StudySettings) -> dict[str, Any]:
    """The settings that preparation depends on, by dotted key, except for paths and devices."""
    method = TRAINING_TASKS[settings.model.kind]
    places = {*PLACES, "backbone.name"} if Path(settings.backbone.name).is_dir() else PLACES
    settings_by_key = flattened(settings.model_dump(mode="json"))
    return {key: value for key, value in settings_by_key.items() if method.prepared_by(key) and key not in places}


def _require_fit(settings: StudySettings, record: Mapping[str, Any], place: Path) -> None:
    if record["format"] != FORMAT:
        raise BundleError(
            f"{place} has format {record['format']!r:.40} and this dasearch reads {FORMAT}; install one version"
        )
    own = _prepared(settings)
    for key, value in record["prepared"].items():
        if own.get(key) != value:
            raise BundleError(
                f"{place} was prepared with {key} {value} and the study has {own.get(key)}; prepare it again"
            )


def _restored(
    place: Path, settings: StudySettings, tensors: Mapping[str, Tensor], record: Mapping[str, Any]
) -> StudyContext:
    backbone, tokenizer = _read_backbone(place, settings, record["backbone"])
    device = resolve_device(settings.device)
    shared = SharedInputs(
        lay_out(
            settings,
            catalogue_dataset(record["dataset"], read_items(place)),
            backbone,
            tokenizer,
            _read_tokens(tensors, record),
        ),
        _read_development(under("development", tensors), record["n_users"], record["n_items"]),
        PurchaseIndex.of_keys(tensors["purchases"], record["n_items"]),
        tensors["item_counts"],
        tensors["text_vectors"].to(device),
        device,
    )
    weights = under("encoder", tensors)
    encoder = filled_encoder(settings.encoder, shared, weights) if weights else None
    method = TRAINING_TASKS[settings.model.kind].restored(settings, encoder, under("method", tensors))
    return StudyContext(**vars(shared), method=method)


def _read_backbone(
    place: Path, settings: StudySettings, record: Mapping[str, str | None]
) -> tuple[FrozenBackbone, transformers.PreTrainedTokenizerBase]:
    name, scale = record["name"], settings.model.attn_scale
    if name is None:
        return read_backbone(place, settings.backbone.name, scale)
    model, tokenizer = load_pretrained(name, layers=settings.backbone.layers)
    if weights_sha256(model) != record["weights"]:
        raise BundleError(
            f"the backbone {name} has other weights here than where the study was prepared; install the same version of it"
        )
    return FrozenBackbone(model, name=name, scale=scale), tokenizer


def _read_tokens(tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> Tokens:
    sentences = Sentences.of_table(tensors["sentences/flat"].numpy(), tensors["sentences/lengths"].numpy())
    row_format = record["row_format"]
    return Tokens(
        sentences, RowFormat(**{**row_format, "prompt": tuple(row_format["prompt"])}), tuple(record["item_prompt"])
    )


def _read_development(tensors: Mapping[str, Tensor], n_users: int, n_items: int) -> Development:
    parts: dict[str, IntArray] = {name: tensor.numpy() for name, tensor in tensors.items()}
    train = tuple(np.split(parts["train"], np.cumsum(parts["lengths"])[:-1]))
    return Development(parts["users"], train, parts["valid"], n_users, n_items)
