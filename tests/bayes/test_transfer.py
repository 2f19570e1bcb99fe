"""Priors of another study, used as far as the data support them: against dense solves, scipy and planted landscapes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from dasearch.bayes import Choices, Prior, Surrogate, averaging
from dasearch.bayes.transfer import MORE_NOISE, OWN_LEVEL
from tests.bayes.spaces import Landscape, every, layered, seeded
from tests.bayes.test_surrogate import kernel


def informed(choices: Choices, n: int = 8, m: int = 12, seed: int = 0) -> Surrogate:
    """A surrogate of n evaluations and another study's m, on the same landscape, of another scale."""
    codes, before = choices.uniform(n, seeded(seed)), choices.uniform(m, seeded(seed + 1))
    landscape = Landscape(choices, seed)
    prior = Prior.standardised(before, 100 + 7 * landscape(before))
    return Surrogate.fit(codes, 5 + landscape(codes), choices, prior=prior)


def joint(found: Surrogate, member: int, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of two correlated processes at points of the first, by a dense solve."""
    prior = found.prior
    assert prior is not None
    between = found.members.correlation[member]
    other = kernel(found, member, prior.codes, prior.codes) + OWN_LEVEL
    cross = between * kernel(found, member, found.codes, prior.codes)
    gram = torch.cat(
        [
            torch.cat([kernel(found, member, found.codes, found.codes), cross], 1),
            torch.cat([cross.T, other + MORE_NOISE * torch.eye(len(other), dtype=torch.float64)], 1),
        ]
    )
    gram = gram + found.members.noise[member] * torch.eye(len(gram), dtype=torch.float64)
    target = torch.cat([(found.values - found.centre) / found.spread, prior.values])
    towards = torch.cat(
        [kernel(found, member, points, found.codes), between * kernel(found, member, points, prior.codes)], 1
    )
    mean = found.centre + found.spread * (towards @ torch.linalg.solve(gram, target))
    covariance = kernel(found, member, points, points) - towards @ torch.linalg.solve(gram, towards.T)
    return mean, covariance.diagonal() * found.scale[member] * found.spread**2


@pytest.mark.parametrize("choices", [Choices.binary(5), Choices((2, 3, 2)), layered(3, 2)])
def test_each_members_posterior_is_that_of_two_correlated_processes(choices: Choices) -> None:
    found = informed(choices)
    points = every(choices)
    mean, sd = found.member_posteriors(points)
    assert found.members.correlation.max() > 0
    for member in range(len(found.weights)):
        expected, variance = joint(found, member, points)
        torch.testing.assert_close(mean[member], expected, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(sd[member].square(), variance, rtol=1e-6, atol=1e-8)


def test_evidence_with_its_constant_is_a_density() -> None:
    """Studies of different sizes are compared by evidence, so no constant may be missing."""
    factor = torch.randn(3, 6, 6, generator=seeded(), dtype=torch.float64)
    covariance = factor @ factor.transpose(1, 2) + torch.eye(6, dtype=torch.float64)
    target = torch.randn(6, generator=seeded(1), dtype=torch.float64)
    shape, rate = averaging.SCALE_SHAPE, averaging.SCALE_RATE
    for n in (2, 6):
        part = covariance[:, :n, :n]
        found = averaging.log_evidence(part, target[:n]) + averaging.log_constant(n)
        expected = [
            stats.multivariate_t(shape=rate / shape * c.numpy(), df=2 * shape).logpdf(target[:n].numpy()) for c in part
        ]
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def believed(found: Surrogate) -> float:
    """Probability that the other study's landscape has to do with this one."""
    return float(found.weights[found.members.correlation > 0].sum())


def test_a_confirmed_prior_is_used_and_a_contradicted_one_is_ignored() -> None:
    choices = layered(12)
    weights = torch.randn(36, generator=seeded(3), dtype=torch.float64)
    codes, before, new = (choices.uniform(n, seeded(n)) for n in (24, 40, 300))
    values, truth = codes @ weights, new @ weights
    cold = Surrogate.fit(codes, values, choices)

    def correlation(of: Surrogate) -> float:
        return float(np.corrcoef(of.posterior(new).mean, truth)[0, 1])

    related, opposite = (Surrogate.fit(codes, values, choices, prior=_prior(before, s * weights)) for s in (1, -1))
    assert believed(related) > 0.99
    assert correlation(related) > correlation(cold) + 0.1
    assert believed(opposite) < 0.01
    torch.testing.assert_close(opposite.posterior(new).mean, cold.posterior(new).mean, rtol=0.02, atol=0.02)
    torch.testing.assert_close(opposite.posterior(new).sd, cold.posterior(new).sd, rtol=0.05, atol=0.0)


def _prior(codes: torch.Tensor, weights: torch.Tensor) -> Prior:
    noise = torch.randn(len(codes), generator=seeded(9), dtype=torch.float64)
    found = Prior.standardised(codes, 3 * (codes @ weights) + noise)
    assert found is not None
    return found


def test_a_related_study_helps_with_few_values() -> None:
    choices = layered(12)
    weights = torch.randn(36, generator=seeded(3), dtype=torch.float64)
    before, new = choices.uniform(40, seeded(1)), choices.uniform(300, seeded(2))
    codes = torch.stack([torch.zeros(36), torch.ones(36), before[0]]).double()
    found = Surrogate.fit(codes, codes @ weights, choices, prior=_prior(before, weights))
    assert float(np.corrcoef(found.posterior(new).mean, new @ weights)[0, 1]) > 0.6


def test_units_of_the_other_study_do_not_matter() -> None:
    choices = layered(3, 2)
    before, codes = choices.uniform(9, seeded(1)), choices.uniform(5, seeded(2))
    values = Landscape(choices, 0)(before)
    first, second = (
        Surrogate.fit(codes, Landscape(choices, 0)(codes), choices, prior=Prior.standardised(before, scaled))
        for scaled in (values, 1e-3 * values - 40)
    )
    torch.testing.assert_close(
        first.posterior(every(choices)).mean, second.posterior(every(choices)).mean, rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize("values", [[], [0.3], [0.1, 0.1, 0.1], [0.0, 0.0]])
def test_constant_values_are_no_prior(values: list[float]) -> None:
    assert Prior.standardised(torch.zeros(len(values), 4), torch.tensor(values, dtype=torch.float64)) is None


def test_leave_one_out_omits_only_own_values() -> None:
    found = informed(layered(3, 2))
    exact = found.leave_one_out()
    assert len(exact.mean) == len(found.values)
    for i in range(len(found.values)):
        rest = [k for k in range(len(found.values)) if k != i]
        without = replace(found, codes=found.codes[rest], values=found.values[rest])
        mean, sd = without.member_posteriors(found.codes[i][None])
        spread = (sd.squeeze(1).square() + found.members.noise * found.scale * found.spread**2).sqrt()
        weights = found.weights.numpy() / stats.norm(mean.squeeze(1), spread).pdf(float(found.values[i]))
        weights /= weights.sum()
        assert float(exact.mean[i]) == pytest.approx(float(weights @ mean.squeeze(1).numpy()), rel=1e-6)


def test_effects_are_averages_of_the_informed_posterior() -> None:
    found = informed(layered(3, 2))
    points = every(found.choices)
    mean = found.posterior(points).mean
    for ((variable, choice),), effect in zip(found.main_effects().choices, found.main_effects().mean, strict=True):
        expected = mean[points[:, variable] == choice].mean() - mean[points[:, variable] == 0].mean()
        assert float(effect) == pytest.approx(float(expected), rel=1e-6, abs=1e-8)
