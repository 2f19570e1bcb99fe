"""What another study found, and how much of it is believed here.

The other study scored the same variables on another scale, with another noise, and of a landscape that may be like this one
or not. Two landscapes that correlate are one process with their covariance shrunk (Bonilla et al. 2008; Swersky et al. 2013,
multi-task Bayesian optimization). The surrogate averages over `CORRELATIONS`, and over the case that the other study says
nothing, by their evidence: with that case it is the surrogate that never heard of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

CORRELATIONS = (0.6, 0.9)  # of the two landscapes, where they have to do with each other
UNRELATED = 0.25  # probability, before anything is known, that they have not
OWN_LEVEL = 1.0  # prior variance of what lies between the two means: each study's is that of the layouts it chose
CONSTANT = 1e-12  # values that spread less than this, relative to their size, are all alike
MORE_NOISE = 0.1  # noise variance of the other study beyond this one's, as a share of the signal's


class Observation(NamedTuple):
    """A choice for each parameter, by name, and the value it had in another study.

    Examples:
        >>> from dasearch.bayes import Observation, PRSampler
        >>> sampler = PRSampler(prior=[Observation({"optimizer": "adam"}, 0.7), Observation({"optimizer": "sgd"}, 0.4)])
    """

    params: Mapping[str, Any]
    value: float


class Prior(NamedTuple):
    """Evaluations of another study: codes ``(m, d)``, values ``(m,)`` of mean 0 and sd 1, more being better.

    Examples:
        >>> import torch
        >>> from dasearch.bayes import Prior
        >>> prior = Prior.standardised(torch.tensor([[0], [1], [2]]), torch.tensor([10.0, 20.0, 30.0]))
        >>> prior.values.tolist()
        [-1.0, 0.0, 1.0]
    """

    codes: Tensor
    values: Tensor

    @classmethod
    def standardised(cls, codes: Tensor, values: Tensor) -> Prior | None:
        """None where nothing is to be learned, for the values are fewer than two or all alike."""
        values = values.double()
        spread = spread_of(values)
        return cls(codes.double(), (values - values.mean()) / spread) if spread else None


def spread_of(values: Tensor) -> Tensor:
    """Standard deviation, ``()``; zero for fewer than two values, or such as are all alike."""
    none = values.new_tensor(0.0)
    spread = values.std() if len(values) > 1 else none
    return none if not len(values) or spread <= CONSTANT * values.abs().max() else spread


def related(covariance: Tensor, own: int, correlation: Tensor) -> Tensor:
    """Covariances of two studies' evaluations from what they would be in one study.

    Shapes: covariance ``(M, n, n)``, this study's ``own`` evaluations first; correlation ``(M,)`` or ``()``.
    """
    found, between = covariance.clone(), correlation.view(-1, 1, 1)
    found[:, :own, own:] *= between
    found[:, own:, :own] *= between
    found[:, own:, own:] += OWN_LEVEL
    found.diagonal(dim1=1, dim2=2)[:, own:] += MORE_NOISE
    return found
