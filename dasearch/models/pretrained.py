"""Loading pretrained models: from a folder, an installed package, or the Hugging Face hub."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import transformers
from huggingface_hub import constants, get_session
from safetensors import SafetensorError
from transformers.utils import logging

from dasearch.errors import BackboneError, first_line, suggestion
from dasearch.models.backbone import DECODERS, FAMILIES, not_a_decoder, unknown_family
from dasearch.models.named import NAMED, available, locate

PROBE_SECONDS = 5.0  # the hub's own client retries six times over 23 seconds per file
UNUSED = "pooler."  # BERT weights that no model here uses and some checkpoints lack
UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)


def load_pretrained(
    name: str, *, layers: int | None = None, dtype: torch.dtype = torch.float32
) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    """A model and its tokenizer: from a local folder, or by name from an installed package or the Hugging Face hub.

    ``layers`` keeps only the first layers; the others' weights are not read.

    Raises:
        BackboneError: if it can be neither found nor downloaded, is damaged, or has fewer layers.

    Examples:
        >>> import tempfile
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import OPTConfig, OPTModel, PreTrainedTokenizerFast
        >>> from dasearch.models import load_pretrained
        >>> sizes = {"hidden_size": 8, "word_embed_proj_dim": 8, "ffn_dim": 16, "num_attention_heads": 2}
        >>> words = models.WordLevel({"<unk>": 0, "green": 1, "tea": 2}, unk_token="<unk>")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     OPTModel(OPTConfig(vocab_size=3, num_hidden_layers=2, **sizes)).save_pretrained(folder)
        ...     _ = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), unk_token="<unk>").save_pretrained(folder)
        ...     model, tokenizer = load_pretrained(folder, layers=1)
        >>> model.config.num_hidden_layers, tokenizer("tea").input_ids
        (1, [2])
    """
    config = _config(name, layers)
    place = _place(name)
    try:
        with _quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(**place)
            model, lacking = _read(transformers.AutoModel, place, config, dtype)
            if (
                lacking and config.tie_word_embeddings
            ):  # some checkpoints store tied embeddings only as the head's weights
                head = (
                    transformers.AutoModelForCausalLM
                    if config.model_type in DECODERS
                    else transformers.AutoModelForMaskedLM
                )
                whole, lacking_too = _read(head, place, config, dtype)
                model, lacking = (model, lacking) if lacking_too else (whole.base_model, [])
    except UNREADABLE as error:
        raise _unreadable(name, error) from None
    if lacking:
        raise _unreadable(name, ValueError(f"it lacks {lacking[0]}"))
    return model, tokenizer


def _read(
    opener: Any, place: dict[str, Any], config: transformers.PretrainedConfig, dtype: torch.dtype
) -> tuple[transformers.PreTrainedModel, list[str]]:
    """A model, and the names of weights that its checkpoint lacks."""
    model, read = opener.from_pretrained(
        **place, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True
    )
    return model, sorted(key for key in read["missing_keys"] if not key.startswith(UNUSED))


def pretrained_layers(name: str, *, layers: int | None = None, decoder: bool = False) -> int:
    """Number of layers of a local or hub model, without loading its weights.

    Raises:
        BackboneError: as `load_pretrained`, and for an encoder where a ``decoder`` is required.
    """
    config = _config(name, layers)
    if config.model_type not in FAMILIES:
        raise unknown_family(name, config.model_type)
    if decoder and config.model_type not in DECODERS:
        raise not_a_decoder(name, config.model_type)
    return int(config.num_hidden_layers)


def opens_by_name(name: str) -> bool:
    """Whether `load_pretrained` resolves this name to a package or the hub rather than to a local folder."""
    if not name or os.path.isdir(name):
        return False
    try:
        _config(name, None)
    except BackboneError:
        return False
    return True


def weights_sha256(model: transformers.PreTrainedModel) -> str:
    """Hexadecimal SHA-256 of a model's tensors with their names, types and shapes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _config(name: str, layers: int | None) -> transformers.PretrainedConfig:
    """The configuration, truncated to the first ``layers`` layers (None: all)."""
    place = _place(name)
    try:
        config = transformers.AutoConfig.from_pretrained(**place)
    except UNREADABLE as error:
        raise _unreadable(name, error) from None
    if getattr(config, "quantization_config", None) is not None:
        raise _quantized(name, config.quantization_config)
    if layers is None:
        return config
    have = int(config.num_hidden_layers)
    if not 1 <= layers <= have:
        raise BackboneError(f"backbone.layers is {layers} and the backbone has {have}; choose 1 to {have}")
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    return config


def _place(name: str) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` for where to search; offline if the hub is not needed or unreachable."""
    folder = locate(name)
    local = folder != name or os.path.isdir(folder) or _why_offline() is not None
    return {"pretrained_model_name_or_path": folder, "local_files_only": local}


def _why_offline() -> str | None:
    """The reason why the hub cannot be reached, or None."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return None if _answers(constants.ENDPOINT) else f"no answer from {constants.ENDPOINT}"


@cache
def _answers(endpoint: str) -> bool:
    """Whether the hub answers, checked once per process by its own client, which respects proxies and mirrors."""
    try:
        get_session().head(endpoint, timeout=PROBE_SECONDS)
    except Exception:  # the HTTP client and its exceptions differ between versions of huggingface_hub
        return False
    return True


@contextmanager
def without_bars() -> Iterator[None]:
    """Without transformers' bars, which say how far the reading of a local file is; afterwards they are as they were."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress transformers' report of weights that a truncated model leaves unread; missing ones are rejected here."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _unreadable(name: str, error: Exception) -> BackboneError:
    """The error for an unreadable folder or a name that cannot be resolved."""
    folder = locate(name)
    if folder != name:
        return BackboneError(
            f"the backbone {name} cannot be read from {folder} ({first_line(error)}); "
            "delete that folder and install the package again"
        )
    if os.path.isdir(folder):
        return BackboneError(
            f"the backbone {name!r} cannot be read as a Hugging Face model ({first_line(error)}); "
            "save it again with save_pretrained, or choose another"
        )
    near = suggestion(name, [known for known in NAMED if known != name])
    offline = _why_offline()
    if offline is None:
        return BackboneError(
            f"the backbone {name!r} is neither a folder nor could be downloaded ({first_line(error)}){near or _choice()}"
        )
    return BackboneError(
        f"the backbone {name!r} is not on this machine and the Hugging Face hub cannot be reached ({offline})"
        f"{near or _choice()}"
    )


def _quantized(name: str, quantization: Any) -> BackboneError:
    """The error for quantized weights, which require another library's kernels."""
    config = quantization if isinstance(quantization, dict) else vars(quantization)
    method = str(config.get("quant_method") or "unknown").rpartition(".")[2].lower()
    return BackboneError(
        f"the backbone {name!r} is quantized (quant_method {method}) and dasearch reads full weights; choose the model that it "
        "was made from"
    )


def _choice() -> str:
    ready = [name for name in NAMED if available(name)]
    return f"; use {', '.join(ready)} or the folder of a saved model (`dasearch doctor` lists what else there is)"
