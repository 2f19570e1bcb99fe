"""SPEC 6, checks 3 and 4: placement and router by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dasearch.layout import CHOICES, Choice, Layout
from dasearch.models.adapters import Activation, AdapterInit, BottleneckAdapter, MaskRouter, ParallelReduce, place
from tests.conftest import seeded

WIDTH = 6


def numbers(choice: Choice) -> torch.Tensor:
    """A site's numbers, as `place` reads them."""
    return Layout(((choice,),)).tensor()[0, 0]


SERIAL, PARALLEL = (numbers(CHOICES[name]) for name in ("serial", "parallel"))


@pytest.fixture
def adapter() -> BottleneckAdapter:
    return BottleneckAdapter(WIDTH, bottleneck=3, init=AdapterInit.NORMAL, generator=seeded())


@pytest.fixture
def states() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 5, WIDTH, generator=seeded(1)), torch.randn(2, 5, WIDTH, generator=seeded(2))


def by_hand(adapter: BottleneckAdapter, x: torch.Tensor) -> torch.Tensor:
    inner = (x @ adapter.down.weight.T + adapter.down.bias).clamp(min=0)
    return inner @ adapter.up.weight.T + adapter.up.bias


def test_serial_by_hand(adapter: BottleneckAdapter, states: tuple[torch.Tensor, torch.Tensor]) -> None:
    out, seen = states
    torch.testing.assert_close(place(out, seen, adapter, SERIAL), out + by_hand(adapter, out))


def test_parallel_by_hand(adapter: BottleneckAdapter, states: tuple[torch.Tensor, torch.Tensor]) -> None:
    out, seen = states
    expected = (out + seen + by_hand(adapter, seen)) / 2
    torch.testing.assert_close(place(out, seen, adapter, PARALLEL), expected)


def test_he_et_al_form(adapter: BottleneckAdapter, states: tuple[torch.Tensor, torch.Tensor]) -> None:
    out, seen = states
    found = place(out, seen, adapter, PARALLEL, reduce=ParallelReduce.SUM, residual=False)
    torch.testing.assert_close(found, out + by_hand(adapter, seen))


def test_zero_start_parallel_is_the_mean_with_the_input(states: tuple[torch.Tensor, torch.Tensor]) -> None:
    """SPEC 1.5: with the printed form a parallel adapter does not start at the pre-trained layer."""
    out, seen = states
    zero = BottleneckAdapter(WIDTH, bottleneck=3, generator=seeded())
    torch.testing.assert_close(place(out, seen, zero, PARALLEL), (out + seen) / 2)
    torch.testing.assert_close(place(out, seen, zero, SERIAL), out)


def test_no_activation_is_linear() -> None:
    linear = BottleneckAdapter(
        WIDTH, bottleneck=3, activation=Activation.NONE, init=AdapterInit.NORMAL, generator=seeded()
    )
    x, y = torch.randn(2, 4, WIDTH, generator=seeded(3))
    torch.testing.assert_close(linear(x + y), linear(x) + linear(y) - linear(torch.zeros_like(x)))


def test_gelu_is_torchs(adapter: BottleneckAdapter) -> None:
    x = torch.randn(4, WIDTH, generator=seeded(3))
    gelu = BottleneckAdapter(
        WIDTH, bottleneck=3, activation=Activation.GELU, init=AdapterInit.NORMAL, generator=seeded()
    )
    inner = x @ gelu.down.weight.T
    expected = (0.5 * inner * (1 + torch.erf(inner / 2**0.5))) @ gelu.up.weight.T
    torch.testing.assert_close(gelu(x), expected)


def test_parameter_count_of_the_paper() -> None:
    """SPEC 1.5: bottleneck 64 at width 768 has 99,136 parameters, 36 of them 3.57M."""
    count = sum(p.numel() for p in BottleneckAdapter(768, generator=seeded()).parameters())
    assert count == 99_136
    assert round(36 * count / 1e6, 2) == 3.57


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 50))
def test_router_is_a_softmax_over_both_branches(seed: int, scale: float) -> None:
    router = MaskRouter(WIDTH)
    torch.nn.init.normal_(router.gate.weight, std=scale, generator=seeded(seed))
    q, p = torch.randn(2, 3, 4, WIDTH, generator=seeded(seed + 1))
    beta = torch.softmax(router.gate(torch.cat([q, p], dim=-1)), dim=-1)
    torch.testing.assert_close(router.share(q, p), beta[..., :1], atol=1e-4, rtol=1e-4)  # logits of hundreds in float32
    torch.testing.assert_close(router(q, p), beta[..., :1] * q + beta[..., 1:] * p, atol=1e-3, rtol=1e-4)


def test_router_starts_at_one_half() -> None:
    q, p = torch.randn(2, 3, 4, WIDTH, generator=seeded())
    torch.testing.assert_close(MaskRouter(WIDTH)(q, p), (q + p) / 2)


def test_router_starts_at_the_given_weight() -> None:
    q, p = torch.randn(2, 3, 4, WIDTH, generator=seeded())
    torch.testing.assert_close(MaskRouter(WIDTH, 0.9)(q, p), 0.9 * q + 0.1 * p)
