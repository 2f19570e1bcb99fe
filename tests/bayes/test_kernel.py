"""The kernel in GPyTorch and BoTorch against the surrogate's own computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from gpytorch.kernels import ConstantKernel
from gpytorch.means import ZeroMean
from gpytorch.mlls import ExactMarginalLogLikelihood

from dasearch.bayes import Choices, LayeredKernel, Surrogate
from dasearch.bayes.features import ISOTROPIC, PAIRS
from tests.bayes.spaces import Landscape, every, layered, seeded


@pytest.mark.parametrize("choices", [layered(3, 2), Choices((2, 3, 2)), layered(2, 2, 3)])
def test_botorch_reproduces_a_members_posterior(choices: Choices) -> None:
    """GPyTorch, given a member's variances, scale and noise, predicts what that member predicts."""
    codes = choices.uniform(10, seeded(1))
    found = Surrogate.fit(codes, Landscape(choices)(codes), choices)
    names = found.dictionary.component
    for member in range(len(found.weights)):
        variances = [float(found.members.features[member][names.index(n)]) for n in dict.fromkeys(names)]
        spread = {n: found.members.features[member][[c == n for c in names]] for n in dict.fromkeys(names)}
        if any(float(v.max() - v.min()) > 1e-12 for v in spread.values()):
            continue  # a sparse member has variances of its own within a component
        kernel = LayeredKernel(choices)
        last = [float(found.members.pairs[member]), float(found.members.isotropic[member])]
        kernel.set(torch.tensor(variances[: len(kernel.dictionary.names) - 2] + last).double().clamp(min=2e-8))
        assert kernel.dictionary.names[-2:] == (PAIRS, ISOTROPIC)
        level = ConstantKernel()
        level.initialize(constant=torch.ones(1, dtype=torch.float64))
        scale = float(found.scale[member])
        target = ((found.values - found.centre) / found.spread)[:, None]
        model = SingleTaskGP(codes, target, covar_module=kernel + level, mean_module=ZeroMean(), outcome_transform=None)
        model.likelihood.noise = float(found.members.noise[member])
        posterior = model.double().eval().posterior(every(choices))
        mean, sd = (part[member] for part in found.member_posteriors(every(choices)))
        torch.testing.assert_close(found.centre + found.spread * posterior.mean.squeeze(1), mean, rtol=1e-6, atol=1e-6)
        variance = posterior.variance.squeeze(1) * scale * found.spread**2
        torch.testing.assert_close(variance.sqrt(), sd, rtol=1e-4, atol=1e-5)
        return
    pytest.fail("every member is sparse; choose another seed")


def test_variances_are_learned_in_a_botorch_model() -> None:
    choices = layered(12)
    codes, new = choices.uniform(25, seeded(1)), choices.uniform(200, seeded(2))
    weights = torch.cos(torch.arange(36, dtype=torch.float64) // 3 / 4 + torch.arange(36) % 3)
    values = codes @ weights
    model = SingleTaskGP(codes, ((values - values.mean()) / values.std())[:, None], covar_module=LayeredKernel(choices))
    before = model.covar_module.variances.detach().clone()
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    learned = dict(zip(model.covar_module.dictionary.names, model.covar_module.variances.tolist(), strict=True))
    assert not torch.equal(before, model.covar_module.variances)
    shared = sum(v for name, v in learned.items() if name.startswith("site"))
    assert shared > 3 * learned["linear"]
    mean = model.posterior(new).mean.squeeze(1).detach()
    assert np.corrcoef(mean, new @ weights)[0, 1] > 0.9
