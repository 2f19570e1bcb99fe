"""SPEC 6, check 25: the process against a dense solve, the acquisition against quadrature."""

import numpy as np
import pytest
import torch
from botorch.acquisition.analytic import LogExpectedImprovement
from botorch.models import SingleTaskGP
from scipy import integrate, stats

from dasearch.bayes import Surrogate
from dasearch.bayes.acquisition import improvement_over, log_expected_improvement


def data(n: int = 15, d: int = 8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(2, (n, d), generator=generator).double()
    weights = torch.randn(d, generator=generator, dtype=torch.float64)
    return bits, 3 + bits @ weights + 0.1 * torch.randn(n, generator=generator, dtype=torch.float64)


def matern(a: np.ndarray, b: np.ndarray, lengthscale: float) -> np.ndarray:
    r = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1)) * np.sqrt(5) / lengthscale
    return (1 + r + r**2 / 3) * np.exp(-r)


def test_posterior_equals_a_dense_solve() -> None:
    bits, values = data()
    new = data(20, seed=1)[0]
    fitted = Surrogate.fit(bits, values)
    kernel = fitted.model.covar_module
    length, scale = kernel.base_kernel.lengthscale.item(), kernel.outputscale.item()
    x, z = bits.numpy(), new.numpy()
    gram = scale * matern(x, x, length) + float(fitted.noise) * np.eye(len(x))
    cross = scale * matern(z, x, length)
    y = (values.numpy() - values.numpy().mean()) / values.numpy().std(ddof=1)
    constant = fitted.model.mean_module.constant.item()
    mean = constant + cross @ np.linalg.solve(gram, y - constant)
    variance = scale - np.einsum("ij,ji->i", cross, np.linalg.solve(gram, cross.T))
    found = fitted.posterior(new)
    spread = values.numpy().std(ddof=1)
    np.testing.assert_allclose(found.mean, values.numpy().mean() + spread * mean, rtol=1e-8)
    np.testing.assert_allclose(found.sd, spread * np.sqrt(variance), rtol=1e-6)


def test_learns_an_additive_landscape() -> None:
    bits, values = data(100)
    fitted = Surrogate.fit(bits[:60], values[:60])
    assert np.corrcoef(fitted.posterior(bits[60:]).mean, values[60:])[0, 1] > 0.9
    assert float(fitted.noise) < 0.5


@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_points_or_equal_values(n: int) -> None:
    bits, values = data(n)
    for observed in (values, torch.ones_like(values)):
        found = Surrogate.fit(bits, observed).posterior(data()[0])
        assert found.mean.isfinite().all()
        assert (found.sd > 0).all()


def test_refuses_what_is_not_finite() -> None:
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
        expected = LogExpectedImprovement(model, best_f=best)(bits[:, None]).detach()
        torch.testing.assert_close(log_expected_improvement(mean, sd, best), expected, rtol=1e-5, atol=1e-5)


def test_running_trials_push_others_away() -> None:
    bits, values = data()
    fitted = Surrogate.fit(bits, values)
    candidates = data(30, seed=2)[0]
    alone = improvement_over(fitted, bits.new_zeros(0, 8))(candidates)
    top = candidates[alone.argmax()][None]
    beside = improvement_over(fitted, top)(top)
    assert float(beside) < float(alone.max())
    torch.testing.assert_close(
        fitted.believing(top).posterior(top).mean, fitted.posterior(top).mean, rtol=1e-6, atol=1e-6
    )
