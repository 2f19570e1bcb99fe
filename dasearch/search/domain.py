"""The search domain: a layout and, where `search.also` names settings, a value for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial
from torch import Tensor

from dasearch.bayes import Choices, Parameter, Surrogate, choices_of, parameter_of
from dasearch.config import StudySettings
from dasearch.layout import Layout
from dasearch.search.runs import RunId
from dasearch.search_space import SearchSpace

Values = tuple[Any, ...]  # one value per setting of the domain, in order


class Point(NamedTuple):
    """The layout and the setting values that one trial evaluates."""

    layout: Layout
    values: Values = ()


@dataclass(frozen=True)
class Domain:
    """The layouts of a space, and the values of the settings searched besides them.

    Args:
        also: the distribution of each setting, by its dotted key.
    """

    space: SearchSpace
    also: Mapping[str, BaseDistribution]

    @classmethod
    def of(cls, settings: StudySettings, space: SearchSpace) -> Domain:
        """A study's."""
        return cls(space, settings.searched)

    @cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The distribution of every parameter of a trial, by name: free sites, then settings."""
        sites = {n: CategoricalDistribution([choice.name for choice in self.space.choices[n]]) for n in self.space.free}
        return {**sites, **self.also}

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        """The same parameters as variables."""
        parameters = {name: parameter_of(distribution) for name, distribution in self.distributions.items()}
        return {name: parameter for name, parameter in parameters.items() if parameter is not None}

    @property
    def settings(self) -> dict[str, Parameter]:
        """The searched settings as variables, by dotted key."""
        return {key: self.parameters[key] for key in self.also}

    @cached_property
    def choices(self) -> Choices:
        """Every parameter, in the surrogate's encoding."""
        return choices_of(self.parameters)

    def holds(self, params: Mapping[str, Any]) -> bool:
        """Whether these are a point of the domain."""
        return self.space.holds(params) and all(
            key in params and parameter.code(params[key]) is not None for key, parameter in self.settings.items()
        )

    def point(self, params: Mapping[str, Any]) -> Point:
        """The point of a trial's parameters, which must pass `holds`."""
        return Point(self.space.decode(params), tuple(params[key] for key in self.also))

    def named(self, values: Values) -> dict[str, Any]:
        """A point's setting values by dotted key."""
        return dict(zip(self.also, values, strict=True))

    def codes(self, points: Sequence[Point]) -> Tensor:
        """Points as integer codes, ``(points, parameters)`` int64."""
        rows = [[*self.space.codes(point.layout), *self._codes_of(point.values)] for point in points]
        return torch.tensor(rows, dtype=torch.long).view(len(points), len(self.distributions))

    def _codes_of(self, values: Values) -> list[int]:
        codes = [parameter.code(value) for parameter, value in zip(self.settings.values(), values, strict=True)]
        return [code for code in codes if code is not None]

    def evaluations(self, signals: Mapping[Point, float]) -> tuple[Tensor, Tensor, Choices]:
        """Inputs of `Surrogate.fit`. Shapes: codes ``(points, parameters)``, values ``(points,)`` float64."""
        return self.codes(list(signals)), torch.tensor(list(signals.values()), dtype=torch.float64), self.choices

    def fitted(self, signals: Mapping[Point, float]) -> Surrogate:
        """The surrogate fitted to the evaluated points."""
        return Surrogate.fit(*self.evaluations(signals))

    def best_values(self, signals: Mapping[Point, float], surrogate: Surrogate | None = None) -> Values:
        """The settings at the evaluated point of the best posterior mean; empty where none are searched.

        ``surrogate`` is the result of `fitted` for the signals, if it was computed already.
        """
        if not self.also or not signals:
            return ()
        points = list(signals)
        means = (surrogate or self.fitted(signals)).posterior(self.codes(points)).mean
        return points[int(means.argmax())].values


def settings_text(values: Mapping[str, Any]) -> str:
    """Settings in words: ``trial.lr=0.00316``."""
    return " ".join(f"{key}={number(value)}" for key, value in values.items())


def briefly(values: Mapping[str, Any]) -> dict[str, str]:
    """Settings by the last part of their keys, where that is unique: ``{"lr": "0.00316"}``."""
    last = [key.rpartition(".")[2] for key in values]
    alone = {key: name if last.count(name) == 1 else key for key, name in zip(values, last, strict=True)}
    return {alone[key]: number(value) for key, value in values.items()}


def number(value: Any) -> str:
    """A value as text, to three significant digits where it is a fraction."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def trial_run(layout: Layout, values: Mapping[str, Any]) -> str:
    """The name of a trial's training."""
    return str(RunId.trial(layout, values))


def suggested(trial: Trial, name: str, distribution: BaseDistribution) -> Any:
    """A trial's value of a parameter, proposed by its study's sampler."""
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(name, distribution.low, distribution.high, log=distribution.log)
    assert isinstance(distribution, FloatDistribution)
    return trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)
