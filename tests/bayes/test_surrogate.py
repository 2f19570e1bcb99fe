"""SPEC 6, check 25: the surrogate against dense solves, scipy and enumeration, the acquisition against quadrature."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from botorch.acquisition.analytic import LogExpectedImprovement as OfBoTorch
from botorch.models import SingleTaskGP
from scipy import integrate, stats

from dasearch.bayes import Choices, LogExpectedImprovement, Surrogate, averaging
from dasearch.bayes import surrogate as module
from dasearch.bayes.acquisition import log_expected_improvement
from tests.bayes.spaces import Landscape, every, layered, seeded


def data(n: int = 15, d: int = 8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    bits = torch.randint(2, (n, d), generator=seeded(seed)).double()
    weights = torch.randn(d, generator=seeded(seed + 1), dtype=torch.float64)
    return bits, 3 + bits @ weights + 0.1 * torch.randn(n, generator=seeded(seed + 2), dtype=torch.float64)


def fitted(choices: Choices, n: int = 12, seed: int = 0) -> Surrogate:
    codes = choices.uniform(n, seeded(seed))
    return Surrogate.fit(codes, 5 + Landscape(choices, seed)(codes), choices)


def kernel(found: Surrogate, member: int, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A member's prior covariance, written out."""
    features, members = found.dictionary, found.members
    x, z = found.choices.contrasts(a), found.choices.contrasts(b)
    parts = (features.features(x) * members.features[member]) @ features.features(z).T
    parts = parts + members.pairs[member] * features.pair_kernel(x, z)
    return parts + members.isotropic[member] * features.isotropic_kernel(x, z) + averaging.LEVEL


