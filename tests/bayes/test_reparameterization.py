"""SPEC 6, checks 24 and 25: gradients and maximisers against enumeration."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dasearch.bayes import ProbabilisticReparameterization, SpaceExhausted


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Landscape:
    """Random weights on bits and pairs of bits."""

    def __init__(self, d: int, seed: int = 0) -> None:
        self.linear = torch.randn(d, generator=seeded(seed), dtype=torch.float64)
        self.pairs = torch.randn(d, d, generator=seeded(seed + 1), dtype=torch.float64).triu(1)

    def __call__(self, bits: Tensor) -> Tensor:
        return bits @ self.linear + ((bits @ self.pairs) * bits).sum(-1)


def enumerated(d: int) -> Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=d)), dtype=torch.float64)


def expectation(alpha: Landscape, theta: Tensor, tau: float = 0.1) -> float:
    """The sum over all vertices, written out."""
    total = 0.0
    p = [1 / (1 + float(torch.exp(-(t - 0.5) / tau))) for t in theta]
    for z in enumerated(len(theta)):
        mass = 1.0
        for bit, q in zip(z.tolist(), p, strict=True):
            mass *= q if bit else 1 - q
        total += mass * float(alpha(z[None]))
    return total


@pytest.mark.parametrize("d", [1, 3, 6])
def test_check_24_exact_gradient_equals_finite_differences(d: int) -> None:
    alpha = Landscape(d)
    pr = ProbabilisticReparameterization(alpha, d, {})
    theta = torch.rand(2, d, generator=seeded(3), dtype=torch.float64)
    value, gradient = pr.exact_gradient(theta)
    for r in range(2):
        assert float(value[r]) == pytest.approx(expectation(alpha, theta[r]), rel=1e-10)
        for i in range(d):
            step = torch.zeros(d, dtype=torch.float64)
            step[i] = 1e-6
            slope = (expectation(alpha, theta[r] + step) - expectation(alpha, theta[r] - step)) / 2e-6
            assert float(gradient[r, i]) == pytest.approx(slope, rel=1e-5, abs=1e-7)


def test_check_24_estimated_gradient_is_unbiased() -> None:
    """The mean of many estimates is within four standard errors of the exact gradient, in each coordinate."""
    d, repeats = 5, 3000
    pr = ProbabilisticReparameterization(Landscape(d), d, {}, samples=8)
    theta = torch.rand(1, d, generator=seeded(4), dtype=torch.float64)
    _, exact = pr.exact_gradient(theta)
    value, gradient, _, _ = pr.estimate(theta.repeat(repeats, 1), seeded(5))
    error = (gradient.mean(0) - exact[0]).abs() / (gradient.std(0) / repeats**0.5)
    assert (error < 4).all(), error
    assert value.mean() == pytest.approx(expectation(Landscape(d), theta[0]), abs=4 * float(value.std()) / repeats**0.5)


def test_leave_one_out_baseline_lowers_the_variance() -> None:
    d = 5
    shifted = Landscape(d)
    pr = ProbabilisticReparameterization(lambda bits: shifted(bits) + 20, d, {}, samples=8)
    theta = torch.full((2000, d), 0.5, dtype=torch.float64)
    _, gradient, z, values = pr.estimate(theta, seeded(6))
    plain = (values[..., None] * (z - 0.5)).mean(1) / 0.1
    assert gradient.var(0).sum() < plain.var(0).sum() / 10


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), d=st.integers(2, 8))
def test_check_25_maximum_equals_enumeration(seed: int, d: int) -> None:
    alpha = Landscape(d, seed)
    best = alpha(enumerated(d)).max()
    found = ProbabilisticReparameterization(alpha, d, {}).maximise(torch.zeros(0, d, dtype=torch.float64), seeded(seed))
    assert found.value == pytest.approx(float(best))
    assert float(alpha(found.bits[None])) == pytest.approx(found.value)


def test_check_25_theta_concentrates_on_the_maximiser() -> None:
    alpha = Landscape(6, seed=2)
    found = ProbabilisticReparameterization(alpha, 6, {}).maximise(torch.zeros(0, 6, dtype=torch.float64), seeded())
    assert torch.equal(found.theta.round(), found.bits)


@pytest.mark.parametrize("seed", range(3))
def test_monte_carlo_maximum_equals_enumeration(seed: int) -> None:
    """Twelve bits are past the size that is summed, so this is the sampled path."""
    alpha = Landscape(12, seed)
    pr = ProbabilisticReparameterization(alpha, 12, {})
    assert not pr.exact
    found = pr.maximise(torch.zeros(0, 12, dtype=torch.float64), seeded(seed))
    assert found.value == pytest.approx(float(alpha(enumerated(12)).max()))


@settings(max_examples=10, deadline=None)
@given(data=st.data(), d=st.sampled_from([3, 5, 12]))
def test_excluded_vertices_and_fixed_bits_are_kept_out(data: st.DataObject, d: int) -> None:
    alpha = Landscape(d, 7)
    fixed = data.draw(st.dictionaries(st.integers(0, d - 1), st.integers(0, 1), max_size=d - 2))
    inside = [z for z in enumerated(d) if all(int(z[i]) == v for i, v in fixed.items())]
    inside.sort(key=lambda z: -float(alpha(z[None])))
    gone = data.draw(st.integers(0, min(len(inside) - 1, 20)))
    excluded = torch.stack(inside[:gone]) if gone else torch.zeros(0, d, dtype=torch.float64)
    found = ProbabilisticReparameterization(alpha, d, fixed).maximise(excluded, seeded(1))
    assert all(int(found.bits[i]) == v for i, v in fixed.items())
    assert not any(torch.equal(found.bits, z) for z in excluded)
    if d < 10:
        assert torch.equal(found.bits, inside[gone])


def test_nothing_left() -> None:
    with pytest.raises(SpaceExhausted, match="all 8 layouts"):
        ProbabilisticReparameterization(Landscape(3), 3, {}).maximise(enumerated(3), seeded())


def test_same_generator_same_answer() -> None:
    alpha = Landscape(14, 3)
    found = [
        ProbabilisticReparameterization(alpha, 14, {}).maximise(torch.zeros(0, 14, dtype=torch.float64), seeded(9))
        for _ in range(2)
    ]
    assert torch.equal(found[0].bits, found[1].bits)
    assert torch.equal(found[0].theta, found[1].theta)
