"""`apply_layout`: a Hugging Face model with a layout's adapters computes the same as dasearch and trains like any other."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaForCausalLM,
    MistralConfig,
    MistralModel,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2Model,
    Trainer,
    TrainingArguments,
)

from dasearch import Layout, apply_layout
from dasearch.data import Rows
from dasearch.errors import BackboneError, LayoutError
from dasearch.layout import CHOICES, Choice
from dasearch.models.attention import attend_causally
from dasearch.models.backbone import FrozenBackbone
from dasearch.models.darec import AdaptedSites, BaseLayer, DARec
from tests.conftest import FAMILIES, LAYERS, VOCABULARY, WIDTH, seeded, tiny_backbone, tiny_model, toy_rows
from tests.models.test_darec import build, loud

BOTTLENECK = 4
TWO = ("causal", "recommendation")
HEADED = {"opt": OPTForCausalLM, "llama": LlamaForCausalLM}
LIMIT = {"opt": 0.0, "llama": 1e-5}  # Llama scales inside the kernel, which rounds differently


def bare(family: str, special: Tensor, layers: int = LAYERS) -> PreTrainedModel:
    """The frozen model of `tests.conftest` with DARec's two token rows."""
    model = tiny_model(family, layers)
    model.resize_token_embeddings(VOCABULARY + 2, mean_resizing=False)
    model.get_input_embeddings().weight.data[VOCABULARY:] = special.detach()
    return model


def headed(family: str) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = HEADED[family](tiny_model(family).config)
        for parameter in model.parameters():
            parameter.data.normal_(std=0.15)
    return model.eval()


def tensors(model: DARec) -> dict[str, Tensor]:
    """A trained model's adapters by the names they have inside a Hugging Face decoder."""
    return {
        f"layers.{place}.adapters.{name}": tensor
        for place in model.replaced
        for name, tensor in model.layers[place].state_dict().items()
        if not name.startswith("block.")
    }


def distance(found: Tensor, expected: Tensor, rows: Rows) -> float:
    return float((found - expected)[rows.segments >= 0].abs().max())


