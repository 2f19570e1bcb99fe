"""What a surrogate learned from a study's evaluations, by the names of the sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from dasearch.bayes import Effects, Surrogate
from dasearch.layout import Choice, Layout
from dasearch.search.worth import evaluations
from dasearch.search_space import SearchSpace

FEWEST = 4  # evaluations; of fewer the prior would speak alone
MOST = 150  # evaluations fitted; a fit's time grows with their cube, and a page must not wait for it
PAIRS = 12  # interactions kept


class Effect(NamedTuple):
    """The change of the score when a site takes a choice instead of its first; for two, how much one's changes with the other.

    Averaged over all other sites; mean and posterior standard deviation.
    """

    sites: tuple[str, ...]
    mean: float
    sd: float
    choices: tuple[Choice, ...]  # at the sites
    first: tuple[Choice, ...]  # the sites' first choices, which these are set against


class Prediction(NamedTuple):
    """Posterior mean and sd of a layout's score without a trial's own noise."""

    mean: float
    sd: float


@dataclass(frozen=True)
class Learned:
    """Effects and predictions.

    Attributes:
        main: of every free site's choices but its first, in the order of the layout's letters.
        pairs: the strongest interactions, by their mean, the strongest first.
        predicted: of every evaluated layout.
        noise_sd: of one evaluation.
        fitted: how many evaluations were fitted, evenly spaced, of ``evaluated``.
    """

    main: tuple[Effect, ...]
    pairs: tuple[Effect, ...]
    predicted: Mapping[Layout, Prediction]
    noise_sd: float
    fitted: int
    evaluated: int


def learn(space: SearchSpace, signals: Mapping[Layout, float]) -> Learned | None:
    """Fit a surrogate to what the search learned from; None where evaluations are too few."""
    if len(signals) < FEWEST:
        return None
    codes, values, choices = evaluations(space, signals)
    chosen = torch.linspace(0, len(signals) - 1, min(MOST, len(signals))).round().long()
    surrogate = Surrogate.fit(codes[chosen], values[chosen], choices)
    means, sds = surrogate.posterior(codes)
    predictions = (Prediction(mean, sd) for mean, sd in zip(means.tolist(), sds.tolist(), strict=True))
    pairs = _named(surrogate.pair_effects(), space) if len(space.free) > 1 else ()
    return Learned(
        main=_named(surrogate.main_effects(), space),
        pairs=tuple(sorted(pairs, key=lambda effect: -abs(effect.mean))[:PAIRS]),
        predicted=dict(zip(signals, predictions, strict=True)),
        noise_sd=float(surrogate.noise_sd),
        fitted=len(chosen),
        evaluated=len(signals),
    )


def _named(effects: Effects, space: SearchSpace) -> tuple[Effect, ...]:
    found = []
    for codes, mean, sd in zip(effects.choices, effects.mean.tolist(), effects.sd.tolist(), strict=True):
        sites = tuple(space.free[variable] for variable, _ in codes)
        lists = [space.choices[site] for site in sites]
        chosen = tuple(choices[code] for choices, (_, code) in zip(lists, codes, strict=True))
        found.append(Effect(sites, mean, sd, chosen, tuple(choices[0] for choices in lists)))
    return tuple(found)
