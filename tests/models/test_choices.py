"""Every choice of a site against a plain reference module of the layout, on OPT and Llama configurations."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dasearch.data import Rows
from dasearch.errors import LayoutError
from dasearch.layout import CHOICES, LOW_RANK, NONE, Choice, Join, Layout
from dasearch.models import darec as darec_module
from dasearch.models.adapters import AdapterInit, BottleneckAdapter, ParallelReduce, place
from dasearch.models.attention import Keys, Projected, attend, attend_causally
from dasearch.models.backbone import DecoderBlock
from dasearch.models.darec import DALayer, DARec, LayerInputs
from dasearch.models.lora import LoRA
from dasearch.models.stacking import Flat, StackedParameters
from tests.conftest import LAYERS, seeded, toy_rows
from tests.models.test_darec import build, hidden, loud, plain_states

NARROW = Choice("narrow", "n", width=2)
NARROW_PARALLEL = Choice("narrow-parallel", "q", parallel=True, width=3)
NARROW_SUM = Choice("narrow-sum", "a", parallel=True, width=1, join=Join.SUM)
THIN = Choice("thin", "t", lora=True, width=2)
ADAPTERS = (*(choice for choice in CHOICES.values() if not choice.lora), NARROW, NARROW_PARALLEL, NARROW_SUM)
ALL = (*ADAPTERS, LOW_RANK, THIN)
groups = st.tuples(st.sampled_from(ALL), st.sampled_from(ALL), st.sampled_from(ADAPTERS))
layouts = st.lists(groups, min_size=LAYERS, max_size=LAYERS).map(lambda found: Layout(tuple(found)))
ALPHA, RANK = 3.0, 5


def made(family: str = "opt", seed: int = 0, **settings: object) -> DARec:
    """With LoRA for layouts that choose it."""
    return build(family, seed=seed, lora=True, lora_alpha=ALPHA, lora_rank=RANK, **settings)


class Updated(nn.Module):
    """A frozen projection and LoRA's update beside it, as Hu et al. 2022 draw them."""

    def __init__(self, frozen: nn.Module, part: nn.Module, rank: int) -> None:
        super().__init__()
        self.frozen, self.scale = frozen, ALPHA / rank
        self.a, self.b = part.down.weight[:rank].detach(), part.up.weight[:, :rank].detach()

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(x) + self.scale * (x @ self.a.T @ self.b.T)


def with_lora(block: DecoderBlock, choice: Choice, lora: LoRA) -> DecoderBlock:
    """The frozen block, or one whose query and value projections are updated."""
    if not choice.lora:
        return block
    found = copy.deepcopy(block)
    attention = found.layer.self_attn
    attention.q_proj = Updated(attention.q_proj, lora.queries, choice.width or RANK)
    attention.v_proj = Updated(attention.v_proj, lora.values, choice.width or RANK)
    return found


def update(adapter: nn.Module, choice: Choice, x: Tensor) -> Tensor:
    """Only the adapter's first units, written out."""
    units = choice.width or len(adapter.down.weight)
    inner = (x @ adapter.down.weight[:units].T + adapter.down.bias[:units]).clamp(min=0)
    return inner @ adapter.up.weight[:, :units].T + adapter.up.bias


def site(
    choice: Choice, adapter: nn.Module, out: Tensor, seen: Tensor, mean: bool = True, residual: bool = True
) -> Tensor:
    """A reference module built from the layout."""
    if not choice.active or choice.lora:
        return out
    if not choice.parallel:
        return out + update(adapter, choice, out)
    joined = out + update(adapter, choice, seen)
    if choice.join is Join.SUM:
        return joined
    joined = joined + seen if residual else joined
    return joined / 2 if mean else joined


@pytest.mark.parametrize("choice", ALL, ids=lambda choice: choice.name)
@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("residual", [True, False])
def test_place_by_hand(choice: Choice, mean: bool, residual: bool) -> None:
    adapter = BottleneckAdapter(6, bottleneck=4, init=AdapterInit.NORMAL, generator=seeded())
    for parameter in adapter.parameters():
        parameter.data.normal_(generator=seeded(9))
    out, seen = torch.randn(2, 2, 5, 6, generator=seeded(1))
    reduce = ParallelReduce.MEAN if mean else ParallelReduce.SUM
    numbers = Layout(((choice,),)).tensor()[0, 0]
    found = place(out, seen, adapter, numbers, reduce=reduce, residual=residual)
    torch.testing.assert_close(found, site(choice, adapter, out, seen, mean, residual))
    if not choice.active or choice.lora:
        assert torch.equal(found, out)


