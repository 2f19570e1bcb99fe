"""Every field of a family's configuration, varied: the wrapped model equals transformers' own, or is rejected."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    BertConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from dasearch.errors import BackboneError
from dasearch.models.backbone import FAMILIES, FrozenBackbone
from tests.conftest import seeded

TOKENS = 24
WINDOW = 8
CONFIGS: dict[str, type[PretrainedConfig]] = {
    "opt": OPTConfig,
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "bert": BertConfig,
}
SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": TOKENS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
OWN = {
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "bert": {"intermediate_size": 48},
    **{family: {"intermediate_size": 48, "num_key_value_heads": 2} for family in ("llama", "mistral", "qwen2")},
}
ROPE: list[dict[str, Any]] = [
    {"rope_type": "default", "rope_theta": 50.0},
    {"rope_type": "linear", "rope_theta": 50.0, "factor": 2.0},
    {"rope_type": "dynamic", "rope_theta": 50.0, "factor": 2.0},
    {"rope_type": "yarn", "rope_theta": 50.0, "factor": 4.0, "original_max_position_embeddings": 6},
    {
        "rope_type": "llama3",
        "rope_theta": 50.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 6,
    },
    {
        "rope_type": "longrope",
        "rope_theta": 50.0,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "factor": 4.0,
        "original_max_position_embeddings": 6,
    },
]
ROTARY: dict[str, list[Any]] = {
    "hidden_act": ["gelu", "relu"],
    "intermediate_size": [80],
    "num_key_value_heads": [1, 4],
    "rms_norm_eps": [0.1],
    "rope_parameters": ROPE,
    "max_position_embeddings": [64],
}
SIZED: dict[str, list[Any]] = {
    "hidden_size": [64],
    "num_attention_heads": [2],
    "num_hidden_layers": [1, 3],
    "vocab_size": [70],
}
FIELDS: dict[str, dict[str, list[Any]]] = {
    "opt": {
        **SIZED,
        "activation_function": ["gelu", "silu"],
        "do_layer_norm_before": [False],
        "word_embed_proj_dim": [16],
        "enable_bias": [False],
        "layer_norm_elementwise_affine": [False],
        "_remove_final_layer_norm": [True],
        "ffn_dim": [80],
        "max_position_embeddings": [64],
    },
    "llama": {**SIZED, **ROTARY, "attention_bias": [True], "mlp_bias": [True], "head_dim": [16], "pretraining_tp": [2]},
    "mistral": {**SIZED, **ROTARY, "head_dim": [16], "sliding_window": [None, WINDOW, TOKENS, 4096]},
    "qwen2": {
        **SIZED,
        **ROTARY,
        "use_sliding_window": [True, False],
        "sliding_window": [None, WINDOW],
        "max_window_layers": [0, 1, 2],
        "layer_types": [["sliding_attention", "full_attention"], ["full_attention", "full_attention"]],
    },
    "bert": {
        **SIZED,
        "hidden_act": ["relu", "silu"],
        "intermediate_size": [80],
        "layer_norm_eps": [0.1],
        "type_vocab_size": [1, 3],
        "is_decoder": [True],
        "add_cross_attention": [True],
        "chunk_size_feed_forward": [4],
        "max_position_embeddings": [64],
    },
}
OF_TRAINING = {  # fields without a part in an evaluated forward pass
    "attention_dropout",
    "attention_probs_dropout_prob",
    "bos_token_id",
    "classifier_dropout",
    "dropout",
    "eos_token_id",
    "hidden_dropout_prob",
    "init_std",
    "initializer_range",
    "layerdrop",
    "pad_token_id",
    "tie_word_embeddings",
    "use_cache",
}
LIMITED = {  # what is refused, and the sentence
    ("opt", "do_layer_norm_before"): "norms after its sublayers",
    ("opt", "word_embed_proj_dim"): "narrower",
    ("bert", "is_decoder"): "is_decoder",
    ("bert", "add_cross_attention"): "is_decoder",
}


def model_of(family: str, **changes: Any) -> PreTrainedModel:
    """A random model, in evaluation."""
    sized = {**SIZES, **OWN[family], **changes}
    if family == "opt" and "hidden_size" in changes:
        sized["word_embed_proj_dim"] = changes["hidden_size"]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = AutoModel.from_config(CONFIGS[family](**sized))
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def difference(model: PreTrainedModel, backbone: FrozenBackbone, length: int) -> float:
    tokens = torch.randint(3, 50, (2, length), generator=seeded())
    with torch.no_grad():
        expected = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).last_hidden_state
        return float((backbone.hidden_states(tokens, tokens > 0) - expected).abs().max())


CASES = [
    (family, key, value) for family, fields in FIELDS.items() for key, values in fields.items() for value in values
]


def varied(family: str, key: str, value: Any) -> PreTrainedModel:
    """A model one field of whose configuration has ``value``, and others what lets it count."""
    windowed = family == "qwen2" and key in ("sliding_window", "max_window_layers", "layer_types")
    also = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 0} if windowed else {}
    if key == "add_cross_attention":
        also = {"is_decoder": True}
    return model_of(family, **{**also, key: value})


@pytest.mark.parametrize(("family", "key", "value"), [case for case in CASES if case[:2] not in LIMITED])
def test_a_field_is_applied(family: str, key: str, value: Any) -> None:
    model = varied(family, key, value)
    backbone = FrozenBackbone(model)
    assert difference(model, backbone, min(TOKENS, backbone.max_tokens)) < 1e-4


@pytest.mark.parametrize(("family", "key", "value"), [case for case in CASES if case[:2] in LIMITED])
def test_a_field_is_rejected(family: str, key: str, value: Any) -> None:
    with pytest.raises(BackboneError, match=LIMITED[family, key]):
        FrozenBackbone(varied(family, key, value))


def test_every_field_is_covered() -> None:
    assert set(FIELDS) == set(FAMILIES) == set(CONFIGS)
    for family, config in CONFIGS.items():
        own = set(config.__dataclass_fields__) - set(PretrainedConfig.__dataclass_fields__)
        assert own - OF_TRAINING <= set(FIELDS[family]), family


@pytest.mark.parametrize(
    ("family", "changes", "reads"),
    [
        ("mistral", {"sliding_window": WINDOW}, WINDOW),
        ("mistral", {"sliding_window": 4096}, TOKENS),
        ("mistral", {"sliding_window": None}, TOKENS),
        ("qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}, WINDOW),
        ("qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2}, TOKENS),
        ("qwen2", {"use_sliding_window": False, "sliding_window": WINDOW}, TOKENS),
        ("llama", {}, TOKENS),
    ],
)
def test_rows_are_no_longer_than_the_sliding_window(family: str, changes: dict[str, Any], reads: int) -> None:
    """Within the window it has no effect; a longer row is rejected rather than read as if there were no window."""
    model = model_of(family, **changes)
    backbone = FrozenBackbone(model, name="tiny")
    assert backbone.max_tokens == reads
    assert difference(model, backbone, reads) < 1e-4
    if reads < TOKENS:
        with pytest.raises(BackboneError, match=rf"tiny attends to {WINDOW} tokens at most .* a row has {WINDOW + 1}"):
            difference(model, backbone, WINDOW + 1)


def test_layers_with_another_attention_are_rejected() -> None:
    model = model_of("qwen2")
    model.config.layer_types = ["full_attention", "chunked_attention"]
    with pytest.raises(BackboneError, match="chunked_attention"):
        FrozenBackbone(model)
