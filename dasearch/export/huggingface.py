"""``hf``: a folder that ``AutoModel.from_pretrained(..., trust_remote_code=True)`` opens where dasearch is not installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dasearch.export.options import ExportOptions
from dasearch.export.plain import code, plain
from dasearch.export.pytorch import model_text, write_catalogue, write_json, write_tokenizer, write_weights
from dasearch.layout import legend_of
from dasearch.models.named import NAMED
from dasearch.models.tiny_opt import TINY_OPT
from dasearch.training.recommender import Recommender

MODULE = "modeling_dasearch"
EXAMPLE_ITEMS = 3  # in the card's usage example


def write_hf(recommender: Recommender, folder: Path, options: ExportOptions) -> None:
    """Config, weights, the modelling file, tokenizer, catalogue, ``layout.json`` and a model card."""
    part = plain(recommender)
    (folder / f"{MODULE}.py").write_text(model_text(recommender, part, hf=True), encoding="utf-8")
    config = {
        "model_type": "dasearch",
        "architectures": ["DasearchModel"],
        "auto_map": {"AutoConfig": f"{MODULE}.DasearchConfig", "AutoModel": f"{MODULE}.DasearchModel"},
        "dtype": "float32",
        "recommender": part.config,
    }
    write_json(folder / "config.json", config)
    write_weights(folder / "model.safetensors", part, prefix="recommender.")
    write_tokenizer(recommender, folder)
    write_catalogue(recommender, folder)
    (folder / "README.md").write_text(code(_card(recommender), "card.md.jinja"), encoding="utf-8")


def _card(recommender: Recommender) -> dict[str, Any]:
    file = recommender.layout_file
    known = NAMED.get(file.backbone)
    return {
        **file.model_dump(exclude={"versions", "backbone"}),
        "backbone": Path(file.backbone).name,
        "legend": legend_of(recommender.layout.choices),
        "versions": ", ".join(f"{name} {version}" for name, version in file.versions.items()),
        "licence": known.licence if known else None,
        "licence_text": _licence(file.backbone),
        "data": recommender.catalogue.dataset_name,
        "items_hash": recommender.catalogue.items_hash,
        "n_items": len(recommender.items),
        "n_users": len(recommender.users),
        "example": json.dumps([item.identifier for item in recommender.items[:EXAMPLE_ITEMS]], ensure_ascii=False),
        "metrics": _metrics(recommender),
    }


def _licence(backbone: str) -> str:
    known = NAMED.get(backbone)
    if backbone == TINY_OPT:
        return "The language model was trained from scratch on the catalogue's own texts, whose terms apply."
    if known is None or known.licence is None:
        return f"The weights contain the language model {Path(backbone).name}, whose own licence applies; see its page."
    return f"The weights contain the language model {backbone}, under {known.licence}."


def _metrics(recommender: Recommender) -> list[dict[str, Any]]:
    """The score in ``layout.json`` with its interval, then the saved model's own."""
    entries, metric = [], recommender.layout_file.metric
    if metric is not None:
        spread = "" if metric.low is None or metric.high is None else f"{metric.low:.4f} to {metric.high:.4f}"
        entries.append(_metric(metric.name, metric.split, metric.value, spread, "of this layout, mean over seeds"))
    for split, values in recommender.results.items():
        entries += [_metric(name, split, value, "", "of these weights") for name, value in values.items()]
    return entries


def _metric(name: str, split: str, value: float, interval: str, note: str) -> dict[str, Any]:
    return {"name": name, "title": f"{name} {note}", "split": split, "value": value, "interval": interval}