def seen_by_context(model: DARec, inputs: LayerInputs, projected: Projected, key: Keys) -> Tensor:
    """Attention inside each item, or of the causal form, and to the key in either."""
    if model.settings.variation != "both-causal":
        return inputs.blocks.attend(projected, key)
    m = projected.queries.shape[2]
    mask = torch.ones(m, m + 1, dtype=torch.bool).tril(1)  # the key comes first
    return attend(projected.with_key(key), mask.expand(len(projected.queries), -1, -1))


def by_hand(model: DARec, rows: Rows, layout: Layout, users: Tensor) -> Tensor:
    """DARec's layer as the layout reads, branch by branch."""
    state, positions = model.backbone.start(model.backbone.embed(rows.tokens, model.special))
    inputs, key = LayerInputs(positions, rows.segments), model.user_keys(users)
    assert key is not None
    for layer, (causal, context, recommendation) in zip(model.layers, layout.groups, strict=True):
        assert isinstance(layer, DALayer)
        block = layer.block
        normed = block.norm1(state)
        projected = with_lora(block, causal, layer.lora["causal"]).project(normed, positions)
        joined = site(causal, layer.causal_adapter, block.output(attend_causally(projected)), normed)
        if context.active:
            projected = with_lora(block, context, layer.lora["context"]).project(normed, positions)
            seen = block.output(seen_by_context(model, inputs, projected, block.project_key(key[0])))
            other = site(context, layer.context_adapter, seen, normed)
            weights = torch.softmax(layer.router.gate(torch.cat([joined, other], dim=-1)), dim=-1)
            joined = weights[..., :1] * joined + weights[..., 1:] * other
        state = state + joined
        normed = block.norm2(state)
        state = state + site(recommendation, layer.recommendation_adapter, block.ffn(normed), normed)
    return model.backbone.final_norm(state)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(layouts, st.sampled_from(["opt", "llama"]))
