"""Optuna's distributions as variables of `Choices`: a finite list of values each, with positions if they are numbers.

A number with more than `MOST_VALUES` values is searched on a grid over its range, evenly spaced on its own (linear or log)
scale: a budget of some tens of evaluations cannot distinguish neighbours on a finer grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

MOST_VALUES = 9  # of a number: over two decades neighbours differ by a factor of 1.8
Number = FloatDistribution | IntDistribution


@dataclass(frozen=True)
class Parameter:
    """A parameter as a variable.

    Attributes:
        values: the values, indexed by code.
        positions: positions of the values in [0, 1] on the parameter's own scale, ascending; None for unordered values.

    Examples:
        >>> from optuna.distributions import FloatDistribution
        >>> from dasearch.bayes import parameter_of
        >>> rate = parameter_of(FloatDistribution(1e-4, 1e-2, log=True))
        >>> len(rate.values), rate.code(1e-3)
        (9, 4)
    """

    distribution: BaseDistribution
    values: tuple[Any, ...]
    positions: tuple[float, ...] | None = None

    def code(self, value: Any) -> int | None:
        """The code of a value, for a number that of the nearest grid point; None for a value outside the distribution."""
        distribution = self.distribution
        if isinstance(distribution, CategoricalDistribution):
            return int(distribution.to_internal_repr(value)) if value in distribution.choices else None
        known = isinstance(value, int | float) and distribution._contains(value)
        if not known or self.positions is None or not isinstance(distribution, FloatDistribution | IntDistribution):
            return None
        at = _position(distribution, float(value))
        distances = [abs(position - at) for position in self.positions]
        return distances.index(min(distances))


def parameter_of(distribution: BaseDistribution) -> Parameter | None:
    """The variable of a distribution; None for a distribution with a single value.

    Examples:
        >>> from optuna.distributions import IntDistribution
        >>> from dasearch.bayes import parameter_of
        >>> parameter_of(IntDistribution(1, 5, step=2)).values
        (1, 3, 5)
        >>> parameter_of(IntDistribution(4, 4)) is None
        True
    """
    if isinstance(distribution, CategoricalDistribution):
        parameter = Parameter(distribution, tuple(distribution.choices))
    elif isinstance(distribution, FloatDistribution | IntDistribution) and distribution.low < distribution.high:
        values = _grid(distribution)
        parameter = Parameter(distribution, values, tuple(_position(distribution, float(value)) for value in values))
    else:
        return None
    return parameter if len(parameter.values) > 1 else None


def parameters_of(space: Mapping[str, BaseDistribution]) -> dict[str, Parameter]:
    """The variables with more than one value, by name, sorted by name.

    Examples:
        >>> from optuna.distributions import CategoricalDistribution
        >>> from dasearch.bayes import parameters_of
        >>> space = {"optimizer": CategoricalDistribution(["sgd", "adam"]), "device": CategoricalDistribution(["cpu"])}
        >>> list(parameters_of(space))
        ['optimizer']
    """
    parameters = {name: parameter_of(space[name]) for name in sorted(space)}
    return {name: parameter for name, parameter in parameters.items() if parameter is not None}


def _grid(distribution: Number) -> tuple[float, ...]:
    """All values, or `MOST_VALUES` evenly spaced on the parameter's own scale; both ends are included."""
    low, high, step = distribution.low, distribution.high, distribution.step
    count = MOST_VALUES if step is None else round((high - low) / step) + 1
    if not distribution.log and step is not None and count <= MOST_VALUES:
        values = [low + step * k for k in range(count)]
    else:
        values = [_at(distribution, k / (MOST_VALUES - 1)) for k in range(MOST_VALUES)]
    if isinstance(distribution, IntDistribution):
        return tuple(sorted({round(value) for value in values}))
    return tuple(values)


def _at(distribution: Number, position: float) -> float:
    """The value at a position, rounded to the distribution's step if it has one."""
    low, high, step = float(distribution.low), float(distribution.high), distribution.step
    if position in (0.0, 1.0):
        return high if position else low
    if distribution.log:
        return math.exp(math.log(low) + position * (math.log(high) - math.log(low)))
    value = low + position * (high - low)
    return value if step is None else low + step * round((value - low) / step)


def _position(distribution: Number, value: float) -> float:
    low, high = float(distribution.low), float(distribution.high)
    if distribution.log:
        return (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
    return (value - low) / (high - low)
