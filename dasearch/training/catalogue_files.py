"""A catalogue as files: the frozen model with its tokenizer, and the items.

A trained recommender's folder and a study's bundle use the same format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import transformers
from torch import Tensor

from dasearch.data import Dataset, Item
from dasearch.models.backbone import AttentionScale, FrozenBackbone
from dasearch.models.pretrained import without_bars

CATALOGUE = "catalogue.jsonl"
BACKBONE = "backbone"
TOKENIZER_CONFIG = "tokenizer_config.json"
FOUND_BY = ("is_local", "local_files_only")  # how a tokenizer was loaded, which differs between processes


def write_backbone(
    folder: Path,
    backbone: FrozenBackbone,
    tokenizer: transformers.PreTrainedTokenizerBase,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Save model and tokenizer in Hugging Face's format in ``backbone/``; the same model gives the same bytes.

    ``weights`` are the model's, by name, if this process does not hold them all.
    """
    backbone.model.save_pretrained(folder / BACKBONE, state_dict=weights)
    tokenizer.save_pretrained(folder / BACKBONE)
    path = folder / BACKBONE / TOKENIZER_CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    kept = {name: value for name, value in config.items() if name not in FOUND_BY}
    path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_backbone(
    folder: Path, name: str, scale: AttentionScale
) -> tuple[FrozenBackbone, transformers.PreTrainedTokenizerBase]:
    """What `write_backbone` wrote."""
    with without_bars():
        model = transformers.AutoModel.from_pretrained(folder / BACKBONE, use_safetensors=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / BACKBONE)
    return FrozenBackbone(model, name=name, scale=scale), tokenizer


def write_items(folder: Path, items: Sequence[Item]) -> None:
    """Write ``catalogue.jsonl``, one item per line."""
    lines = [json.dumps({"item_id": i.identifier, "attributes": dict(i.attributes)}, ensure_ascii=False) for i in items]
    (folder / CATALOGUE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_items(folder: Path) -> tuple[Item, ...]:
    """Load what `write_items` wrote."""
    lines = (folder / CATALOGUE).read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return tuple(Item(record["item_id"], record["attributes"]) for record in records)


def catalogue_dataset(name: str, items: tuple[Item, ...]) -> Dataset:
    """A data set with items only, without interactions."""
    return Dataset(name=name, users=(), items=items, sequences=(), timestamps=())
