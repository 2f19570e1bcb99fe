"""Log expected improvement, computed in logarithms so that its gradient does not vanish far from the incumbent.

Ament et al. 2023 (LogEI). The incumbent is the largest posterior mean among evaluated and running points, not the
largest observation: with noisy trainings the latter is mostly luck.
"""

from __future__ import annotations

import math

import torch
from botorch.acquisition import AcquisitionFunction
from torch import Tensor

from dasearch.bayes.surrogate import Surrogate

FAR = -1e5  # standardised improvement below which the asymptote is exact in float64


def log_expected_improvement(mean: Tensor, sd: Tensor, best: Tensor) -> Tensor:
    """``log E[max(f - best, 0)]`` for normally distributed f, elementwise."""
    u = (mean - best) / sd
    log_density = -0.5 * u.square() - 0.5 * math.log(2 * math.pi)
    near = torch.exp(log_density) + u * torch.special.ndtr(u)
    safe = u.clamp(FAR, -1.0)
    tail = torch.log1p(
        safe * torch.exp(torch.special.log_ndtr(safe) + 0.5 * safe.square() + 0.5 * math.log(2 * math.pi))
    )
    tail = torch.where(u < FAR, -2 * torch.log(-u.clamp(max=-1.0)), tail)
    return sd.log() + torch.where(u > -1.0, near.clamp(min=1e-300).log(), log_density + tail)


class LogExpectedImprovement(AcquisitionFunction):  # type: ignore[misc]  # BoTorch is not typed for mypy
    """Log expected improvement under a mixture of Gaussian processes, with BoTorch's interface for acquisitions.

    Args:
        surrogate: the fitted surrogate, conditioned on running points (`Surrogate.fantasize`).

    Examples:
        >>> import torch
        >>> from dasearch.bayes import LogExpectedImprovement, Surrogate
        >>> codes = torch.tensor([[0, 0], [0, 1], [1, 0]])
        >>> surrogate = Surrogate.fit(codes, torch.tensor([0.0, 0.4, 0.5]))
        >>> improvement = LogExpectedImprovement(surrogate)
        >>> improvement(torch.tensor([[[0, 0]], [[1, 1]]])).argmax().item()
        1
    """

    def __init__(self, surrogate: Surrogate) -> None:
        super().__init__(model=surrogate)
        self.means = surrogate.posterior(surrogate.codes).mean  # (n,), of evaluated and fantasized points
        self.best = self.means.max()

    def forward(self, X: Tensor) -> Tensor:
        """Evaluate the acquisition. Shapes: codes ``(m, 1, d)`` -> ``(m,)``."""
        mean, sd = self.model.member_posteriors(X.squeeze(-2))
        improvement = log_expected_improvement(mean, sd, self.best)
        return torch.logsumexp(self.model.weights.log()[:, None] + improvement, 0)
