"""Recommenders over a frozen language model, whose adapter layout is a tensor argument of ``forward``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dasearch.lazy import lazily

if TYPE_CHECKING:
    from dasearch.models.adapters import AdapterSettings, BottleneckAdapter
    from dasearch.models.base import RecommenderModel
    from dasearch.models.darec import DARec
    from dasearch.models.e4s_rec import E4SRec
    from dasearch.models.idle import IDLEAdapter
    from dasearch.models.insertion import apply_layout
    from dasearch.models.named import NAMED
    from dasearch.models.pretrained import load_pretrained
    from dasearch.models.ra_rec import RARec
    from dasearch.models.registry import MODELS

__all__ = [
    "MODELS",
    "NAMED",
    "AdapterSettings",
    "BottleneckAdapter",
    "DARec",
    "E4SRec",
    "IDLEAdapter",
    "RARec",
    "RecommenderModel",
    "apply_layout",
    "load_pretrained",
]

_HOMES = {
    "MODELS": "dasearch.models.registry",
    "NAMED": "dasearch.models.named",
    "AdapterSettings": "dasearch.models.adapters",
    "BottleneckAdapter": "dasearch.models.adapters",
    "DARec": "dasearch.models.darec",
    "E4SRec": "dasearch.models.e4s_rec",
    "IDLEAdapter": "dasearch.models.idle",
    "RARec": "dasearch.models.ra_rec",
    "RecommenderModel": "dasearch.models.base",
    "apply_layout": "dasearch.models.insertion",
    "load_pretrained": "dasearch.models.pretrained",
}

__getattr__, __dir__ = lazily(__name__, _HOMES, __all__)