def joint(found: Surrogate, member: int, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A member's posterior mean and covariance at points, by a dense solve."""
    known = found.codes
    gram = kernel(found, member, known, known) + found.members.noise[member] * torch.eye(
        len(known), dtype=torch.float64
    )
    cross = kernel(found, member, points, known)
    target = (found.values - found.centre) / found.spread
    mean = found.centre + found.spread * (cross @ torch.linalg.solve(gram, target))
    covariance = kernel(found, member, points, points) - cross @ torch.linalg.solve(gram, cross.T)
    return mean, covariance * found.scale[member] * found.spread**2


SPACES = [Choices.binary(5), Choices((2, 3, 2)), layered(3, 2)]


@pytest.mark.parametrize("choices", SPACES)
def test_each_members_posterior_equals_a_dense_solve(choices: Choices) -> None:
    found = fitted(choices)
    points = every(choices)
    mean, sd = found.member_posteriors(points)
    for member in range(len(found.weights)):
        expected, covariance = joint(found, member, points)
        torch.testing.assert_close(mean[member], expected, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(sd[member].square(), covariance.diagonal(), rtol=1e-6, atol=1e-8)
    mixed = found.posterior(points)
    draws = found.weights @ mean
    torch.testing.assert_close(mixed.mean, draws)
    torch.testing.assert_close(mixed.sd.square(), found.weights @ (sd.square() + mean.square()) - draws.square())


def test_predictions_do_not_depend_on_the_batch() -> None:
    found = fitted(layered(5, 3, 3), n=20)
    points = found.choices.uniform(2 * module.AT_ONCE + 3, seeded(4))
    together = found.member_posteriors(points)
    for at in (0, module.AT_ONCE, len(points) - 1):
        alone = found.member_posteriors(points[at][None])
        for one, many in zip(alone, together, strict=True):
            torch.testing.assert_close(one[:, 0], many[:, at], rtol=1e-9, atol=1e-12)
    assert [numbers.shape for numbers in found.member_posteriors(points[:0])] == [(len(found.weights), 0)] * 2


def test_evidence_is_a_multivariate_t_density() -> None:
    """Members are weighted by the density of the values with the output scale integrated out."""
    generator = seeded()
    factor = torch.randn(3, 6, 6, generator=generator, dtype=torch.float64)
    covariance = factor @ factor.transpose(1, 2) + torch.eye(6, dtype=torch.float64)
    target = torch.randn(6, generator=generator, dtype=torch.float64)
    found = averaging.log_evidence(covariance, target)
    shape, rate = averaging.SCALE_SHAPE, averaging.SCALE_RATE
    expected = [
        stats.multivariate_t(shape=rate / shape * c.numpy(), df=2 * shape).logpdf(target.numpy()) for c in covariance
    ]
    np.testing.assert_allclose(found - found[0], np.array(expected) - expected[0], rtol=1e-9)


def test_the_next_pick_raises_the_evidence_most() -> None:
    bits, values = data(12, 7)
    columns = 2 * bits - 1
    target = (values - values.mean()) / values.std()
    base = averaging.LEVEL + 0.3 * torch.eye(12, dtype=torch.float64) + torch.zeros(12, 12)
    with_one = torch.stack([base + averaging.SPARSE_SLAB * torch.outer(c, c) for c in columns.T])
    best = int(averaging.log_evidence(with_one, target).argmax())
    assert averaging.next_pick(base, columns, target, []) == best
    assert averaging.next_pick(base, columns, target, [best]) != best


def test_leave_one_out_equals_fits_without_the_value() -> None:
    found = fitted(layered(3, 2))
    exact = found.leave_one_out()
    densities = []
    for i in range(len(found.values)):
        rest = [k for k in range(len(found.values)) if k != i]
        without = replace(found, codes=found.codes[rest], values=found.values[rest])
        mean, sd = without.member_posteriors(found.codes[i][None])
        spread = (sd.squeeze(1).square() + found.members.noise * found.scale * found.spread**2).sqrt()
        normal = stats.norm(mean.squeeze(1), spread)
        weights = found.weights.numpy() / normal.pdf(float(found.values[i]))  # p(all) = p(the rest) p(this | the rest)
        weights /= weights.sum()
        assert float(exact.mean[i]) == pytest.approx(float(weights @ mean.squeeze(1).numpy()), rel=1e-6)
        densities.append(np.log(weights @ normal.pdf(float(found.values[i]))))
    assert exact.log_density == pytest.approx(np.mean(densities), rel=1e-6)


@pytest.mark.parametrize("choices", SPACES)
def test_main_effects_are_averages_over_all_points(choices: Choices) -> None:
    found = fitted(choices)
    points = every(choices)
    effects = found.main_effects()
    assert [c[0] for c in effects.choices] == list(choices.columns)
    for index, ((variable, choice),) in enumerate(effects.choices):
        at = (points[:, variable] == choice).double()
        without = (points[:, variable] == 0).double()
        _check_functional(
            found, points, at / at.sum() - without / without.sum(), effects.mean[index], effects.sd[index]
        )


@pytest.mark.parametrize("choices", SPACES)
def test_pair_effects_are_differences_of_differences(choices: Choices) -> None:
    found = fitted(choices)
    points = every(choices)
    effects = found.pair_effects()
    pairs = [p for p in itertools.combinations(choices.columns, 2) if p[0][0] != p[1][0]]
    assert [tuple(c) for c in effects.choices] == pairs
    for index, (first, second) in enumerate(effects.choices):
        weights = torch.zeros(len(points), dtype=torch.float64)
        for a, b in itertools.product((0, 1), repeat=2):
            at = (points[:, first[0]] == a * first[1]) & (points[:, second[0]] == b * second[1])
            weights += (1.0 if a == b else -1.0) * at.double() / at.sum()
        _check_functional(found, points, weights, effects.mean[index], effects.sd[index])


def _check_functional(
    found: Surrogate, points: torch.Tensor, weights: torch.Tensor, mean: torch.Tensor, sd: torch.Tensor
) -> None:
    """A weighted sum of the function over all points: mean and sd of the mixture, by dense posteriors."""
    means, squares = [], []
    for member in range(len(found.weights)):
        centre, covariance = joint(found, member, points)
        means.append(weights @ centre)
        squares.append((weights @ covariance @ weights) + means[-1].square())
    expected = found.weights @ torch.stack(means)
    assert float(mean) == pytest.approx(float(expected), rel=1e-5, abs=1e-7)
    variance = found.weights @ torch.stack(squares) - expected.square()
    assert float(sd) == pytest.approx(float(variance.clamp(min=0).sqrt()), rel=1e-4, abs=1e-5)


def correlation(found: Surrogate, points: torch.Tensor, truth: torch.Tensor) -> float:
    return float(np.corrcoef(found.posterior(points).mean, truth)[0, 1])


def test_structure_helps_where_present_and_costs_little_where_absent() -> None:
    choices, plain = layered(12), Choices.binary(36)
    codes, new = choices.uniform(25, seeded(1)), choices.uniform(300, seeded(2))
    depth = torch.arange(36, dtype=torch.float64) // 3
    smooth = torch.cos(depth / 4 + torch.arange(36) % 3)
    rough = torch.randn(36, generator=seeded(3), dtype=torch.float64)
    gain = {}
    for name, weights in (("smooth", smooth), ("rough", rough)):
        truth, values = new @ weights, codes @ weights
        layered_one, plain_one = (Surrogate.fit(codes, values, c) for c in (choices, plain))
        gain[name] = correlation(layered_one, new, truth) - correlation(plain_one, new, truth)
        if name == "smooth":
            assert correlation(layered_one, new, truth) > 0.95
    assert gain["smooth"] > 0.2
    assert gain["rough"] > -0.1


def test_a_few_strong_choices_are_picked() -> None:
    choices = Choices.binary(60)
    codes, new = choices.uniform(25, seeded(1)), choices.uniform(300, seeded(2))
    noise = 0.2 * torch.randn(25, generator=seeded(3), dtype=torch.float64)
    found = Surrogate.fit(codes, 2 * codes[:, 7] - 3 * codes[:, 41] + noise, choices)
    assert correlation(found, new, 2 * new[:, 7] - 3 * new[:, 41]) > 0.98
    effects = found.main_effects().mean
    assert effects.abs().topk(2).indices.tolist() == [41, 7]


def test_units_do_not_matter() -> None:
    bits, values = data()
    new = data(20, seed=1)[0]
    first = Surrogate.fit(bits, values).posterior(new)
    tiny = Surrogate.fit(bits, 1e-14 * (values - values.mean())).posterior(new)
    torch.testing.assert_close(tiny.mean * 1e14 + values.mean(), first.mean, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(tiny.sd * 1e14, first.sd, rtol=1e-6, atol=1e-9)


def test_noise_is_learned() -> None:
    bits, _ = data(80)
    clean = bits @ torch.arange(8, dtype=torch.float64)
    noisy = clean + 3 * torch.randn(80, generator=seeded(5), dtype=torch.float64)
    assert float(Surrogate.fit(bits, clean).noise_sd) < 1
    assert 1.5 < float(Surrogate.fit(bits, noisy).noise_sd) < 5


@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_points_or_equal_values(n: int) -> None:
    bits, values = data(n)
    for observed in (values, torch.ones_like(values), torch.zeros_like(values)):
        found = Surrogate.fit(bits, observed).posterior(data()[0])
        assert found.mean.isfinite().all()
        assert (found.sd > 0).all()


def test_rejects_values_that_are_not_finite() -> None:
    bits, values = data()
    values[3] = torch.nan
    with pytest.raises(ValueError, match="finite values"):
        Surrogate.fit(bits, values)


def test_fitting_twice_is_the_same() -> None:
    first, second = (Surrogate.fit(*data()).posterior(data(seed=1)[0]) for _ in range(2))
    assert torch.equal(first.mean, second.mean)
    assert torch.equal(first.sd, second.sd)


@pytest.mark.parametrize("mean", [-3.0, -0.5, 0.0, 0.2, 2.0])
@pytest.mark.parametrize("sd", [0.05, 1.0, 4.0])
def test_expected_improvement_equals_quadrature(mean: float, sd: float) -> None:
    best = 0.1
    found = float(
        log_expected_improvement(
            *(torch.tensor([v], dtype=torch.float64) for v in (mean, sd)), torch.tensor(best)
        ).exp()
    )
    density = stats.norm(mean, sd).pdf
    top = max(mean, best) + 12 * sd
    expected, _ = integrate.quad(lambda f: (f - best) * density(f), best, top, points=[mean] if mean > best else None)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_log_expected_improvement_is_botorchs_far_out() -> None:
    bits, values = data()
    model = SingleTaskGP(bits, values[:, None], outcome_transform=None).eval()
    for best in (values.max(), values.max() + 50, values.max() + 1e4):
        posterior = model.posterior(bits[:, None])
        mean, sd = posterior.mean.flatten().detach(), posterior.variance.flatten().sqrt().detach()
        expected = OfBoTorch(model, best_f=best)(bits[:, None]).detach()
        torch.testing.assert_close(log_expected_improvement(mean, sd, best), expected, rtol=1e-5, atol=1e-5)


def test_improvement_averages_over_members() -> None:
    found = fitted(layered(3, 2))
    points = every(found.choices)
    mean, sd = found.member_posteriors(points)
    best = found.posterior(found.codes).mean.max()
    expected = found.weights @ log_expected_improvement(mean, sd, best).exp()
    torch.testing.assert_close(LogExpectedImprovement(found)(points[:, None]).exp(), expected, rtol=1e-8, atol=1e-12)


def test_running_trials_lower_the_acquisition_nearby_and_raise_the_incumbent() -> None:
    found = fitted(layered(4, 3), n=20)
    candidates = found.choices.uniform(300, seeded(2))
    alone = LogExpectedImprovement(found)
    top = candidates[alone(candidates[:, None]).argmax()][None]
    believed = found.fantasize(top)
    before, after = found.posterior(top), believed.posterior(top)
    assert float((after.mean - before.mean).abs()) < float(before.sd)
    assert float(after.sd) < float(before.sd)
    beside = LogExpectedImprovement(believed)
    assert float(beside(top[:, None])) < float(alone(top[:, None]))
    assert float(beside.best) >= float(found.posterior(top).mean) - float(before.sd)


def test_the_former_name_still_works() -> None:
    import dasearch.bayes

    with pytest.warns(DeprecationWarning, match="is called LogExpectedImprovement now"):
        assert dasearch.bayes.Improvement is LogExpectedImprovement


def test_methods_keep_their_names_of_before_for_a_version() -> None:
    codes = torch.tensor([[0, 0], [0, 1], [1, 0]])
    surrogate = Surrogate.fit(codes, torch.tensor([0.0, 0.4, 0.5]))
    with pytest.warns(DeprecationWarning, match="Surrogate.each is called member_posteriors now"):
        assert torch.equal(surrogate.each(codes)[0], surrogate.member_posteriors(codes)[0])
