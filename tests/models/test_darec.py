"""SPEC 6, checks 1, 2, 5 to 8, 10 to 15: what DARec's layers may and may not attend to, on OPT and Llama configurations."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from dasearch.data import Rows
from dasearch.errors import LayoutError
from dasearch.layout import Layout
from dasearch.models.backbone import FrozenBackbone
from dasearch.models.darec import (
    CFMode,
    CollaborativeKind,
    CollabProjection,
    DALayer,
    DARec,
    DARecSettings,
    HeadBias,
    HeadRows,
    LayerInputs,
    PlainLayer,
    RecommendationSite,
    Variation,
    build_collaborative,
    gather_tokens,
)
from tests.conftest import LAYERS, VOCABULARY, WIDTH, seeded, tiny_backbone, toy_rows

USERS, ITEMS = 5, 9
SERIAL = Layout.all_serial(LAYERS)
PARALLEL = Layout.all_parallel(LAYERS)


def build(
    backbone: FrozenBackbone | str = "opt", *, every: int = 1, seed: int = 0, lora: bool = False, **settings: object
) -> DARec:
    if isinstance(backbone, str):
        backbone = tiny_backbone(backbone)
    options = DARecSettings.model_validate({"bottleneck": 4, "cf_width": 6, "adapter_init": "normal", **settings})
    sizes = {"n_users": USERS, "n_items": ITEMS, "replace_every": every}
    return DARec(backbone, options, **sizes, generator=seeded(seed), lora=lora)


def loud(model: DARec, scale: float = 0.5) -> DARec:
    """Trained parameters far from zero, so that every path shows."""
    for index, (name, parameter) in enumerate(model.trainable()):
        if "layers." in name:
            parameter.data.normal_(std=scale, generator=seeded(100 + index))
    return model.eval()


def hidden(model: DARec, rows: Rows, layout: Layout = PARALLEL, users: Tensor | None = None) -> Tensor:
    users = torch.arange(len(rows.tokens)) if users is None else users
    with torch.no_grad():
        return model.hidden(rows, model.layout_tensor(layout), model.user_keys(users))


def plain_states(backbone: FrozenBackbone, rows: Rows, special: Tensor, upto: int) -> Tensor:
    """Hidden states of the untouched frozen layers."""
    state, positions = backbone.start(backbone.embed(rows.tokens, special))
    for block in list(backbone.blocks)[:upto]:
        state = block(state, positions)
    return state


def only_causal(model: DARec) -> DARec:
    """Force the router to (1, 0)."""
    for layer in model.layers:
        if isinstance(layer, DALayer):
            layer.router.gate.bias.data = torch.tensor([1e4, -1e4])
            layer.router.gate.weight.data.zero_()
    return model


def test_check_1_base_with_zero_start_is_the_frozen_model(family: str) -> None:
    model = build(family, variation="darec-base", adapter_init="zero")
    rows = toy_rows()
    with torch.no_grad():
        expected = model.backbone.final_norm(plain_states(model.backbone, rows, model.special, LAYERS))
    real = rows.segments >= 0
    torch.testing.assert_close(hidden(model, rows)[real], expected[real], atol=1e-5, rtol=1e-5)


def test_check_2_serial_zero_start_behind_the_causal_branch_is_the_frozen_model(family: str) -> None:
    model = only_causal(build(family, adapter_init="zero"))
    rows = toy_rows()
    with torch.no_grad():
        expected = model.backbone.final_norm(plain_states(model.backbone, rows, model.special, LAYERS))
    real = rows.segments >= 0
    torch.testing.assert_close(hidden(model, rows, SERIAL)[real], expected[real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", [SERIAL, PARALLEL, Layout.parse("SPS-PSP")])
def test_check_5_context_branch_of_one_layer_sees_its_own_item_only(family: str, layout: Layout) -> None:
    model = loud(build(family, every=LAYERS))
    for layer in model.layers:
        if isinstance(layer, DALayer):
            layer.router.gate.bias.data = torch.tensor([-1e4, 1e4])
            layer.router.gate.weight.data.zero_()
    layer = model.layers[-1]
    rows = toy_rows(((3, 2, 4),))
    state = torch.randn(1, 9, WIDTH, generator=seeded(5))
    changed = state.clone()
    changed[0, 3:5] += torch.randn(2, WIDTH, generator=seeded(6))  # the second item
    before, after = (_one_layer(model, layer, s, rows, layout) for s in (state, changed))
    torch.testing.assert_close(before[0, [0, 1, 2, 5, 6, 7, 8]], after[0, [0, 1, 2, 5, 6, 7, 8]])
    assert not torch.allclose(before[0, 3:5], after[0, 3:5])


def _one_layer(model: DARec, layer: torch.nn.Module, state: Tensor, rows: Rows, layout: Layout) -> Tensor:
    _, positions = model.backbone.start(torch.zeros_like(state))
    inputs = LayerInputs(positions, rows.segments)
    with torch.no_grad():
        return layer(state, inputs, layout.tensor()[-1], model.user_keys(torch.tensor([0]))[0])


@pytest.mark.parametrize("layout", [SERIAL, PARALLEL, Layout.parse("PSP-SPS")])
def test_check_6_nothing_before_an_item_sees_it_and_all_of_the_item_does(family: str, layout: Layout) -> None:
    model = loud(build(family))
    rows = toy_rows(((3, 3, 3),))
    tokens = rows.tokens.clone()
    tokens[0, 4] = 3 + (tokens[0, 4] - 2) % (VOCABULARY - 3)  # the middle token of the second item
    before, after = hidden(model, rows, layout), hidden(model, Rows(tokens, rows.segments), layout)
    torch.testing.assert_close(before[:, :3], after[:, :3], atol=1e-5, rtol=1e-5)
    for place in range(3, 9):
        assert not torch.allclose(before[:, place], after[:, place], atol=1e-4), place


def test_check_7_printed_mask_leaks_the_future(family: str) -> None:
    rows = toy_rows(((3, 3),))
    tokens = rows.tokens.clone()
    tokens[0, 4] = 3 + (tokens[0, 4] - 2) % (VOCABULARY - 3)
    leaks = {}
    for mode in ("additive", "post_softmax"):
        model = only_causal(loud(build(family, mask_mode=mode)))
        change = hidden(model, rows) - hidden(model, Rows(tokens, rows.segments))
        leaks[mode] = change[:, :3].abs().max().item()
    assert leaks["additive"] < 1e-5
    assert leaks["post_softmax"] > 1e-3


def test_check_8_collaborative_key_reaches_only_the_context_branch(family: str) -> None:
    model = loud(build(family))
    model.cf.users.weight.data.normal_(generator=seeded(3))
    rows = toy_rows()
    users = torch.tensor([0, 1]), torch.tensor([2, 3])
    assert not torch.allclose(hidden(model, rows, users=users[0]), hidden(model, rows, users=users[1]), atol=1e-4)
    only_causal(model)
    torch.testing.assert_close(hidden(model, rows, users=users[0]), hidden(model, rows, users=users[1]))


def test_check_10_right_padding_changes_no_real_state(family: str) -> None:
    model = loud(build(family))
    rows = toy_rows(((2, 3), (3, 2)))
    padded = Rows(
        torch.nn.functional.pad(rows.tokens, (0, 6)), torch.nn.functional.pad(rows.segments, (0, 6), value=-1)
    )
    found = hidden(model, padded)
    torch.testing.assert_close(found[:, :5], hidden(model, rows), atol=1e-5, rtol=1e-5)
    assert found.isfinite().all()


def test_check_11_permuting_users_permutes_outputs(family: str) -> None:
    model = loud(build(family))
    rows, order = toy_rows(((2, 3), (3, 2), (1, 4))), torch.tensor([2, 0, 1])
    shuffled = Rows(rows.tokens[order], rows.segments[order])
    expected = hidden(model, rows, users=torch.arange(3))[order]
    torch.testing.assert_close(hidden(model, shuffled, users=order), expected, atol=1e-5, rtol=1e-5)


def step(model: DARec, layout: Layout = PARALLEL) -> None:
    """One optimiser step on everything that can be reached."""
    model.train()
    optimizer = torch.optim.SGD([p for _, p in model.trainable()], lr=0.1)
    rows, items = toy_rows(), torch.tensor([1, 4])
    bits = model.layout_tensor(layout)
    states = model.hidden(rows, bits, model.user_keys(torch.tensor([0, 1])))
    aligned = model.hidden(rows, bits, model.item_keys(items))
    loss = model.logits(states).square().mean() + model.logits(aligned).square().mean()
    if model.cf is not None:
        loss = loss + model.cf.scores(torch.tensor([0]), torch.tensor([2])).sum()
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("layout", [SERIAL, PARALLEL])
def test_check_12_frozen_parameters_stay_and_trained_ones_learn(family: str, layout: Layout) -> None:
    model = build(family)
    frozen = {name: tensor.clone() for name, tensor in model.backbone.model.state_dict().items()}
    trained = {name: parameter.detach().clone() for name, parameter in model.trainable()}
    step(model, layout)
    assert all(torch.equal(frozen[name], tensor) for name, tensor in model.backbone.model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.backbone.parameters())
    unmoved = [name for name, parameter in model.trainable() if torch.equal(trained[name], parameter)]
    assert unmoved == ["special"] or not unmoved  # [ALIGN] is not in these rows; [SEQ] is, so the pair of rows moves
    assert not unmoved


def test_check_12_down_projection_learns_only_after_the_up_projection(family: str) -> None:
    model = build(family, adapter_init="zero")
    step(model)
    adapter = model.layers[0].causal_adapter
    assert adapter.down.weight.grad is not None
    assert not adapter.down.weight.grad.any()
    assert adapter.up.weight.grad.any()
    model.zero_grad()
    step(model)
    assert adapter.down.weight.grad.any()


@pytest.mark.parametrize("kind", ["ncf", "mf"])
def test_check_13_trained_parameter_count_in_closed_form(kind: str) -> None:
    model = build(collaborative=kind)
    d, k, c = WIDTH, 4, 6
    adapter = 2 * d * k + d + k
    layer = 3 * adapter + 2 * (2 * d) + 2
    tables = (USERS + ITEMS) * c
    cf = tables + ITEMS if kind == "mf" else tables + (2 * c * c + c) + (c * (c // 2) + c // 2) + (c + c // 2 + 1)
    expected = LAYERS * layer + 2 * d + (ITEMS * d + ITEMS) + cf + 2 * (c * d + d)
    assert sum(p.numel() for _, p in model.trainable()) == expected


def test_check_13_variations() -> None:
    d, k = WIDTH, 4
    rest = 2 * d + ITEMS * d + ITEMS
    count = {v: sum(p.numel() for _, p in build(variation=v).trainable()) for v in Variation}
    assert count[Variation.LLMREC] == rest
    assert count[Variation.BASE] == rest + LAYERS * 2 * (2 * d * k + d + k)
    assert count[Variation.DAREC] == count[Variation.SERIAL] == count[Variation.BOTH_CAUSAL]


@pytest.mark.parametrize(("every", "replaced"), [(1, (0, 1, 2, 3)), (2, (1, 3)), (4, (3,))])
def test_check_14_replacement_frequency(family: str, every: int, replaced: tuple[int, ...]) -> None:
    model = loud(build(tiny_backbone(family, layers=4), every=every))
    assert model.replaced == replaced
    assert [isinstance(layer, DALayer) for layer in model.layers] == [i in replaced for i in range(4)]
    rows = toy_rows()
    first = replaced[0]
    with torch.no_grad():
        state, positions = model.backbone.start(model.backbone.embed(rows.tokens, model.special))
        inputs = LayerInputs(positions, rows.segments)
        for layer in model.layers[:first]:
            state = layer(state, inputs, torch.zeros(3), None)
        real = rows.segments >= 0
        expected = plain_states(model.backbone, rows, model.special, first)
        torch.testing.assert_close(state[real], expected[real], atol=1e-5, rtol=1e-5)


def test_replacement_frequency_must_divide() -> None:
    with pytest.raises(LayoutError, match="replace_every is 3 and the backbone has 4 layers; choose a divisor of 4"):
        build(tiny_backbone("opt", layers=4), every=3)


def test_check_15_frozen_cf_stays_and_joint_cf_learns() -> None:
    for mode, moves in ((CFMode.FROZEN, False), (CFMode.JOINT, True)):
        model = build(cf_mode=mode)
        before = copy.deepcopy(model.cf.state_dict())
        if mode is CFMode.FROZEN:
            assert not [name for name, _ in model.trainable() if name.startswith("cf.")]
            _step_without_cf_loss(model)
        else:
            step(model)
        moved = any(not torch.equal(before[name], tensor) for name, tensor in model.cf.state_dict().items())
        assert moved is moves


def _step_without_cf_loss(model: DARec) -> None:
    optimizer = torch.optim.SGD([p for _, p in model.trainable()], lr=0.1)
    states = model.hidden(toy_rows(), model.layout_tensor(PARALLEL), model.user_keys(torch.tensor([0, 1])))
    model.logits(states).square().mean().backward()
    optimizer.step()


def test_stop_grad_keeps_sequence_loss_from_cf() -> None:
    for stop, reached in ((True, False), (False, True)):
        model = loud(build(collab_stop_grad=stop))
        keys = model.user_keys(torch.tensor([0, 1]))
        model.hidden(toy_rows(), model.layout_tensor(PARALLEL), keys).square().mean().backward()
        assert (model.cf.users.weight.grad is not None) is reached


def test_alignment_rows_without_injection() -> None:
    assert build(collab_in_align=False).item_keys(torch.tensor([1])) is None
    assert build().item_keys(torch.tensor([1])).shape == (1, 1, WIDTH)
    assert build(collab_proj=CollabProjection.PER_LAYER).item_keys(torch.tensor([1])).shape == (LAYERS, 1, WIDTH)


def test_both_causal_context_branch_sees_the_past_of_other_items(family: str) -> None:
    rows = toy_rows(((3, 3),))
    tokens = rows.tokens.clone()
    tokens[0, 1] = 3 + (tokens[0, 1] - 2) % (VOCABULARY - 3)
    for variation, sees in ((Variation.DAREC, False), (Variation.BOTH_CAUSAL, True)):
        model = loud(build(family, every=LAYERS, variation=variation))
        layer = model.layers[-1]
        layer.router.gate.bias.data, layer.router.gate.weight.data = (
            torch.tensor([-1e4, 1e4]),
            torch.zeros(2, 2 * WIDTH),
        )
        state = torch.randn(1, 6, WIDTH, generator=seeded(5))
        changed = state.clone()
        changed[0, 1] += torch.randn(WIDTH, generator=seeded(6))
        before, after = (_one_layer(model, layer, s, rows, PARALLEL) for s in (state, changed))
        assert torch.allclose(before[0, 4], after[0, 4], atol=1e-5) is not sees
        torch.testing.assert_close(before[0, 0], after[0, 0]) if sees else None


def test_recommendation_adapter_site_changes_the_output() -> None:
    rows = toy_rows()
    found = [hidden(loud(build(rec_adapter_site=site)), rows) for site in RecommendationSite]
    assert not torch.allclose(*found, atol=1e-3)


@pytest.mark.parametrize("bit", range(3 * LAYERS))
def test_every_bit_of_a_layout_changes_the_output(family: str, bit: int) -> None:
    model = loud(build(family))
    flipped = list(SERIAL.z)
    flipped[bit] = 1
    change = hidden(model, toy_rows(), SERIAL) - hidden(model, toy_rows(), Layout.from_bits(flipped, sites=3))
    assert change.abs().max() > 1e-3


def test_blended_layout_is_between() -> None:
    """A layout is a tensor: one adapter half in series and half parallel is a legal input."""
    model = loud(build())
    bits = model.layout_tensor(SERIAL) + 0.5
    with torch.no_grad():
        out = model.hidden(toy_rows(), bits, model.user_keys(torch.tensor([0, 1])))
    assert out.isfinite().all()


@pytest.mark.parametrize("layout", [SERIAL, PARALLEL])
def test_bfloat16_autocast_is_close(family: str, layout: Layout) -> None:
    """Autocast gives norms in float32 beside projections in bfloat16."""
    model = loud(build(family))
    with torch.autocast("cpu", torch.bfloat16):
        found = hidden(model, toy_rows(), layout)
    expected = hidden(model, toy_rows(), layout)
    assert (found - expected).norm() < 0.05 * expected.norm()
    assert not torch.equal(found, expected)


def test_head_start() -> None:
    counts, vectors = torch.tensor([3.0] * 8 + [0.0]), torch.randn(ITEMS, WIDTH, generator=seeded())
    model = build()
    model.start_head(counts, vectors)
    torch.testing.assert_close(model.head.bias.exp().sum(), torch.tensor(1.0))
    assert model.head.bias[8] < model.head.bias[0]
    centred = vectors - vectors.mean(0)
    cosine = torch.nn.functional.cosine_similarity(model.head.weight, centred)
    torch.testing.assert_close(cosine, torch.ones(ITEMS))
    plain = build(head_bias=HeadBias.ZERO, head_rows=HeadRows.ZERO)
    plain.start_head(counts, vectors)
    assert not plain.head.bias.any()
    assert not plain.head.weight.any()


def test_layout_of_another_depth_is_rejected() -> None:
    with pytest.raises(LayoutError, match="the layout SSS has 1 layers of 3 sites and the model has 2 of 3"):
        build().layout_tensor(Layout.parse("SSS"))


def test_same_seed_same_weights_for_every_layout() -> None:
    first, second = (dict(build(seed=4).trainable()) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_gather_tokens_equals_indexing() -> None:
    states = torch.randn(3, 5, 4, generator=seeded())
    places = torch.tensor([[0, 4], [1, 1], [3, 2]])
    expected = torch.stack([states[b, places[b]] for b in range(3)])
    assert torch.equal(gather_tokens(states, places), expected)


def test_ncf_scores_by_hand() -> None:
    cf = build_collaborative(DARecSettings(cf_width=4), USERS, ITEMS, seeded())
    users, items = torch.tensor([0, 3]), torch.tensor([2, 8])
    u, i = cf.users.weight[users], cf.items.weight[items]
    inner = torch.cat([u, i], -1)
    for layer in (cf.mlp[0], cf.mlp[2]):
        inner = (inner @ layer.weight.T + layer.bias).clamp(min=0)
    expected = torch.cat([u * i, inner], -1) @ cf.out.weight.T + cf.out.bias
    torch.testing.assert_close(cf.scores(users, items), expected.squeeze(-1))
    assert torch.equal(cf.user_vectors(users), u)


def test_ncf_with_two_tables_injects_both() -> None:
    cf = build_collaborative(DARecSettings(cf_width=4, ncf_embedding="concat"), USERS, ITEMS, seeded())
    assert cf.width == cf.item_vectors(torch.tensor([0])).shape[-1] == 8
    users, items = torch.tensor([1]), torch.tensor([2])
    before = cf.scores(users, items)
    cf.users.weight.data[1, 4:] += 1  # the MLP's half
    assert not torch.equal(before, cf.scores(users, items))


def test_mf_scores_by_hand() -> None:
    cf = build_collaborative(DARecSettings(cf_width=4, collaborative=CollaborativeKind.MF), USERS, ITEMS, seeded())
    cf.bias.weight.data.normal_(generator=seeded(1))
    expected = cf.users.weight[2] @ cf.items.weight[5] + cf.bias.weight[5, 0]
    torch.testing.assert_close(cf.scores(torch.tensor(2), torch.tensor(5)), expected)


def test_plain_layers_everywhere_in_llmrec() -> None:
    assert all(isinstance(layer, PlainLayer) for layer in build(variation="llmrec").layers)
