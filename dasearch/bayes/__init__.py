"""Bayesian optimization over categorical choices; `PRSampler` works in any Optuna study. Knows nothing of recommenders."""

from dasearch.bayes.acquisition import Improvement
from dasearch.bayes.choices import Choices
from dasearch.bayes.kernel import LayeredKernel
from dasearch.bayes.reparameterization import Maximum, ProbabilisticReparameterization, SpaceExhausted
from dasearch.bayes.sampler import (
    Proposal,
    PRSampler,
    curve_mean,
    mean_of_curve,
    propose,
    propose_batch,
    startup_trials,
)
from dasearch.bayes.surrogate import Effects, LeaveOneOut, Posterior, Surrogate
from dasearch.bayes.transfer import Observation, Prior

__all__ = [
    "Choices",
    "Effects",
    "Improvement",
    "LayeredKernel",
    "LeaveOneOut",
    "Maximum",
    "Observation",
    "PRSampler",
    "Posterior",
    "Prior",
    "ProbabilisticReparameterization",
    "Proposal",
    "SpaceExhausted",
    "Surrogate",
    "curve_mean",
    "mean_of_curve",
    "propose",
    "propose_batch",
    "startup_trials",
]
