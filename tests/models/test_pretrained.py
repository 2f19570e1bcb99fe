"""Loading saved models: truncation to the first layers, named models, and models that cannot be loaded."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertForMaskedLM,
    LlamaForCausalLM,
    MistralForCausalLM,
    OPTForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from dasearch.errors import BackboneError
from dasearch.models import pretrained
from dasearch.models.backbone import DECODERS, FAMILIES, FrozenBackbone
from dasearch.models.named import NAMED, Package, available
from dasearch.models.pretrained import load_pretrained, pretrained_layers
from dasearch.search.study import Study
from dasearch.training.materials import build_catalogue, open_backbone
from tests.conftest import LAYERS, VOCABULARY, seeded, tiny_backbone, tiny_model, toy_dataset, word_tokenizer
from tests.models.test_configurations import CONFIGS, OWN, SIZES
from tests.training.studies import small_settings

DEEP = 3
PACKAGED = [name for name, known in NAMED.items() if known.package is not None]


def saved(folder: Path, family: str, layers: int = DEEP) -> str:
    tiny_model(family, layers).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return str(folder)


def some_tokens() -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (2, 6), generator=seeded())


def test_the_first_layers_give_the_full_models_states(any_family: str, tmp_path: Path) -> None:
    folder, tokens = saved(tmp_path, any_family), some_tokens()
    assert pretrained_layers(folder) == DEEP
    assert pretrained_layers(folder, layers=LAYERS) == LAYERS
    loaded, tokenizer = load_pretrained(folder, layers=LAYERS)
    assert tokenizer("w5 w9", add_special_tokens=False)["input_ids"] == [5, 9]
    assert loaded.config.num_hidden_layers == LAYERS
    backbone = FrozenBackbone(loaded)
    states = list(backbone.layer_states(tokens, tokens > 0))
    with torch.no_grad():
        whole = tiny_model(any_family, DEEP)(input_ids=tokens, output_hidden_states=True)
    for found, expected in zip(states, whole.hidden_states, strict=False):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_layers_above_are_not_read(
    any_family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their weights may have any shape, and no warning mentions them."""
    folder = saved(tmp_path, any_family)
    tensors = load_file(tmp_path / "model.safetensors")
    above = [name for name in tensors if f".{DEEP - 1}." in name]
    assert len(above) > 5
    tensors.update({name: torch.zeros(1) for name in above})
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)  # to where caplog listens
    load_pretrained(folder, layers=DEEP - 1)
    assert not caplog.records
    with pytest.raises(BackboneError, match="cannot be read as a Hugging Face model"):
        load_pretrained(folder)


def test_kinds_of_layers_are_truncated_too(tmp_path: Path) -> None:
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    loaded, _ = load_pretrained(str(tmp_path), layers=1)
    assert loaded.config.layer_types == ["full_attention"]
    loaded.save_pretrained(tmp_path / "again")
    word_tokenizer().save_pretrained(tmp_path / "again")
    assert pretrained_layers(str(tmp_path / "again")) == 1


def test_too_many_layers(any_family: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, any_family, layers=2)
    for load in (load_pretrained, pretrained_layers):
        with pytest.raises(BackboneError, match=r"backbone.layers is 5 and the backbone has 2; choose 1 to 2"):
            load(folder, layers=5)


def test_missing_weights_are_not_initialised_at_random(tmp_path: Path) -> None:
    folder = saved(tmp_path, "opt")
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["decoder.layers.0.fc1.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=r"\(it lacks decoder.layers.0.fc1.weight\); save it again"):
        load_pretrained(folder)


HEADS = {  # the class with a head, the embeddings' name in a checkpoint, and the head's
    "opt": (OPTForCausalLM, "model.decoder.embed_tokens.weight", "lm_head.weight"),
    "llama": (LlamaForCausalLM, "model.embed_tokens.weight", "lm_head.weight"),
    "mistral": (MistralForCausalLM, "model.embed_tokens.weight", "lm_head.weight"),
    "qwen2": (Qwen2ForCausalLM, "model.embed_tokens.weight", "lm_head.weight"),
    "bert": (BertForMaskedLM, "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
}


def tied(folder: Path, family: str, *, tie: bool = True) -> PreTrainedModel:
    """A model of which the folder keeps the head's weights in place of the embeddings."""
    kind, embeddings, head = HEADS[family]
    small = small_config(family, tie_word_embeddings=tie)
    with torch.random.fork_rng():
        model = kind(small).eval()
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[head] = tensors.pop(embeddings)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return model


def small_config(family: str, **changes: Any) -> PretrainedConfig:
    return CONFIGS[family](**{**SIZES, **OWN[family], "vocab_size": VOCABULARY, **changes})


@pytest.mark.parametrize("layers", [None, 1])
@pytest.mark.parametrize("family", HEADS)
def test_tied_weights_stored_only_under_the_heads_name(family: str, layers: int | None, tmp_path: Path) -> None:
    model, tokens = tied(tmp_path, family), some_tokens()
    loaded, _ = load_pretrained(str(tmp_path), layers=layers)
    torch.testing.assert_close(loaded.get_input_embeddings().weight, model.get_input_embeddings().weight)
    with torch.no_grad():
        whole = model.base_model(input_ids=tokens, output_hidden_states=True)
    *below, _ = FrozenBackbone(loaded).layer_states(tokens, tokens > 0)
    for found, expected in zip(below, whole.hidden_states, strict=False):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_weights_that_are_not_tied_are_not_taken_from_the_head(family: str, tmp_path: Path) -> None:
    tied(tmp_path, family, tie=False)
    with pytest.raises(BackboneError, match=r"it lacks embed_tokens.weight"):
        load_pretrained(str(tmp_path))


def test_tied_weights_that_are_missing(tmp_path: Path) -> None:
    tied(tmp_path, "llama")
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=r"it lacks "):
        load_pretrained(str(tmp_path))


def test_damaged_weights(tmp_path: Path) -> None:
    folder = saved(tmp_path, "llama")
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BackboneError, match=r"cannot be read as a Hugging Face model \(.+\); save it again"):
        load_pretrained(folder)


