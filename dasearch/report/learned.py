"""The surrogate's posterior effects after a study's evaluations, by site."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from dasearch.bayes import Effects, Surrogate
from dasearch.layout import Choice, Layout
from dasearch.search.domain import Domain, Point
from dasearch.search_space import SearchSpace

FEWEST = 4  # evaluations; with fewer the prior dominates
MOST = 150  # evaluations fitted; a fit takes cubic time, and a page must not wait for it
PAIRS = 12  # interactions kept


class Effect(NamedTuple):
    """The main effect of a choice instead of its site's first, or the interaction of two such changes.

    Averaged over all other sites; posterior mean and standard deviation.
    """

    sites: tuple[str, ...]
    mean: float
    sd: float
    choices: tuple[Choice, ...]  # of the sites
    first: tuple[Choice, ...]  # the sites' first choices, the baseline


class Prediction(NamedTuple):
    """Posterior mean and sd of a layout's score, observation noise excluded."""

    mean: float
    sd: float


class SettingValue(NamedTuple):
    """The posterior of the best layout with another value of one setting searched besides it."""

    key: str
    value: Any
    predicted: Prediction
    found: bool  # whether it is the best one


@dataclass(frozen=True)
class Learned:
    """Effects and predictions.

    Attributes:
        main: of every free site's choices except its first, in the order of the layout's letters.
        pairs: the strongest interactions, by their mean, the strongest first.
        predicted: of every evaluated layout, under the best settings.
        settings: of every value of every setting searched besides the layout; empty where there is none.
        noise_sd: of one evaluation.
        fitted: number of evaluations fitted, evenly spaced among ``evaluated``.
    """

    main: tuple[Effect, ...]
    pairs: tuple[Effect, ...]
    predicted: Mapping[Layout, Prediction]
    noise_sd: float
    fitted: int
    evaluated: int
    settings: tuple[SettingValue, ...] = ()


def learn(domain: Domain, signals: Mapping[Point, float]) -> Learned | None:
    """Fit a surrogate to the search's signals; None where evaluations are too few."""
    if len(signals) < FEWEST:
        return None
    codes, values, choices = domain.evaluations(signals)
    chosen = torch.linspace(0, len(signals) - 1, min(MOST, len(signals))).round().long()
    surrogate = Surrogate.fit(codes[chosen], values[chosen], choices)
    values_found = domain.best_values(signals)
    layouts = list(dict.fromkeys(point.layout for point in signals))
    predicted = _predicted(surrogate, domain, [Point(layout, values_found) for layout in layouts])
    pairs = _named(surrogate.pair_effects(), domain.space) if len(domain.space.free) > 1 else ()
    best = max(zip(layouts, predicted, strict=True), key=lambda pair: pair[1].mean)[0]
    return Learned(
        main=_named(surrogate.main_effects(), domain.space),
        pairs=tuple(sorted(pairs, key=lambda effect: -abs(effect.mean))[:PAIRS]),
        predicted=dict(zip(layouts, predicted, strict=True)),
        settings=tuple(_along(surrogate, domain, Point(best, values_found))),
        noise_sd=float(surrogate.noise_sd),
        fitted=len(chosen),
        evaluated=len(signals),
    )


def _predicted(surrogate: Surrogate, domain: Domain, points: Sequence[Point]) -> list[Prediction]:
    mean, sd = surrogate.posterior(domain.codes(points))
    return [Prediction(*both) for both in zip(mean.tolist(), sd.tolist(), strict=True)]


def _along(surrogate: Surrogate, domain: Domain, best: Point) -> Iterator[SettingValue]:
    """Variants of the best point: every value of each setting in turn."""
    for place, (key, parameter) in enumerate(domain.settings.items()):
        varied = [(*best.values[:place], value, *best.values[place + 1 :]) for value in parameter.values]
        predicted = _predicted(surrogate, domain, [Point(best.layout, values) for values in varied])
        at = parameter.code(best.values[place])
        for code, (value, prediction) in enumerate(zip(parameter.values, predicted, strict=True)):
            yield SettingValue(key, value, prediction, code == at)


def _named(effects: Effects, space: SearchSpace) -> tuple[Effect, ...]:
    """The effects of sites, which come before the settings."""
    named = []
    for codes, mean, sd in zip(effects.choices, effects.mean.tolist(), effects.sd.tolist(), strict=True):
        if any(variable >= len(space.free) for variable, _ in codes):
            continue
        sites = tuple(space.free[variable] for variable, _ in codes)
        lists = [space.choices[site] for site in sites]
        chosen = tuple(choices[code] for choices, (_, code) in zip(lists, codes, strict=True))
        named.append(Effect(sites, mean, sd, chosen, tuple(choices[0] for choices in lists)))
    return tuple(named)
