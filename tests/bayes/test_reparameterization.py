"""SPEC 6, checks 24 and 25: gradients and maximisers against enumeration."""

from __future__ import annotations

import math

import pytest
import torch
from botorch.acquisition.analytic import UpperConfidenceBound
from botorch.models import SingleTaskGP
from botorch.optim import optimize_acqf
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dasearch.bayes import (
    Choices,
    ProbabilisticReparameterization,
    SpaceExhausted,
    Surrogate,
    probabilities_of,
    propose,
    propose_batch,
)
from tests.bayes.spaces import Function, Landscape, every, layered, seeded

NOTHING = torch.zeros(0, 1, dtype=torch.float64)


def reparameterized(
    choices: Choices, seed: int = 0, fixed: dict[int, int] | None = None, **options: int
) -> ProbabilisticReparameterization:
    landscape = Function(Landscape(choices, seed))
    return ProbabilisticReparameterization(landscape, choices, fixed, generator=seeded(seed), **options)


def none(choices: Choices) -> Tensor:
    return torch.zeros(0, choices.d, dtype=torch.float64)


def expectation(choices: Choices, landscape: Landscape, theta: Tensor, tau: float = 0.1) -> float:
    """The sum over all vertices, written out."""
    total, at = 0.0, 0
    chances = []
    for size in choices.sizes:
        weights = torch.cat([torch.ones(1), torch.exp((theta[at : at + size - 1] - 0.5) / tau)])
        chances.append((weights / weights.sum()).tolist())
        at += size - 1
    for z in every(choices):
        mass = 1.0
        for code, chance in zip(z.int().tolist(), chances, strict=True):
            mass *= chance[code]
        total += mass * float(landscape(z[None]))
    return total


SPACES = [Choices.binary(1), Choices.binary(6), Choices((2, 3, 4)), Choices((3,))]


def test_two_choices_have_the_papers_probability() -> None:
    theta = torch.rand(3, 4, generator=seeded(), dtype=torch.float64)
    found = reparameterized(Choices.binary(4)).probabilities(theta)
    torch.testing.assert_close(found[..., 1], torch.sigmoid((theta - 0.5) / 0.1))


@pytest.mark.parametrize("choices", SPACES)
def test_check_24_exact_gradient_equals_finite_differences(choices: Choices) -> None:
    landscape = Landscape(choices)
    theta = torch.rand(2, len(choices.columns), generator=seeded(3), dtype=torch.float64)
    value, gradient = reparameterized(choices).exact_gradient(theta)
    for r in range(2):
        assert float(value[r]) == pytest.approx(expectation(choices, landscape, theta[r]), rel=1e-6)
        for i in range(theta.shape[1]):
            step = torch.zeros(theta.shape[1], dtype=torch.float64)
            step[i] = 1e-5
            above, below = (expectation(choices, landscape, theta[r] + sign * step) for sign in (1, -1))
            assert float(gradient[r, i]) == pytest.approx((above - below) / 2e-5, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("choices", [Choices.binary(5), Choices((2, 3, 4))])
def test_check_24_estimated_gradient_is_unbiased(choices: Choices) -> None:
    """The mean of many estimates is within four standard errors of the exact gradient, in each coordinate."""
    repeats = 3000
    pr = reparameterized(choices, samples=8)
    theta = torch.rand(1, len(choices.columns), generator=seeded(4), dtype=torch.float64)
    exact_value, exact = pr.exact_gradient(theta)
    value, gradient, _, _ = pr.estimate(theta.repeat(repeats, 1))
    error = (gradient.mean(0) - exact[0]).abs() / (gradient.std(0) / repeats**0.5)
    assert (error < 4).all(), error
    assert float(value.mean()) == pytest.approx(float(exact_value), abs=4 * float(value.std()) / repeats**0.5)


def test_leave_one_out_baseline_lowers_the_variance() -> None:
    choices = Choices.binary(5)
    landscape = Landscape(choices)
    shifted = Function(lambda codes: landscape(codes) + 20)
    pr = ProbabilisticReparameterization(shifted, choices, generator=seeded(6), samples=8)
    theta = torch.full((2000, 5), 0.5, dtype=torch.float64)
    _, gradient, z, values = pr.estimate(theta)
    plain = (values[..., None] * (z - 0.5)).mean(1) / 0.1
    assert gradient.var(0).sum() < plain.var(0).sum() / 10


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), sizes=st.lists(st.integers(2, 4), min_size=1, max_size=5))
def test_check_25_maximum_equals_enumeration(seed: int, sizes: list[int]) -> None:
    choices = Choices(tuple(sizes))
    landscape = Landscape(choices, seed)
    found = reparameterized(choices, seed).maximise(none(choices))
    assert found.value == pytest.approx(float(landscape(every(choices)).max()))
    assert float(landscape(found.codes[None])) == pytest.approx(found.value)


def test_check_25_the_ascent_ends_at_the_maximiser() -> None:
    choices = Choices.binary(6)
    found = reparameterized(choices, seed=2).maximise(none(choices))
    assert torch.equal(found.probabilities.round(), found.codes)
    assert float(found.probabilities.max()) <= torch.tensor(5.0).sigmoid()  # theta in [0, 1], tau .1


