"""Bayesian optimization over categorical choices; `PRSampler` works in any Optuna study. Knows nothing of recommenders."""

import warnings
from typing import Any

from dasearch.bayes.acquisition import LogExpectedImprovement
from dasearch.bayes.choices import Choices
from dasearch.bayes.hypervolume import (
    HypervolumeImprovement,
    KnownCost,
    Reference,
    front,
    hypervolume,
    knee,
    spread_over,
)
from dasearch.bayes.kernel import LayeredKernel
from dasearch.bayes.parameters import Parameter, parameter_of, parameters_of
from dasearch.bayes.quiet import quietly
from dasearch.bayes.reparameterization import (
    Maximum,
    ProbabilisticReparameterization,
    SpaceExhausted,
    probabilities_of,
)
from dasearch.bayes.sampler import (
    Proposal,
    PRSampler,
    choices_of,
    curve_mean,
    known_cost,
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
    "HypervolumeImprovement",
    "KnownCost",
    "LayeredKernel",
    "LeaveOneOut",
    "LogExpectedImprovement",
    "Maximum",
    "Observation",
    "PRSampler",
    "Parameter",
    "Posterior",
    "Prior",
    "ProbabilisticReparameterization",
    "Proposal",
    "Reference",
    "SpaceExhausted",
    "Surrogate",
    "choices_of",
    "curve_mean",
    "front",
    "hypervolume",
    "knee",
    "known_cost",
    "mean_of_curve",
    "parameter_of",
    "parameters_of",
    "probabilities_of",
    "propose",
    "propose_batch",
    "quietly",
    "spread_over",
    "startup_trials",
]


def __getattr__(name: str) -> Any:
    if name == "Improvement":
        warnings.warn(
            "dasearch.bayes.Improvement is called LogExpectedImprovement now", DeprecationWarning, stacklevel=2
        )
        return LogExpectedImprovement
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