@st.composite
def cases(draw: st.DrawFn) -> dict[str, object]:
    layers = draw(st.sampled_from([2, 4]))
    every = draw(st.sampled_from([r for r in (1, 2, 4) if layers % r == 0]))
    bits = draw(st.lists(st.integers(0, 1), min_size=3 * layers // every, max_size=3 * layers // every))
    return {
        "family": draw(st.sampled_from(FAMILIES)),
        "layers": layers,
        "every": every,
        "layout": Layout.from_bits(bits, sites=3),
        "parallel_reduce": draw(st.sampled_from(["mean", "sum"])),
        "parallel_residual": draw(st.booleans()),
        "rec_adapter_site": draw(st.sampled_from(["ffn", "router_output"])),
        "activation": draw(st.sampled_from(["relu", "gelu", "none"])),
        "collab_proj": draw(st.sampled_from(["shared", "per_layer"])),
    }


@settings(deadline=None, max_examples=25)
@given(case=cases(), with_key=st.booleans())
def test_three_sites_equal_darec(case: dict[str, object], with_key: bool) -> None:
    family, layers, every, layout = (case.pop(name) for name in ("family", "layers", "every", "layout"))
    model = loud(build(tiny_backbone(family, layers), every=every, **case), scale=0.3)
    rows, users = toy_rows(), torch.tensor([1, 3])
    inserted = bare(family, model.special, layers)
    del case["collab_proj"]
    apply_layout(inserted, layout, bottleneck=BOTTLENECK, weights=tensors(model), **case)
    with torch.no_grad():
        keys = model.user_keys(users) if with_key else None
        expected = model.hidden(rows, model.layout_tensor(layout), keys)
        given_keys = {} if keys is None else {"collaborative_keys": keys.transpose(0, 1)}
        found = inserted(rows.tokens, segment_ids=rows.segments, **given_keys).last_hidden_state
    assert distance(found, expected, rows) <= LIMIT[family]


@pytest.mark.parametrize("every", [1, 2])
def test_serial_two_sites_equal_darec_base(family: str, every: int) -> None:
    model = loud(build(tiny_backbone(family, 4), every=every, variation="darec-base"))
    layout, rows = Layout.all_serial(4 // every, sites=2), toy_rows()
    weights = {name.replace("attention_adapter", "causal_adapter"): t for name, t in tensors(model).items()}
    inserted = apply_layout(bare(family, model.special, 4), layout, bottleneck=BOTTLENECK, weights=weights)
    assert all(isinstance(model.layers[place], BaseLayer) for place in model.replaced)
    with torch.no_grad():
        expected = model.hidden(rows, torch.zeros(4 // every, 3))
        assert distance(inserted(rows.tokens).last_hidden_state, expected, rows) <= LIMIT[family]


@pytest.mark.parametrize(("config", "kind"), [(MistralConfig, MistralModel), (Qwen2Config, Qwen2Model)])
def test_relatives_of_llama(config: type, kind: type) -> None:
    shape = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    with torch.random.fork_rng():
        torch.manual_seed(7)
        plain = kind(config(vocab_size=VOCABULARY + 2, num_key_value_heads=2, pad_token_id=0, **shape)).eval()
    backbone = FrozenBackbone(copy.deepcopy(plain))
    model, rows, layout = loud(build(backbone), scale=0.3), toy_rows(), Layout.parse("PSP-SPS")
    model.special.data = backbone.model.embed_tokens.weight[VOCABULARY:].clone()
    backbone.vocabulary = VOCABULARY  # of the tokens that the model came with
    inserted = apply_layout(plain, layout, bottleneck=BOTTLENECK, weights=tensors(model))
    with torch.no_grad():
        found = inserted(rows.tokens, segment_ids=rows.segments).last_hidden_state
        assert distance(found, model.hidden(rows, model.layout_tensor(layout)), rows) <= LIMIT["llama"]


def by_hand(inserted: PreTrainedModel, family: str, rows: Rows, layout: Layout) -> Tensor:
    """Two sites written out: ``SA + B(SA)`` or ``(SA + h + B(h)) / 2``, and so for the FFN."""
    backbone = tiny_backbone(family)
    hidden, positions = backbone.start(inserted.get_input_embeddings()(rows.tokens))
    for block, layer, choices in zip(
        backbone.decoder_blocks, inserted.get_decoder().layers, layout.groups, strict=True
    ):
        normed = block.norm1(hidden)
        out = block.output(attend_causally(block.project(normed, positions)))
        hidden = hidden + joined(layer.adapters.causal_adapter, out, normed, choices[0].parallel)
        normed = block.norm2(hidden)
        hidden = hidden + joined(layer.adapters.recommendation_adapter, block.ffn(normed), normed, choices[-1].parallel)
    return backbone.final_norm(hidden)


def joined(adapter: torch.nn.Module, out: Tensor, seen: Tensor, parallel: bool) -> Tensor:
    read = seen if parallel else out
    update = (read @ adapter.down.weight.T + adapter.down.bias).clamp(min=0) @ adapter.up.weight.T + adapter.up.bias
    return (out + seen + update) / 2 if parallel else out + update


@pytest.mark.parametrize("text", ["SP-PS", "PP-PP", "SS-SS", "SPP-PSS"])
def test_two_sites_by_hand(family: str, text: str) -> None:
    layout, rows = Layout.parse(text), toy_rows()
    inserted = bare(family, torch.ones(2, WIDTH))
    apply_layout(inserted, layout, sites=TWO, bottleneck=BOTTLENECK, adapter_init="normal", generator=seeded(4))
    for parameter in inserted.parameters():
        if parameter.requires_grad:
            parameter.data.mul_(30)
    with torch.no_grad():
        expected = by_hand(inserted, family, rows, layout)
        found = inserted(rows.tokens).last_hidden_state
    torch.testing.assert_close(found[rows.segments >= 0], expected[rows.segments >= 0], atol=1e-5, rtol=1e-5)


THIN = Choice("thin", "t", lora=True, width=2)


@pytest.mark.parametrize("text", ["LtS-PLN", "tNA-LLP", "SLN-LSN"])
@pytest.mark.parametrize("collab_proj", ["shared", "per_layer"])
def test_three_sites_with_lora_equal_darec(family: str, text: str, collab_proj: str) -> None:
    layout, rows, options = (
        Layout.parse(text, [*CHOICES.values(), THIN]),
        toy_rows(),
        {"lora_rank": 3, "lora_alpha": 5.0},
    )
    model = loud(build(family, lora=True, collab_proj=collab_proj, **options), scale=0.3)
    weights = {
        f"layers.{place}.adapters.{rest}": tensor
        for name, tensor in model.active_tensors(layout).items()
        if name.startswith("layers.")
        for place, rest in [name.split(".", 2)[1:]]
    }
    inserted = apply_layout(bare(family, model.special), layout, bottleneck=BOTTLENECK, weights=weights, **options)
    with torch.no_grad():
        keys = model.user_keys(torch.tensor([1, 3]))
        expected = model.hidden(rows, model.layout_tensor(layout), keys)
        given_keys = {"collaborative_keys": keys.transpose(0, 1)}
        found = inserted(rows.tokens, segment_ids=rows.segments, **given_keys).last_hidden_state
    assert distance(found, expected, rows) <= 1e-5


class Updated(torch.nn.Module):
    """A projection with the LoRA that ``part`` holds."""

    def __init__(self, frozen: torch.nn.Module, part: torch.nn.Module, scale: float) -> None:
        super().__init__()
        self.frozen, self.part, self.scale = frozen, part, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(x) + self.scale * (x @ self.part.down.weight.T @ self.part.up.weight.T)


def test_two_sites_with_lora_equal_projections_with_lora_also_in_cached_generation(family: str) -> None:
    layout = Layout.parse("LN-tN", [*CHOICES.values(), THIN])
    model, expected = (headed(family) for _ in range(2))
    apply_layout(model, layout, lora_rank=3, lora_alpha=6.0, generator=seeded(2))
    for place, (layer, plain) in enumerate(zip(model.get_decoder().layers, expected.get_decoder().layers, strict=True)):
        lora = layer.adapters.lora["causal"]
        for part in (lora.queries, lora.values):
            part.up.weight.data.normal_(std=0.3, generator=seeded(place))
        attention, scale = plain.self_attn, 6.0 / (3, 2)[place]
        attention.q_proj = Updated(attention.q_proj, lora.queries, scale)
        attention.v_proj = Updated(attention.v_proj, lora.values, scale)
    tokens = torch.randint(3, VOCABULARY, (2, 7), generator=seeded(4))
    with torch.no_grad():
        found, wanted, frozen = (one(tokens).logits for one in (model, expected, headed(family)))
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
        assert float((found - frozen).abs().max()) > 1e-2
        cached = model(tokens[:, :4], use_cache=True)
        step = model(tokens[:, 4:5], past_key_values=cached.past_key_values, use_cache=True).logits
    torch.testing.assert_close(step, wanted[:, 4:5], atol=1e-5, rtol=1e-5)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 4
    assert all(".adapters.lora.causal." in name for name in trained)


def test_lora_has_no_place_at_the_recommendation_site(family: str) -> None:
    for text in ("SL-SS", "SSL-SSS"):
        with pytest.raises(LayoutError, match=r"layer 1 of .* has lora at recommendation"):
            apply_layout(headed(family), Layout.parse(text))


def test_named_layers_carry_the_adapters(family: str) -> None:
    model = apply_layout(tiny_model(family, 4), Layout.parse("SS-PP"), replaced=[2, 3])
    assert [hasattr(layer, "adapters") for layer in model.get_decoder().layers] == [False, True, True, False]
    spread = apply_layout(tiny_model(family, 4), Layout.parse("SS-PP"))
    assert [hasattr(layer, "adapters") for layer in spread.get_decoder().layers] == [False, True, False, True]


@pytest.mark.parametrize("sites", [2, 3])
def test_what_trains_in_closed_form(family: str, sites: int) -> None:
    model = apply_layout(headed(family), Layout.all_parallel(LAYERS, sites), bottleneck=BOTTLENECK)
    adapter = 2 * WIDTH * BOTTLENECK + WIDTH + BOTTLENECK
    router = 2 * (2 * WIDTH) + 2 if sites == 3 else 0
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == LAYERS * (sites * adapter + router)


def test_zero_start_serial_is_the_frozen_model(family: str) -> None:
    plain, rows = headed(family), toy_rows()
    tokens = rows.tokens.clamp(max=VOCABULARY - 1)
    with torch.no_grad():
        expected = plain(tokens).logits
        apply_layout(plain, Layout.all_serial(LAYERS, sites=2))
        assert torch.equal(plain(tokens).logits, expected)


class Tokens(torch.utils.data.Dataset):
    """Rows of one item each."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        tokens = torch.randint(3, VOCABULARY, (9,), generator=seeded(place))
        return {"input_ids": tokens, "labels": tokens, "segment_ids": torch.arange(9) // 3}


def training(folder: Path, **changes: object) -> TrainingArguments:
    return TrainingArguments(
        str(folder),
        max_steps=3,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        **changes,
    )


@pytest.mark.parametrize("sites", [2, 3])
def test_a_trainer_trains_only_the_adapters(tmp_path: Path, family: str, sites: int) -> None:
    layout = Layout.parse("SP-PS" if sites == 2 else "SPS-PSP")
    model = apply_layout(headed(family), layout, bottleneck=BOTTLENECK, adapter_init="normal")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    arguments = training(tmp_path, remove_unused_columns=sites == 2)
    with torch.random.fork_rng():
        Trainer(model=model, args=arguments, train_dataset=Tokens()).train()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}
    assert moved == {name for name in before if ".adapters." in name}


def loss_and_gradients(model: PreTrainedModel, sites: int) -> tuple[Tensor, dict[str, Tensor]]:
    batch = torch.utils.data.default_collate([Tokens()[place] for place in range(len(Tokens()))])
    if sites == 2:
        del batch["segment_ids"]
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("sites", [2, 3])
def test_gradient_checkpointing_changes_nothing(family: str, sites: int) -> None:
    layout = Layout.parse("LP-PS" if sites == 2 else "LPS-PLP")
    plain, saving = (
        apply_layout(headed(family), layout, adapter_init="normal", generator=seeded(2)).train() for _ in range(2)
    )
    older = not hasattr(saving, "activation_checkpointing_enable")  # of transformers
    (saving.gradient_checkpointing_enable if older else saving.activation_checkpointing_enable)()
    loss, gradients = loss_and_gradients(plain, sites)
    found, others = loss_and_gradients(saving, sites)
    assert torch.equal(found, loss)
    assert set(others) == set(gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient)


@pytest.mark.parametrize("sites", [2, 3])
def test_save_and_load(tmp_path: Path, family: str, sites: int) -> None:
    layout = Layout.parse("SP-PS" if sites == 2 else "SPS-PSP")
    options = {"bottleneck": BOTTLENECK, "parallel_reduce": "sum"}
    model = apply_layout(headed(family), layout, adapter_init="normal", generator=seeded(3), **options)
    model.save_pretrained(tmp_path)
    weights = {name: t for name, t in model.get_decoder().state_dict().items() if ".adapters." in name}
    opened = apply_layout(AutoModelForCausalLM.from_pretrained(tmp_path), layout, weights=weights, **options)
    rows = {} if sites == 2 else {"segment_ids": toy_rows().segments}
    tokens = toy_rows().tokens.clamp(max=VOCABULARY - 1)
    with torch.no_grad():
        assert torch.equal(opened(tokens, **rows).logits, model(tokens, **rows).logits)


def test_generation_with_a_cache(family: str) -> None:
    model = apply_layout(headed(family), Layout.parse("PP-SP"), adapter_init="normal", generator=seeded(1))
    prompt = torch.randint(3, VOCABULARY, (2, 5), generator=seeded())
    answers = [model.generate(prompt, max_new_tokens=6, do_sample=False, use_cache=cache) for cache in (True, False)]
    assert torch.equal(*answers)


def test_a_copy_has_its_own_adapters(family: str) -> None:
    model = apply_layout(headed(family), Layout.parse("PP-SP"), adapter_init="normal")
    other, tokens = copy.deepcopy(model), torch.tensor([[4, 5, 6]])
    for module in other.modules():
        if isinstance(module, AdaptedSites):
            module.causal_adapter.up.bias.data.normal_(generator=seeded())
    with torch.no_grad():
        before = model(tokens).logits
        assert not torch.allclose(other(tokens).logits, before)
        assert torch.equal(model(tokens).logits, before)


def test_dtype_and_mode_are_the_models(family: str) -> None:
    model = apply_layout(headed(family).to(torch.bfloat16).train(), Layout.parse("PPP-SSS"))
    assert model.training
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    rows = toy_rows()
    logits = model(rows.tokens.clamp(max=VOCABULARY - 1), segment_ids=rows.segments).logits
    assert logits.dtype is torch.bfloat16
    assert logits.isfinite().all()


def test_under_autocast(family: str) -> None:
    model = apply_layout(headed(family), Layout.parse("PPP-SSS"), adapter_init="normal")
    rows = toy_rows()
    tokens = rows.tokens.clamp(max=VOCABULARY - 1)
    with torch.no_grad():
        expected = model(tokens, segment_ids=rows.segments).logits
        with torch.autocast("cpu", torch.bfloat16):
            found = model(tokens, segment_ids=rows.segments).logits
    assert (found - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize(
    ("layout", "options", "sentence"),
    [
        (
            "SS-SS-SS",
            {},
            "has 3 groups, which the model's 2 layers cannot share evenly; name the layers with replaced=",
        ),
        ("SS-SS", {"replaced": [1]}, r"replaced=\[1\] must name 2 layers, one for each group of SS-SS"),
        ("SS-SS", {"replaced": [1, 3]}, "in rising order from 1 to 2"),
        ("SSS-SSS", {"sites": ["injection"]}, "site 'injection' is of idle, whose prefixes are made of ID vectors"),
        ("SSS-SSS", {"sites": ["user"]}, "is of ra-rec, .*--format hf` or torch"),
        ("SSS-SSS", {"sites": ["causel"]}, "no site 'causel'; did you mean causal"),
        ("SSS-SSS", {"sites": ["causal", "context"]}, "causal, context make no layer; choose causal, context, rec"),
        ("SS-SS", {"sites": ["causal", "context", "recommendation"]}, "has 2 sites a layer; give 3"),
        ("S-S", {}, "has 1 sites a layer; give 3"),
        ("SS-SS", {"activation": "swish"}, "activation='swish' is no choice: input should be 'relu', 'gelu' or 'none'"),
        ("SS-SS", {"bottleneck": 0}, "bottleneck=0 is no choice: input should be greater than or equal to 1"),
        ("SS-SS", {"weights": {}}, "disagree on layers.0.adapters.causal_adapter.down.bias"),
    ],
)
def test_rejected(layout: str, options: dict[str, object], sentence: str) -> None:
    with pytest.raises(LayoutError, match=sentence):
        apply_layout(tiny_model("opt"), Layout.parse(layout), **options)


def test_weights_of_another_width_are_rejected() -> None:
    wide = apply_layout(tiny_model("opt"), Layout.parse("SS-SS"), bottleneck=8)
    weights = {name: t for name, t in wide.get_decoder().state_dict().items() if ".adapters." in name}
    with pytest.raises(LayoutError, match="give the sites, replaced layers and bottleneck"):
        apply_layout(tiny_model("opt"), Layout.parse("SS-SS"), bottleneck=4, weights=weights)


def test_a_second_layout_is_rejected() -> None:
    model = apply_layout(tiny_model("opt"), Layout.parse("SS-SS"))
    with pytest.raises(LayoutError, match="has adapters already; load it again"):
        apply_layout(model, Layout.parse("SS-SS"))


def test_an_encoder_is_rejected() -> None:
    with pytest.raises(BackboneError, match="is an encoder"):
        apply_layout(tiny_model("bert"), Layout.parse("SS-SS"))


def test_the_context_site_needs_segments(family: str) -> None:
    model, rows = apply_layout(headed(family), Layout.parse("SSS-SSS")), toy_rows()
    tokens = rows.tokens.clamp(max=VOCABULARY - 1)
    with pytest.raises(LayoutError, match=r"pass segment_ids= of shape \(batch, tokens\), or apply the layout with"):
        model(tokens)
    with pytest.raises(LayoutError, match=r"segment_ids has shape \(2, 3\) and the row \(2, 7\); give a segment for"):
        model(tokens, segment_ids=rows.segments[:, :3])