@pytest.mark.parametrize("sizes", [(2,) * 12, (2, 3, 4, 2, 3, 4, 3, 2)])
@pytest.mark.parametrize("seed", [1, 3, 4])
def test_probabilities_are_those_of_the_restart_nearest_to_the_maximum(sizes: tuple[int, ...], seed: int) -> None:
    """Without a step, the ascents end where they start: .2 above 1/2 at the choices of the best raw points."""
    choices = Choices(sizes)
    pr = reparameterized(choices, seed, restarts=3, steps=0)
    asked: list[Tensor] = []
    values = pr.values
    pr.values = lambda codes: asked.append(codes) or values(codes)  # type: ignore[method-assign, func-returns-value]
    found = pr.maximise(none(choices))
    starts = asked[0][values(asked[0]).topk(3).indices]
    assert not (starts == found.codes).all(1).any()
    chosen = starts[:, choices.column_variable] == choices.column_choice
    p = pr.probabilities(torch.where(chosen, 0.7, 0.3).double())
    likely = [math.prod(float(own[i, int(code)]) for i, code in enumerate(found.codes)) for own in p]
    nearest = p[max(range(3), key=likely.__getitem__)]
    torch.testing.assert_close(found.probabilities, nearest[choices.column_variable, choices.column_choice])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_probabilities_of_one_variable_are_those_of_all(theta: list[float]) -> None:
    choices = Choices((len(theta) + 1,))
    every_choice = reparameterized(choices).probabilities(torch.tensor([theta], dtype=torch.float64))[0, 0]
    assert probabilities_of(theta) == pytest.approx(every_choice[1:].tolist())


@pytest.mark.parametrize("choices", [Choices.binary(12), Choices((3,) * 8)])
@pytest.mark.parametrize("seed", range(3))
def test_monte_carlo_maximum_equals_enumeration(choices: Choices, seed: int) -> None:
    """With the restarts and steps of Daulton et al., on landscapes without any smoothness."""
    pr = reparameterized(choices, seed, restarts=20, steps=200)
    assert not pr.exact
    best = float(Landscape(choices, seed)(every(choices)).max())
    assert pr.maximise(none(choices)).value == pytest.approx(best)


@settings(max_examples=10, deadline=None)
@given(data=st.data(), choices=st.sampled_from([Choices.binary(5), Choices((3, 2, 3)), Choices.binary(12)]))
def test_excluded_vertices_and_fixed_choices_are_kept_out(data: st.DataObject, choices: Choices) -> None:
    landscape = Landscape(choices, 7)
    held = data.draw(st.sets(st.integers(0, choices.d - 1), max_size=choices.d - 2))
    fixed = {i: data.draw(st.integers(0, choices.sizes[i] - 1)) for i in held}
    inside = [z for z in every(choices) if all(int(z[i]) == v for i, v in fixed.items())]
    inside.sort(key=lambda z: -float(landscape(z[None])))
    gone = data.draw(st.integers(0, min(len(inside) - 1, 20)))
    excluded = torch.stack(inside[:gone]) if gone else none(choices)
    pr = reparameterized(choices, 7, fixed)
    found = pr.maximise(excluded)
    assert all(int(found.codes[i]) == v for i, v in fixed.items())
    assert not any(torch.equal(found.codes, z) for z in excluded)
    if pr.exact:
        assert torch.equal(found.codes, inside[gone])


@pytest.mark.parametrize("choices", [Choices.binary(3), Choices.binary(11), Choices((3,) * 7)])
def test_zero_or_one_vertex_left(choices: Choices) -> None:
    """Both for enumerated and for sampled spaces."""
    points = every(choices)
    with pytest.raises(SpaceExhausted, match=f"all {len(points)} layouts"):
        reparameterized(choices).maximise(points)
    last = torch.cat([points[:100], points[101:]]) if len(points) > 101 else points[1:]
    found = reparameterized(choices).maximise(last)
    assert torch.equal(found.codes, points[100] if len(points) > 101 else points[0])


def test_same_generator_same_answer() -> None:
    choices = Choices.binary(14)
    found = [reparameterized(choices, 9).maximise(none(choices)) for _ in range(2)]
    assert torch.equal(found[0].codes, found[1].codes)
    assert torch.equal(found[0].probabilities, found[1].probabilities)


def test_it_wraps_a_botorch_acquisition_and_is_one() -> None:
    """BoTorch's own GP and acquisition inside, BoTorch's own optimiser outside: theta lands on the best vertex."""
    choices = Choices.binary(6)
    codes = choices.uniform(20, seeded(1))
    values = Landscape(choices)(codes)
    model = SingleTaskGP(codes, values[:, None]).eval()
    acquisition = UpperConfidenceBound(model, beta=2.0)
    pr = ProbabilisticReparameterization(acquisition, choices, generator=seeded())
    theta = torch.rand(2, 1, 6, generator=seeded(2), dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(pr(theta).sum(), theta)
    torch.testing.assert_close(gradient.squeeze(1), pr.exact_gradient(theta.squeeze(1))[1])
    bounds = torch.stack([torch.zeros(6), torch.ones(6)]).double()
    with torch.random.fork_rng():
        torch.manual_seed(0)  # BoTorch draws its starts from the global stream
        found, _ = optimize_acqf(pr, bounds, q=1, num_restarts=32, raw_samples=128, options={"seed": 0})
    points = every(choices)
    best = points[pr.values(points).argmax()]
    assert torch.equal(found.round().squeeze(0), best)


def test_a_batch_is_distinct_and_conditioned_on_running_points() -> None:
    choices = layered(4)
    codes = choices.uniform(15, seeded(1))
    surrogate = Surrogate.fit(codes, Landscape(choices)(codes), choices)
    batch = propose_batch(surrogate, 4, codes[:0], codes, generator=seeded())
    points = torch.stack([one.codes for one in batch])
    assert len(points.unique(dim=0)) == 4
    assert not any((point == known).all() for point in points for known in codes)
    beside = propose(surrogate, points[:1], torch.cat([codes, points[:1]]), generator=seeded())
    assert not torch.equal(beside.codes, points[0])
