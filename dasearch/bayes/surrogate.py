"""A Gaussian process over binary vectors.

Isotropic Matern-5/2 on the bits, an output scale, standardised values, learned noise (Daulton et al. 2022, app. D; Liu et
al. 2024 (DARec), alg. 1). Use it for a few dozen to a few hundred evaluations; it knows nothing of which bits belong
together. All arithmetic is float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from gpytorch.constraints import Interval
from gpytorch.kernels import MaternKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.priors import GammaPrior, LogNormalPrior
from torch import Tensor

LENGTHSCALES = (0.1, 20.0)  # in flips^(1/2): from "neighbours differ" to "all layouts alike" (Daulton et al.)
NOISE = (1e-6, 1.5)  # of standardised values: a training's score may be nearly all seed noise
NOISE_PRIOR = (-2.0, 1.0)  # log-normal: a seventh of the variance, give or take a factor of e
SCALE_PRIOR = (2.0, 2.0)  # gamma with mean 1: values are standardised
LENGTHSCALE_PRIOR = (0.7, 0.7)  # log-normal around two flips^(1/2): four flips apart is far


class Posterior(NamedTuple):
    """Mean and standard deviation of the latent function, each ``(m,)``, in the units of the values."""

    mean: Tensor
    sd: Tensor


class Surrogate:
    """A fitted process; `fit` makes one, and nothing changes it afterwards."""

    def __init__(self, model: SingleTaskGP, bits: Tensor, values: Tensor, centre: Tensor, scale: Tensor) -> None:
        self.model = model
        self.bits, self.values = bits, values
        self._centre, self._scale = centre, scale
        with torch.no_grad():
            self._kernel = model.covar_module.eval()
            gram = self._kernel(bits, bits).to_dense() + self.noise * torch.eye(len(bits), dtype=bits.dtype)
            self._cholesky = torch.linalg.cholesky(gram)
            self._mean = model.mean_module.constant.detach()
            residual = (values - centre) / scale - self._mean
            self._weights = torch.cholesky_solve(residual[:, None], self._cholesky).squeeze(1)
            self._variance = self._kernel(bits[:1], bits[:1]).to_dense().squeeze()

    @classmethod
    def fit(cls, bits: Tensor, values: Tensor) -> Surrogate:
        """Learn length scale, output scale, mean and noise by their posterior mode.

        Shapes: bits ``(n, d)`` of 0 and 1, values ``(n,)``, n at least 1.

        Raises:
            ValueError: for no evaluation, or a value that is not finite.
        """
        bits, values = bits.double(), values.double()
        if not len(values) or not values.isfinite().all():
            raise ValueError("a surrogate needs at least one evaluation and finite values; drop the others")
        spread = values.std() if len(values) > 1 else values.new_tensor(0.0)
        scale = spread if spread > 1e-12 else values.new_tensor(1.0)
        model = _model(bits, (values - values.mean()) / scale)
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        return cls(model.eval(), bits, values, values.mean(), scale)

    @property
    def noise(self) -> Tensor:
        """Noise variance of standardised values, ``()``."""
        noise: Tensor = self.model.likelihood.noise
        return noise.detach().squeeze()

    @torch.no_grad()
    def posterior(self, bits: Tensor) -> Posterior:
        """Shapes: bits ``(m, d)`` -> mean, sd ``(m,)``."""
        cross = self._kernel(bits.double(), self.bits).to_dense()  # (m, n)
        mean = self._mean + cross @ self._weights
        explained = torch.linalg.solve_triangular(self._cholesky, cross.T, upper=False).square().sum(0)
        sd = (self._variance - explained).clamp(min=1e-12).sqrt()
        return Posterior(self._centre + self._scale * mean, self._scale * sd)

    def believing(self, running: Tensor) -> Surrogate:
        """This process after ``running`` ``(p, d)`` came out at their posterior means.

        Trials that run elsewhere then attract no second worker (kriging believer, Ginsbourger et al. 2010).
        Hyper-parameters stay.
        """
        if not len(running):
            return self
        bits = torch.cat([self.bits, running.double()])
        values = torch.cat([self.values, self.posterior(running).mean])
        return Surrogate(self.model, bits, values, self._centre, self._scale)


def _model(bits: Tensor, values: Tensor) -> SingleTaskGP:
    kernel = ScaleKernel(
        MaternKernel(
            nu=2.5, lengthscale_prior=LogNormalPrior(*LENGTHSCALE_PRIOR), lengthscale_constraint=Interval(*LENGTHSCALES)
        ),
        outputscale_prior=GammaPrior(*SCALE_PRIOR),
    )
    likelihood = GaussianLikelihood(noise_prior=LogNormalPrior(*NOISE_PRIOR), noise_constraint=Interval(*NOISE))
    model = SingleTaskGP(
        bits, values[:, None], likelihood=likelihood, covar_module=kernel, outcome_transform=None, input_transform=None
    )
    model.likelihood.noise = 0.1
    kernel.base_kernel.lengthscale = 2.0
    kernel.outputscale = 1.0
    return model.double()
