"""Prefixes: against handwritten attention, and against the frozen model where no prefix is visible."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dasearch.data import Rows
from dasearch.models.adapters import ParallelReduce
from dasearch.models.backbone import FrozenBackbone
from dasearch.models.prefix import (
    Injection,
    Pool,
    Prefix,
    ProjectionSharing,
    Refine,
    build_prefixes,
    frozen_layer_means,
    inject,
    pooled,
    run_layers,
)
from tests.conftest import LAYERS, WIDTH, seeded, tiny_backbone, toy_rows

TOKENS = 3
SERIAL, PARALLEL = torch.tensor(0.0), torch.tensor(1.0)


def rows() -> Rows:
    found = toy_rows(((2, 3, 2), (3, 1)))
    return Rows(found.tokens.clamp(max=40), found.segments)


def prefix_tokens(batch: int = 2) -> Tensor:
    return torch.randn(batch, TOKENS, WIDTH, generator=seeded(3))


def injection(visible: list[bool], beside: Tensor = SERIAL, tokens: Tensor | None = None) -> Injection:
    return Injection(prefix_tokens() if tokens is None else tokens, torch.tensor(visible), beside)


def plain(backbone: FrozenBackbone) -> Tensor:
    return backbone.hidden_states(rows().tokens, rows().real)


def everywhere(one: Injection) -> dict[int, Injection]:
    return dict.fromkeys(range(LAYERS), one)


@pytest.mark.parametrize("beside", [SERIAL, PARALLEL])
@pytest.mark.parametrize("reduce", list(ParallelReduce))
def test_a_masked_out_prefix_leaves_the_frozen_model(any_family: str, beside: Tensor, reduce: ParallelReduce) -> None:
    backbone = tiny_backbone(any_family)
    found = run_layers(backbone, rows(), everywhere(injection([False] * TOKENS, beside)), reduce)
    torch.testing.assert_close(found[rows().real], plain(backbone)[rows().real], atol=1e-6, rtol=1e-6)


def test_a_prefix_of_zeros_does_not(any_family: str) -> None:
    """Even a zero key takes its share of the softmax (SPEC check 23)."""
    backbone = tiny_backbone(any_family)
    zeros = injection([True] * TOKENS, tokens=torch.zeros(2, TOKENS, WIDTH))
    assert not torch.allclose(run_layers(backbone, rows(), everywhere(zeros)), plain(backbone), atol=1e-4)


def test_no_injection_is_the_frozen_model(any_family: str) -> None:
    backbone = tiny_backbone(any_family)
    torch.testing.assert_close(run_layers(backbone, rows(), {}), plain(backbone))


def by_hand(backbone: FrozenBackbone, hidden: Tensor, tokens: Tensor, visible: Tensor, beside: bool) -> Tensor:
    """One layer with explicit softmaxes, a row, a head and a query at a time."""
    block = backbone.all_blocks[0]
    positions = backbone.start(backbone.embed(rows().tokens))[1]
    q, k, v = block.project(block.norm1(hidden), positions)
    pk, pv = block.project_keys(block.norm1(tokens), None)
    out = torch.zeros_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for t in range(q.shape[2]):
                seen = rows().real[b] & ((torch.arange(q.shape[2]) <= t) | (not backbone.causal))
                own = k[b, h][seen] @ q[b, h, t]
                side = pk[b, h][visible] @ q[b, h, t]
                if beside:
                    mine = torch.softmax(own, 0) @ v[b, h][seen]
                    theirs = torch.softmax(side, 0) @ pv[b, h][visible]
                    out[b, h, t] = (mine + theirs) / 2
                else:
                    values = torch.cat([pv[b, h][visible], v[b, h][seen]])
                    out[b, h, t] = torch.softmax(torch.cat([side, own]), 0) @ values
    return block.finish(hidden, block.output(out.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("beside", [False, True])
def test_injection_by_hand(any_family: str, beside: bool) -> None:
    backbone = tiny_backbone(any_family)
    hidden, positions = backbone.start(backbone.embed(rows().tokens))
    visible = torch.tensor([False, True, True])
    one = Injection(prefix_tokens(), visible, PARALLEL if beside else SERIAL)
    found = inject(backbone.all_blocks[0], hidden, positions, backbone.mask(rows().real), one)
    expected = by_hand(backbone, hidden, one.tokens, visible, beside)
    torch.testing.assert_close(found[rows().real], expected[rows().real], atol=1e-5, rtol=1e-5)


def test_a_placement_between_blends(any_family: str) -> None:
    """Placement is a tensor, so that layouts can be blended or batched."""
    backbone = tiny_backbone(any_family)
    found = [
        run_layers(backbone, rows(), {LAYERS - 1: injection([True] * TOKENS, torch.tensor(z))}) for z in (0.0, 0.5, 1.0)
    ]
    assert not torch.allclose(found[0], found[2], atol=1e-4)
    assert not torch.allclose(found[1], found[0], atol=1e-4)


def make(refine: Refine, tokens: int = TOKENS) -> Prefix:
    found = build_prefixes(
        1,
        id_width=5,
        width=WIDTH,
        tokens=tokens,
        refine=refine,
        sharing=ProjectionSharing.PER_LAYER,
        generator=seeded(),
    )[0]
    assert isinstance(found, Prefix)
    if refine is Refine.GATE:
        torch.nn.init.normal_(found.gate.weight, generator=seeded(1))
    return found


def ids(vectors: int = 1) -> Tensor:
    return torch.randn(2, vectors, 5, generator=seeded(2))


def test_gate_by_hand() -> None:
    """D_t = g_t p + (1 - g_t) c_t, g_t = sigmoid(w [c_t; p] + b)."""
    prefix, found = make(Refine.GATE), []
    for b in range(2):
        p = prefix.projection.weight @ ids()[b, 0] + prefix.projection.bias
        for c in prefix.learned:
            g = torch.sigmoid(prefix.gate.weight[0] @ torch.cat([c, p]) + prefix.gate.bias[0])
            found.append(g * p + (1 - g) * c)
    torch.testing.assert_close(prefix(ids(), SERIAL), torch.stack(found).view(2, TOKENS, WIDTH))
    middle = (prefix.projection(ids()) + prefix.learned) / 2
    torch.testing.assert_close(prefix(ids(), PARALLEL), middle)


def test_an_open_gate_injects_the_projection(any_family: str) -> None:
    """SPEC check 22: g = 1 and T = 1 equal injecting p."""
    backbone, prefix = tiny_backbone(any_family), make(Refine.GATE, tokens=1)
    torch.nn.init.zeros_(prefix.gate.weight)
    torch.nn.init.constant_(prefix.gate.bias, 100.0)
    opened = Injection(prefix(ids(), SERIAL), torch.tensor([True]), SERIAL)
    direct = Injection(prefix.projection(ids()), torch.tensor([True]), SERIAL)
    torch.testing.assert_close(
        run_layers(backbone, rows(), everywhere(opened)), run_layers(backbone, rows(), everywhere(direct))
    )


def test_ways_to_combine_a_prefix() -> None:
    assert make(Refine.NONE)(ids(), SERIAL).shape == (2, 1, WIDTH)
    assert make(Refine.NONE)(ids(4), SERIAL).shape == (2, 4, WIDTH)
    joined = make(Refine.CONCAT)
    found = joined(ids(4), SERIAL)
    torch.testing.assert_close(found[:, TOKENS:], joined.projection(ids(4)))
    torch.testing.assert_close(found[0, :TOKENS], joined.learned)
    scalar = make(Refine.SCALAR_GATE)
    torch.testing.assert_close(scalar(ids(), SERIAL), (scalar.projection(ids()) + scalar.learned) / 2)
    assert "gate" not in dict(scalar.named_modules())


def test_a_shared_projection_is_one() -> None:
    shared = build_prefixes(
        3, id_width=5, width=WIDTH, tokens=2, refine=Refine.CONCAT, sharing=ProjectionSharing.SHARED, generator=seeded()
    )
    assert sum(p.numel() for p in shared.parameters()) == 3 * 2 * WIDTH + 5 * WIDTH + WIDTH


def test_pools() -> None:
    hidden = torch.randn(2, rows().tokens.shape[1], WIDTH, generator=seeded())
    length = rows().real.sum(1)
    for b in range(2):
        last, mean = hidden[b, length[b] - 1], hidden[b, : length[b]].mean(0)
        torch.testing.assert_close(pooled(hidden, rows(), Pool.LAST, causal=False)[b], last)
        torch.testing.assert_close(pooled(hidden, rows(), Pool.MEAN, causal=True)[b], mean)
        torch.testing.assert_close(pooled(hidden, rows(), Pool.AUTO, causal=True)[b], last)
        torch.testing.assert_close(pooled(hidden, rows(), Pool.AUTO, causal=False)[b], mean)
        torch.testing.assert_close(pooled(hidden, rows(), Pool.FIRST, causal=True)[b], hidden[b, 0])


def test_frozen_means_are_the_layers_own_inputs(any_family: str) -> None:
    backbone = tiny_backbone(any_family)
    found = frozen_layer_means(backbone, rows(), [1])
    state = list(backbone.layer_states(rows().tokens, rows().real))[1]
    torch.testing.assert_close(found[1, 0], state[1][rows().real[1]].mean(0))
