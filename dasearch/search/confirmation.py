"""Confirmation of the winner: paired trainings with fresh seeds, against the controls.

The best of 30 noisy scores is biased upwards (the winner's curse), so neither the winner nor its gain is taken from the
search. The top few by posterior mean and the controls are trained again; differences are paired by seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from scipy import special

from dasearch.deprecation import renamed
from dasearch.layout import Layout
from dasearch.search.domain import Domain, Point
from dasearch.search.store import Confirmation, Result
from dasearch.search_space import SearchSpace
from dasearch.training.metrics import Interval
from dasearch.training.seeds import generator_for

ALL_SERIAL, ALL_PARALLEL, RANDOM = "all-serial", "all-parallel", "random"
CANDIDATE = "candidate"
WINNER = "winner"  # its row of the results table
CONTROLS = 3  # all serial, all parallel, random
OBJECTIVE = "MRR"  # where a study names no other metric
Order = Callable[[Domain, Mapping[Point, float]], list[Layout]]


@dataclass(frozen=True)
class ConfirmationCandidate:
    """A layout to be confirmed, and its role."""

    layout: Layout
    role: str


@dataclass(frozen=True)
class ConfirmedLayout:
    """A confirmed layout: its mean score over seeds, and its gain over all-serial, with 95% t intervals.

    Attributes:
        gain: None for all-serial itself.
        simultaneous_interval: the gain with a simultaneous 95% interval over all comparisons (Bonferroni): the winner is the
            best of several, which its own interval does not account for.
    """

    layout: Layout
    role: str
    score: Interval
    gain: Interval | None
    seeds: int
    simultaneous_interval: Interval | None = None

    together = renamed("together", "simultaneous_interval")


def controls(space: SearchSpace, seed: int) -> list[ConfirmationCandidate]:
    """All serial, all parallel and a random layout of the space, as near as its sites allow."""
    n, sites = space.layers, len(space.sites)
    wanted = {ALL_SERIAL: Layout.all_serial(n, sites), ALL_PARALLEL: Layout.all_parallel(n, sites)}
    nearest = {
        space.nearest(layout): role for role, layout in reversed(wanted.items())
    }  # all serial, where both are the same
    candidates = [ConfirmationCandidate(layout, role) for layout, role in reversed(nearest.items())]
    generator = generator_for(seed, "random control")
    for _ in range(100):  # a tiny space may hold no other layout
        drawn = space.random(generator)
        if drawn not in [contender.layout for contender in candidates]:
            return [*candidates, ConfirmationCandidate(drawn, RANDOM)]
    return candidates


def posterior_means(domain: Domain, signals: Mapping[Point, float]) -> dict[Layout, float]:
    """Posterior mean of every evaluated layout, under the best values of the settings searched besides it."""
    layouts, surrogate = list(dict.fromkeys(point.layout for point in signals)), domain.fitted(signals)
    values = domain.best_values(signals, surrogate)
    means = surrogate.posterior(domain.codes([Point(layout, values) for layout in layouts])).mean
    return dict(zip(layouts, means.tolist(), strict=True))


def by_posterior_mean(domain: Domain, signals: Mapping[Point, float]) -> list[Layout]:
    """Evaluated layouts, the best posterior mean first, which is less noisy than a single score."""
    means = posterior_means(domain, signals)
    return sorted(means, key=lambda layout: -means[layout])


def contenders(
    domain: Domain,
    signals: Mapping[Point, float],
    *,
    candidates: int,
    seed: int,
    order: Order = by_posterior_mean,
) -> list[ConfirmationCandidate]:
    """The best evaluated layouts by the search's signal, then the controls that are not among them."""
    ordered = order(domain, signals)[:candidates]
    roles = {contender.layout: contender.role for contender in controls(domain.space, seed)}
    best = [ConfirmationCandidate(layout, roles.get(layout, CANDIDATE)) for layout in ordered]
    return [*best, *(ConfirmationCandidate(layout, role) for layout, role in roles.items() if layout not in ordered)]


def standings(
    confirmations: Iterable[Confirmation], baseline: Layout, metric: str = OBJECTIVE
) -> list[ConfirmedLayout]:
    """Every confirmed layout, best mean first; gains are paired with the baseline by seed."""
    scores: dict[Layout, dict[int, float]] = {}
    roles: dict[Layout, str] = {}
    for confirmation in confirmations:
        scores.setdefault(confirmation.layout, {})[confirmation.seed] = confirmation.metrics[metric]
        roles[confirmation.layout] = confirmation.role
    against = scores.get(baseline, {})
    level = 1 - 0.05 / max(1, len(scores) - 1)
    confirmed = []
    for layout, by_seed in scores.items():
        shared = sorted(set(by_seed) & set(against))
        gains = [by_seed[s] - against[s] for s in shared] if layout != baseline else []
        alone, together = (t_interval(gains, level=wanted) if gains else None for wanted in (0.95, level))
        score = t_interval(list(by_seed.values()))
        confirmed.append(ConfirmedLayout(layout, roles[layout], score, alone, len(by_seed), together))
    return sorted(confirmed, key=lambda standing: -standing.score.mean)


def recommended(found: Sequence[ConfirmedLayout]) -> ConfirmedLayout:
    """The layout to train in full: the best of those that beat all-serial beyond seed noise, else all-serial.

    A layout that is best by chance is no reason to prefer it to the simplest one.

    Args:
        found: as `standings` gives them; at least one.
    """
    proven = (one for one in found if one.simultaneous_interval is not None and one.simultaneous_interval.low > 0)
    serial = (standing for standing in found if standing.gain is None)
    return next(proven, None) or next(serial, found[0])


def cheapest(found: Sequence[ConfirmedLayout], costs: Mapping[Layout, int], worth: float) -> ConfirmedLayout | None:
    """The cheapest confirmed layout that is not worse than all-serial; None where that is all-serial.

    Not worse: its loss, with the simultaneous interval, is below a relative ``worth``.

    Args:
        found: as `standings` gives them; at least one.
        costs: such as trained parameters, of the layouts where they are known.
        worth: relative margin of non-inferiority, such as .02.
    """
    serial = next((standing for standing in found if standing.gain is None), None)
    if serial is None or serial.layout not in costs:
        return None
    least = -worth * abs(serial.score.mean)
    level = [one for one in found if one.simultaneous_interval is not None and one.simultaneous_interval.low > least]
    lighter = [
        standing for standing in level if standing.layout in costs and costs[standing.layout] < costs[serial.layout]
    ]
    return min(lighter, key=lambda standing: costs[standing.layout], default=None)


def winner_of(
    results: Iterable[Result],
    found: Sequence[ConfirmedLayout],
    space: SearchSpace,
    selection: Callable[[Sequence[ConfirmedLayout]], ConfirmedLayout] | None = None,
) -> Layout | None:
    """The layout that was trained in full as the winner, or will be. None where nothing is confirmed yet.

    Args:
        results: of the final evaluation, with the winner's layout; empty before it.
        found: as `standings` gives them.
        space: of the layouts.
        selection: how a study with a cost chooses; None: `recommended`.
    """
    for result in results:
        if result.name == WINNER and result.layout is not None:
            return space.parse(result.layout)
    return (selection or recommended)(found).layout if found else None


def t_interval(values: Sequence[float], *, level: float = 0.95) -> Interval:
    """Student's t interval of a mean; infinitely wide for a single value."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return Interval(mean, -math.inf, math.inf)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(special.stdtrit(n - 1, (1 + level) / 2)) * sd / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)
