"""Warm starts: another study's observations, and how strongly the surrogate relies on them.

The other study scored the same variables on another scale, with different noise, and on a landscape that may or may not
resemble this one. Two correlated landscapes are modelled as one process with a shrunken covariance between them (Bonilla et al.
2008; Swersky et al. 2013, multi-task Bayesian optimization). The surrogate averages over `CORRELATIONS`, and over the hypothesis
that the other study is uninformative, by their evidence; under that hypothesis it equals a surrogate without a prior.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

CORRELATIONS = (0.6, 0.9)  # of the two landscapes, if they are related
UNRELATED = 0.25  # prior probability that they are unrelated
OWN_LEVEL = 1.0  # prior variance of the offset between the two studies' means, which are over different layouts
CONSTANT = 1e-12  # values with a smaller spread than this, relative to their magnitude, count as constant
MORE_NOISE = 0.1  # additional noise variance of the other study, as a share of the signal's


class Observation(NamedTuple):
    """An evaluation of another study: a choice for each parameter, by name, and its value.

    Examples:
        >>> from dasearch.bayes import Observation, PRSampler
        >>> sampler = PRSampler(prior=[Observation({"optimizer": "adam"}, 0.7), Observation({"optimizer": "sgd"}, 0.4)])
    """

    params: Mapping[str, Any]
    value: float


class Prior(NamedTuple):
    """Evaluations of another study: codes ``(m, d)``, values ``(m,)`` of mean 0 and sd 1, larger being better.

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
        """A prior with standardised values; None if there are fewer than two values or all are equal."""
        values = values.double()
        spread = spread_of(values)
        return cls(codes.double(), (values - values.mean()) / spread) if spread else None


def spread_of(values: Tensor) -> Tensor:
    """Standard deviation of values, ``()``; zero for fewer than two values or constant ones."""
    none = values.new_tensor(0.0)
    spread = values.std() if len(values) > 1 else none
    return none if not len(values) or spread <= CONSTANT * values.abs().max() else spread


def related(covariance: Tensor, own: int, correlation: Tensor) -> Tensor:
    """Covariances of two studies' evaluations, from the covariances that they would have within one study.

    Shapes: covariance ``(M, n, n)``, this study's ``own`` evaluations first; correlation ``(M,)`` or ``()``.
    """
    joint, between = covariance.clone(), correlation.view(-1, 1, 1)
    joint[:, :own, own:] *= between
    joint[:, own:, :own] *= between
    joint[:, own:, own:] += OWN_LEVEL
    joint.diagonal(dim1=1, dim2=2)[:, own:] += MORE_NOISE
    return joint