def test_any_layout_equals_its_reference(layout: Layout, family: str) -> None:
    model, rows = loud(made(family)), toy_rows()
    users, real = torch.arange(len(rows.tokens)), rows.segments >= 0
    with torch.no_grad():
        expected = by_hand(model, rows, layout, users)
    torch.testing.assert_close(hidden(model, rows, layout)[real], expected[real], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("variation", ["darec", "both-causal"])
@pytest.mark.parametrize("path", ["training", "some tokens", "compiled"])
def test_every_path_through_a_layer_has_lora(
    family: str, variation: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks over the whole row, selected states, and the functions that torch.compile is given."""
    monkeypatch.setattr(darec_module, "compiled", lambda function: function)
    model, rows, layout = loud(made(family, variation=variation)), toy_rows(), Layout.parse("LtN-tLS", ALL)
    users, real = torch.arange(len(rows.tokens)), rows.segments >= 0
    at = torch.tensor([[1, 3], [0, 2]]) if path == "some tokens" else None
    with torch.no_grad():
        expected = by_hand(model, rows, layout, users)
    if path == "compiled":
        model.compile_layers()
    found = model.hidden(rows, model.layout_tensor(layout), model.user_keys(users), at)
    chosen = (found[real], expected[real]) if at is None else (found, expected[torch.arange(2)[:, None], at])
    torch.testing.assert_close(*chosen, atol=2e-5, rtol=1e-4)


def test_lora_is_no_update_at_initialisation(family: str) -> None:
    """B is zero: LoRA at both attention sites is what an untrained context branch without adapters is."""
    model, rows = made(family), toy_rows()
    causal = Layout.parse("-".join(["LNN"] * LAYERS))
    none = Layout.uniform(NONE, LAYERS)
    assert torch.equal(hidden(model.eval(), rows, causal), hidden(model, rows, none))
    assert not torch.equal(hidden(loud(model), rows, causal), hidden(model, rows, none))


def test_lora_does_not_change_other_initial_weights(family: str) -> None:
    plain, model, rows = build(family), made(family), toy_rows()
    without, tensors = plain.own_tensors(), model.own_tensors()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in without.items())
    added = set(tensors) - set(without)
    assert added == {
        f"layers.{layer}.lora.{site}.{part}.{side}.weight"
        for layer in range(LAYERS)
        for site in ("causal", "context")
        for part in ("queries", "values")
        for side in ("down", "up")
    }
    assert torch.equal(hidden(plain.eval(), rows), hidden(model.eval(), rows))
    again = made(family).own_tensors()
    assert all(torch.equal(tensors[name], again[name]) for name in added)
    for name in added:
        assert bool(tensors[name].any()) is (".down." in name)


def test_what_lora_trains_in_closed_form(family: str) -> None:
    model = made(family)
    causal, none = Layout.parse("-".join(["LNN"] * LAYERS)), Layout.uniform(NONE, LAYERS)
    values = {"opt": 32, "llama": 16}[family]  # Llama's heads share keys and values by two
    assert model.count_trained(causal) - model.count_trained(none) == LAYERS * RANK * (32 + 32 + 32 + values)
    thin = Layout.parse("-".join(["tNN"] * LAYERS), ALL)
    assert model.count_trained(thin) - model.count_trained(none) == LAYERS * 2 * (32 + 32 + 32 + values)


def test_lora_at_an_unsupported_site_is_rejected() -> None:
    with pytest.raises(LayoutError, match=r"layer 2 of SSS-SSL has lora at recommendation; LoRA changes queries"):
        made().layout_tensor(Layout.parse("SSS-SSL"))
    with pytest.raises(LayoutError, match=r"SSS-LSS has LoRA and the model was built without"):
        build().layout_tensor(Layout.parse("SSS-LSS"))
    wide = Choice("wide", "w", lora=True, width=6)
    with pytest.raises(LayoutError, match=r"'wide' has rank 6 and the model's LoRA 5; set model.lora_rank=6"):
        made().layout_tensor(Layout.parse("SSS-wSS", [*ALL, wide]))


def test_none_everywhere_is_the_frozen_model_without_an_adapter_parameter(family: str) -> None:
    model, rows, layout = loud(build(family)), toy_rows(), Layout.uniform(NONE, LAYERS)
    with torch.no_grad():
        expected = model.backbone.final_norm(plain_states(model.backbone, rows, model.special, LAYERS))
    real = rows.segments >= 0
    assert torch.equal(hidden(model, rows, layout)[real], hidden(build(family, variation="llmrec"), rows, layout)[real])
    torch.testing.assert_close(hidden(model, rows, layout)[real], expected[real], atol=1e-6, rtol=1e-6)
    assert not [
        name
        for name in model.active_tensors(layout)
        if name.startswith(("layers.", "user_projection.", "item_projection."))
    ]
    cf = sum(parameter.numel() for parameter in model.cf.parameters())
    assert model.count_trained(layout) == build(family, variation="llmrec").count_trained(layout) + cf


@settings(max_examples=15, deadline=None, derandomize=True)
@given(layouts)
def test_exactly_the_used_numbers_get_a_gradient(layout: Layout) -> None:
    model, rows = loud(made()), toy_rows()
    model.train()
    keys = model.user_keys(torch.arange(len(rows.tokens)))
    model.hidden(rows, model.layout_tensor(layout), keys).square().sum().backward()
    unused = model.inactive(layout)
    for name, parameter in model.trainable():
        if name.startswith("layers."):
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            mask = unused.get(name, torch.zeros_like(parameter, dtype=torch.bool))
            assert not gradient[mask].any(), name
            if name.endswith(("up.bias", "values.up.weight")) and not mask.any():
                assert gradient.any(), name


@settings(max_examples=15, deadline=None, derandomize=True)
@given(layouts)
def test_exactly_the_active_numbers_are_saved(layout: Layout) -> None:
    model, rows = loud(made()), toy_rows()
    kept = {name: tensor.clone() for name, tensor in model.active_tensors(layout).items()}
    trained = {name for name, _ in model.trainable()}
    assert sum(tensor.numel() for name, tensor in kept.items() if name in trained) == model.count_trained(layout)
    opened = made(seed=5)
    opened.load_active(kept, layout)
    assert torch.equal(hidden(opened.eval(), rows, layout), hidden(model, rows, layout))


def test_tensors_of_another_layout_are_rejected() -> None:
    model = build()
    with pytest.raises(ValueError, match="lacks or adds item_projection"):
        model.load_active(model.active_tensors(Layout.uniform(NONE, LAYERS)), Layout.all_serial(LAYERS))


def test_a_choice_wider_than_the_models_adapters_is_rejected() -> None:
    wide = Choice("wide", "w", width=8)
    with pytest.raises(LayoutError, match=r"'wide' has 8 units and the model's adapters 4; set model.bottleneck=8"):
        build().layout_tensor(Layout.uniform(wide, LAYERS))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.lists(layouts, min_size=2, max_size=4))
def test_stacked_candidates_equal_separate_ones(chosen: list[Layout]) -> None:
    models = [loud(made(seed=seed)) for seed in range(len(chosen))]
    rows, k = toy_rows(), len(chosen)
    users, real = torch.arange(len(rows.tokens)), rows.segments >= 0
    alone = [hidden(model, rows, layout) for model, layout in zip(models, chosen, strict=True)]
    flat = Flat(models[0])
    lines = [flat.line(dict(model.named_parameters())) for model in models]
    together = models[0]
    StackedParameters(together, flat, lines)
    with torch.no_grad():
        keys = together.user_keys(users.repeat(k))
        found = together.hidden(Rows.together([rows] * k), together.layout_tensors(chosen), keys)
    for own, expected in zip(found.chunk(k), alone, strict=True):
        torch.testing.assert_close(own[real], expected[real], atol=1e-5, rtol=1e-5)