def cls_tokenizer() -> PreTrainedTokenizerFast:
    """As BGE's: rows begin with [CLS], and there is no other start token."""
    vocabulary = {"[PAD]": 0, "[CLS]": 1, "[UNK]": 2, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", unk_token="[UNK]", sep_token="[UNK]"
    )


@pytest.mark.parametrize("kind", ["idle", "ra-rec"])
def test_a_saved_encoder_is_a_backbone_of_models_that_accept_one(kind: str, tmp_path: Path) -> None:
    tiny_model("bert").save_pretrained(tmp_path)
    cls_tokenizer().save_pretrained(tmp_path)
    settings = small_settings(model={"kind": kind}, backbone={"name": str(tmp_path)})
    assert Study(settings).space().layers == LAYERS
    backbone, tokenizer = open_backbone(settings, toy_dataset())
    assert not backbone.causal
    row_format = build_catalogue(settings, toy_dataset(), backbone, tokenizer).row_format
    assert row_format.opening[0] == tokenizer.cls_token_id == 1
    assert row_format.pad_token == 0
    with pytest.raises(BackboneError, match="DARec needs a decoder"):
        Study(small_settings(backbone={"name": str(tmp_path)})).space()


@pytest.mark.parametrize("load", [load_pretrained, pretrained_layers])
def test_a_hub_name_offline(load) -> None:
    reason = (
        r"'nobody/nothing' is not on this machine and the Hugging Face hub cannot be reached \(HF_HUB_OFFLINE is set\); "
        r"use tiny-opt.* or the folder of a saved model \(`dasearch doctor` lists what else there is\)$"
    )
    with pytest.raises(BackboneError, match=reason):
        load("nobody/nothing")


def test_an_unreachable_hub_is_contacted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Unplugged:
        def head(self, url: str, *, timeout: float) -> None:
            asked.append((url, timeout))
            raise ConnectionError("Name or service not known")

    monkeypatch.setattr(pretrained.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(pretrained.constants, "ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr(pretrained, "get_session", Unplugged)
    for load in (load_pretrained, pretrained_layers):
        with pytest.raises(
            BackboneError, match=r"cannot be reached \(no answer from https://hub.invalid\); use tiny-opt"
        ):
            load("nobody/nothing")
    assert asked == [("https://hub.invalid", pretrained.PROBE_SECONDS)]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("smollm-135m", "smollm2-135m"),
        ("minilm", "minilm-l6"),
        ("tinyopt", "tiny-opt"),
        ("opt-125m", "facebook/opt-125m"),
    ],
)
def test_a_name_that_is_near_a_known_one(name: str, near: str) -> None:
    with pytest.raises(
        BackboneError, match=rf"^the backbone '{name}' is not on this machine.*; did you mean {near}\?$"
    ):
        pretrained_layers(name)


@pytest.mark.parametrize("name", PACKAGED)
def test_a_package_that_is_not_installed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = NAMED[name]
    monkeypatch.setitem(NAMED, name, replace(known, package=Package("no_such_package", Path)))
    assert not available(name)
    with pytest.raises(BackboneError) as refused:
        load_pretrained(name)
    assert str(refused.value) == f"the backbone {name} needs no_such_package, not installed here; {known.get}"


def test_families_of_named_models_can_be_wrapped() -> None:
    assert {known.family for known in NAMED.values()} <= set(FAMILIES)
    assert {known.family for known in NAMED.values()} & set(DECODERS)


@pytest.mark.parametrize("name", PACKAGED)
def test_the_record_of_a_packaged_model_is_correct(name: str) -> None:
    if not available(name):
        pytest.skip(f"{name} is not installed: {NAMED[name].get}")
    model, tokenizer = load_pretrained(name)
    known = NAMED[name]
    assert (model.config.model_type, model.config.num_hidden_layers, model.config.hidden_size) == (
        known.family, known.layers, known.width,
    )  # fmt: skip
    assert sum(p.numel() for p in model.parameters()) == known.parameters
    assert len(tokenizer) <= model.config.vocab_size


def test_real_minilm_weights_equal_hugging_face() -> None:
    """all-MiniLM-L6-v2 as the package carries it, rows of unequal length in one batch."""
    assert pretrained_layers("minilm-l6") == 6
    model, tokenizer = load_pretrained("minilm-l6")
    texts = ["a red running shoe for the trail", "running shoes", "brass lamp"]
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    real = encoded["attention_mask"].bool()
    with torch.no_grad():
        expected = model(**encoded).last_hidden_state
        found = FrozenBackbone(model).hidden_states(encoded["input_ids"], real)
    torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=1e-4)
    vectors = (found * real[..., None]).sum(1) / real.sum(1, keepdim=True)
    near, far = torch.cosine_similarity(vectors[:1], vectors[1:])
    assert near > far + 0.3


def test_a_prompt_that_leaves_no_room_for_an_item_is_one_sentence() -> None:
    backbone = tiny_backbone("opt")
    backbone.max_tokens = 12
    settings = small_settings(model={"kind": "idle"})
    with pytest.raises(
        BackboneError, match=r"reads rows of 12 tokens, and the prompt \(13\) with the longest item \(4\) needs 18"
    ):
        build_catalogue(settings, toy_dataset(), backbone, word_tokenizer())
