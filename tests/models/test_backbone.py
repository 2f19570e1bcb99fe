"""The wrapped backbone against Hugging Face's own forward, and models that are rejected."""

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2Model, OPTConfig, OPTModel

from dasearch.errors import BackboneError
from dasearch.models.backbone import AttentionScale, FrozenBackbone
from dasearch.models.darec import DARec, DARecSettings
from dasearch.models.pretrained import pretrained_layers
from tests.conftest import LAYERS, VOCABULARY, seeded, tiny_backbone, tiny_model


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


def test_an_encoder_equals_hugging_face_with_padding() -> None:
    model = tiny_model("bert")
    tokens = torch.randint(3, VOCABULARY, (3, 9), generator=seeded())
    real = torch.arange(9) < torch.tensor([9, 5, 1])[:, None]
    with torch.no_grad():
        expected = model(input_ids=tokens, attention_mask=real.long(), output_hidden_states=True)
        states = list(FrozenBackbone(model).layer_states(tokens, real))
    for found, wanted in zip(states, expected.hidden_states, strict=True):
        torch.testing.assert_close(found[real], wanted[real], atol=1e-5, rtol=1e-5)


def test_darec_rejects_an_encoder(tmp_path: Path) -> None:
    tiny_model("bert").save_pretrained(tmp_path)
    reason = r"is an encoder \(family 'bert'\) and DARec needs a decoder; choose one of opt.*model.kind idle or ra-rec"
    with pytest.raises(BackboneError, match=reason):
        pretrained_layers(str(tmp_path), decoder=True)
    with pytest.raises(BackboneError, match=reason):
        DARec(tiny_backbone("bert"), DARecSettings(), n_users=2, n_items=3, generator=seeded())
    assert pretrained_layers(str(tmp_path)) == LAYERS


def test_an_unknown_family_is_rejected() -> None:
    config = GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2)
    with pytest.raises(BackboneError, match=r"family 'gpt2', which dasearch cannot wrap; choose one of opt, .*bert"):
        FrozenBackbone(GPT2Model(config))


def test_post_norm_opt_is_rejected() -> None:
    config = OPTConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16, do_layer_norm_before=False,
        word_embed_proj_dim=16,
    )  # fmt: skip
    with pytest.raises(BackboneError, match="norms after its sublayers"):
        FrozenBackbone(OPTModel(config))
