"""Bayesian optimization over categorical choices; `PRSampler` works in any Optuna study. Knows nothing of recommenders."""

from dasearch.bayes.acquisition import Improvement
from dasearch.bayes.choices import Choices
from dasearch.bayes.kernel import LayeredKernel
from dasearch.bayes.reparameterization import Maximum, ProbabilisticReparameterization, SpaceExhausted
from dasearch.bayes.sampler import Proposal, PRSampler, curve_mean, propose, propose_batch
from dasearch.bayes.surrogate import Effects, LeaveOneOut, Posterior, Surrogate

__all__ = [
    "Choices",
    "Effects",
    "Improvement",
    "LayeredKernel",
    "LeaveOneOut",
    "Maximum",
    "PRSampler",
    "Posterior",
    "ProbabilisticReparameterization",
    "Proposal",
    "SpaceExhausted",
    "Surrogate",
    "curve_mean",
    "propose",
    "propose_batch",
]
