"""E4SRec against handwritten layers, on OPT and Llama configurations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dasearch.data import Rows, SequenceBatch
from dasearch.errors import LayoutError
from dasearch.layout import LOW_RANK, NONE, Choice, Layout
from dasearch.models.attention import attend_causally
from dasearch.models.backbone import FrozenBackbone
from dasearch.models.e4s_rec import E4SRec, E4SRecSettings, TwoSiteLayer
from dasearch.models.id_encoders import EncoderSettings, build_encoder
from tests.conftest import FAMILIES, LAYERS, seeded, tiny_model
from tests.models.test_choices import ALL, site

ITEMS, OPENING, CLOSE = 9, 3, 5e-5
HISTORIES = ((4, 1, 4, 7), (2, 8))
THIN = Choice("thin", "t", width=2, lora=True)
pairs = st.tuples(st.sampled_from((*ALL, LOW_RANK, THIN)), st.sampled_from(ALL))
layouts = st.lists(pairs, min_size=LAYERS, max_size=LAYERS).map(lambda groups: Layout(tuple(groups)))


def build(family: str, **changes: object) -> E4SRec:
    """With every trained number away from its start."""
    model = start(family, **changes)
    for _, parameter in model.trainable():
        parameter.data.add_(torch.randn(parameter.shape, generator=seeded(3)) * 0.3)
    return model


def start(family: str, **changes: object) -> E4SRec:
    backbone = FrozenBackbone(tiny_model(family), name=family)
    encoder = build_encoder(
        EncoderSettings(name="sasrec", width=6, history=7), 2, ITEMS, torch.zeros(ITEMS, 4), seeded()
    )
    chosen = E4SRecSettings(kind="e4s-rec", bottleneck=4, lora_rank=3, **changes)  # type: ignore[arg-type]
    return E4SRec(backbone, chosen, encoder=encoder, n_items=ITEMS, generator=seeded(1), lora=True).eval()


def batch(histories: tuple[tuple[int, ...], ...] = HISTORIES) -> SequenceBatch:
    """An opening of three tokens, then a token an item."""
    longest = max(map(len, histories))
    items = torch.tensor([[*row, *[-1] * (longest - len(row))] for row in histories])
    ends = torch.where(items >= 0, OPENING + torch.arange(longest), 0)
    tokens = torch.cat([torch.tensor([[5, 6, 7]] * len(items)), torch.full_like(items, 50)], dim=1)
    tokens = torch.where(torch.cat([torch.ones(len(items), OPENING), items >= 0], dim=1).bool(), tokens, 0)
    segments = torch.cat([torch.zeros(len(items), OPENING), torch.where(items >= 0, ends, -1)], dim=1).long()
    nobody = torch.full((len(items),), -1)
    return SequenceBatch(Rows(tokens, segments), nobody, items, ends, items, items, nobody)


def by_hand(model: E4SRec, history: tuple[int, ...], layout: Layout) -> Tensor:
    """One row, a layer after another, of the modules that the layout asks for."""
    words = model.backbone.embed(torch.tensor([[5, 6, 7]]))
    items = model.projection(model.encoder.item_embedding(torch.tensor([history])))
    state, positions = model.backbone.start(torch.cat([words, items], dim=1))
    for layer, (attention, ffn) in zip(model.layers, layout.groups, strict=True):
        assert isinstance(layer, TwoSiteLayer)
        block = layer.block
        normed = block.norm1(state)
        projected = block.project(normed, positions)
        if attention.lora:  # B A x as one matrix each, turned with the queries
            queries, values = (
                normed @ (part.up.weight[:, :rank] @ part.down.weight[:rank]).T * (model.settings.lora_alpha / rank)
                for rank in [attention.width or model.settings.lora_rank]
                for part in (layer.lora["attention"].queries, layer.lora["attention"].values)
            )
            projected = projected._replace(
                queries=projected.queries + block.queries(queries, positions),
                values=projected.values + block.values(values),
            )
        out = block.output(attend_causally(projected))
        state = state + site(attention, layer.attention_adapter, out, normed)
        normed = block.norm2(state)
        state = state + site(ffn, layer.ffn_adapter, block.ffn(normed), normed)
    found: Tensor = model.backbone.final_norm(state)[0]
    return found


@pytest.mark.parametrize("family", FAMILIES)
@given(layout=layouts)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_every_layout_by_hand(family: str, layout: Layout) -> None:
    model, numbers = build(family), layout.tensor()
    with torch.no_grad():
        found = model.hidden(batch(), numbers, batch().ends)
        last = model.states(batch(), numbers)
        for k, history in enumerate(HISTORIES):
            wanted = by_hand(model, history, layout)
            torch.testing.assert_close(found[k, : len(history)], wanted[OPENING:], rtol=CLOSE, atol=CLOSE)
            torch.testing.assert_close(last[k], wanted[-1], rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_later_items_change_no_earlier_state(family: str) -> None:
    model, numbers = build(family), Layout.parse("SP-PS").tensor()
    other = batch(((4, 1, 3, 0), (2, 8)))
    first, second = (model.hidden(one, numbers, one.ends) for one in (batch(), other))
    torch.testing.assert_close(first[0, :2], second[0, :2])
    assert not torch.allclose(first[0, 2], second[0, 2])


@pytest.mark.parametrize("family", FAMILIES)
def test_none_everywhere_is_the_variation_without_adapters(family: str) -> None:
    model, bare = build(family), build(family, variation="frozen")
    bare.load_state_dict({n: t for n, t in model.state_dict().items() if n in bare.state_dict()})
    layout = Layout.uniform(NONE, LAYERS, 2)
    with torch.no_grad():
        found = (one.hidden(batch(), layout.tensor(), batch().ends) for one in (model, bare))
        torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)
    assert model.count_trained(layout) == sum(parameter.numel() for _, parameter in bare.trainable())


@given(layout=layouts)
@settings(max_examples=10, deadline=None, derandomize=True)
def test_exactly_the_used_numbers_get_a_gradient(layout: Layout) -> None:
    model = build("opt", activation="none").train()  # no unit is dead
    model.head(model.hidden(batch(), layout.tensor(), batch().ends)).square().sum().backward()
    unused = model.inactive(layout)
    for name, parameter in model.trainable():
        mask = unused.get(name, torch.zeros_like(parameter, dtype=torch.bool))
        if parameter.grad is None:  # of LoRA in a layout without any
            assert mask.all()
            continue
        assert not parameter.grad[mask].any()
        assert parameter.grad[~mask].any() or not (~mask).any()


def test_lora_is_no_update_at_initialisation_and_changes_no_other_weight() -> None:
    """With no adapter at either site the layer equals the frozen one; so it does with untrained LoRA."""
    model = start("llama")
    with torch.no_grad():
        found = [model.states(batch(), Layout.parse(text).tensor()) for text in ("NN-NN", "LN-LN")]
    torch.testing.assert_close(*found)
    assert "lora" in {name.split(".")[2] for name, _ in model.trainable() if name.startswith("layers.")}
    bare = E4SRec(
        model.backbone, model.settings, encoder=model.encoder, n_items=ITEMS, generator=seeded(1)
    )  # without a place for it
    states = model.state_dict()
    assert all(torch.equal(tensor, states[name]) for name, tensor in bare.state_dict().items())
    with pytest.raises(LayoutError, match="LN-LN has LoRA and the model was built without"):
        bare.layout_tensor(Layout.parse("LN-LN"))
    with pytest.raises(LayoutError, match="layer 1 of NL-SS has lora at ffn"):
        model.layout_tensor(Layout.parse("NL-SS"))


def test_the_encoder_is_frozen_and_items_have_the_scale_of_tokens() -> None:
    model = start("opt")
    assert not any(name.startswith("encoder.") for name, _ in model.trainable())
    model.start(torch.ones(ITEMS), torch.zeros(ITEMS, model.backbone.width))
    vectors = model.vectors(torch.arange(ITEMS))
    torch.testing.assert_close(vectors.std(), torch.tensor(model.backbone.token_sd))
    torch.testing.assert_close(model.head.bias.exp(), torch.full((ITEMS,), 1 / ITEMS))
