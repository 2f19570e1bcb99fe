"""A tiny frozen model and a tiny ID encoder with random weights, on which the package's examples build recommenders.

Not for training: `dasearch.models.load_pretrained` opens real backbones.
"""

from __future__ import annotations

import torch
from transformers import OPTConfig, OPTModel

from dasearch.models.backbone import FrozenBackbone
from dasearch.models.id_encoders import EncoderSettings, IDEncoder, build_encoder

WIDTH = 8


def tiny_backbone() -> FrozenBackbone:
    """An OPT of two layers, width 8, two heads and a vocabulary of 20."""
    sizes = {"hidden_size": WIDTH, "word_embed_proj_dim": WIDTH, "ffn_dim": 2 * WIDTH, "num_attention_heads": 2}
    return FrozenBackbone(OPTModel(OPTConfig(vocab_size=20, num_hidden_layers=2, **sizes)), name="tiny")


def tiny_encoder(n_users: int, n_items: int) -> IDEncoder:
    """An untrained SASRec of width 4."""
    settings = EncoderSettings(name="sasrec", width=4)
    texts = torch.zeros(n_items, WIDTH)
    return build_encoder(settings, n_users, n_items, texts, torch.Generator().manual_seed(0))
