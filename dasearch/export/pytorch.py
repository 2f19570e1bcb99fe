"""``torch``: one file of plain PyTorch, its sizes, its weights, and the catalogue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from dasearch import __version__
from dasearch.export.layout import write_layout_file
from dasearch.export.options import ExportOptions
from dasearch.export.plain import Part, catalogue, code, plain
from dasearch.layout import legend_of
from dasearch.training.checkpoints import copied
from dasearch.training.recommender import Recommender


def write_torch(recommender: Recommender, folder: Path, options: ExportOptions) -> None:
    """``recommender.py``, ``config.json``, ``model.safetensors``, ``catalogue.json``, ``layout.json``."""
    part = plain(recommender)
    (folder / "recommender.py").write_text(model_text(recommender, part, hf=False), encoding="utf-8")
    write_json(folder / "config.json", part.config)
    write_weights(folder / "model.safetensors", part)
    write_catalogue(recommender, folder)


def headline(recommender: Recommender) -> dict[str, str]:
    """The docstring of a generated file."""
    file = recommender.layout_file
    return {
        "title": f"A {file.model} recommender over {Path(file.backbone).name}, adapters placed {file.layout}",
        "about": f"Sites of a layer: {', '.join(file.sites)}. Found by study {file.study}.\n"
        f"Letters of the layout: {legend_of(recommender.layout.choices)}.",
        "version": __version__,
    }


def model_text(recommender: Recommender, part: Part, *, hf: bool) -> str:
    """The Python source of the model; ``hf``: as a Hugging Face modelling file."""
    return code(part.choices, **headline(recommender), hf=hf)


def write_weights(path: Path, part: Part, *, prefix: str = "") -> None:
    """All tensors, copied so that none share memory."""
    tensors = {f"{prefix}{name}": tensor for name, tensor in copied(part.tensors).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def write_catalogue(recommender: Recommender, folder: Path) -> None:
    """Write the identifiers of items and users in score order, and the layout."""
    write_json(folder / "catalogue.json", catalogue(recommender))
    write_layout_file(recommender, folder)


def write_tokenizer(recommender: Recommender, folder: Path) -> None:
    """Write the tokenizer's files under a class that transformers before 5 has as well."""
    recommender.catalogue.tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":
        write_json(path, {**config, "tokenizer_class": "PreTrainedTokenizerFast"})


def write_json(path: Path, content: Any) -> None:
    """Write JSON as UTF-8, one value per line."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
