"""Bayesian optimization over binary choices; `PRSampler` works in any Optuna study. Knows nothing of recommenders."""

from dasearch.bayes.reparameterization import Maximum, ProbabilisticReparameterization, SpaceExhausted
from dasearch.bayes.sampler import Proposal, PRSampler
from dasearch.bayes.surrogate import Posterior, Surrogate

__all__ = [
    "Maximum",
    "PRSampler",
    "Posterior",
    "ProbabilisticReparameterization",
    "Proposal",
    "SpaceExhausted",
    "Surrogate",
]
