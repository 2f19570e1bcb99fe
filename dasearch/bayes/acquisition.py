"""Expected improvement, in logarithms so that its gradient does not vanish far from the best.

Ament et al. 2023 (LogEI). The best value is the largest posterior mean among evaluated points, not the largest
observation: with noisy trainings the latter is mostly luck.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dasearch.bayes.surrogate import Surrogate

Acquisition = Callable[[Tensor], Tensor]  # bits (m, d) -> values (m,)
FAR = -1e5  # standardised improvement below which the asymptote is exact in float64


def log_expected_improvement(mean: Tensor, sd: Tensor, best: Tensor) -> Tensor:
    """``log E[max(f - best, 0)]`` for f normal; shapes ``(m,)``."""
    u = (mean - best) / sd
    log_density = -0.5 * u.square() - 0.5 * math.log(2 * math.pi)
    near = torch.exp(log_density) + u * torch.special.ndtr(u)
    safe = u.clamp(FAR, -1.0)
    tail = torch.log1p(
        safe * torch.exp(torch.special.log_ndtr(safe) + 0.5 * safe.square() + 0.5 * math.log(2 * math.pi))
    )
    tail = torch.where(u < FAR, -2 * torch.log(-u.clamp(max=-1.0)), tail)
    return sd.log() + torch.where(u > -1.0, near.clamp(min=1e-300).log(), log_density + tail)


def improvement_over(surrogate: Surrogate, running: Tensor) -> Acquisition:
    """Log expected improvement over the evaluated points, given what else is being evaluated.

    Shapes: running ``(p, d)``.
    """
    best = surrogate.posterior(surrogate.bits).mean.max()
    believed = surrogate.believing(running)

    def acquisition(bits: Tensor) -> Tensor:
        return log_expected_improvement(*believed.posterior(bits), best)

    return acquisition
