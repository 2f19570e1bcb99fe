"""The probability that some layout beats all-serial by more than a margin, estimated from trials only.

Each posterior sample is a landscape; the probability is the fraction of landscapes in which some layout of the space beats
all-serial by the margin. It needs no further training and serves as a stopping criterion. It concerns the surrogate's
signal, the mean of the validation curve of short trainings, not the winner, which fresh seeds confirm.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor

from dasearch.bayes import Choices
from dasearch.search.domain import Domain, Point
from dasearch.training.seeds import generator_for

DRAWS = 512  # posterior samples: the standard error of the probability is below .01 at .05
LOOKED_AT = 4096  # layouts considered: all of them, or a random sample of this size
COMPARED = 192  # the most promising of these, in each posterior sample
UNLIKELY = 0.05  # probability below which the landscape is called flat


def chance_of_gain(domain: Domain, signals: Mapping[Point, float], *, margin: float, seed: int) -> float:
    """The posterior probability that some layout of the space beats all-serial by more than a relative ``margin``.

    Args:
        domain: of layouts only.
        signals: of every evaluated layout; at least one.
        margin: relative to all-serial's own posterior mean, such as .02.
        seed: of the posterior samples.
    """
    surrogate = domain.fitted(signals)
    generator = generator_for(seed, "worth", len(signals))
    serial, known = domain.codes([Point(domain.space.all_serial)]), domain.codes(list(signals))
    others = torch.cat([known, _looked_at(domain.choices, generator)]).unique(dim=0)
    mean, sd = surrogate.posterior(others)
    promising = others[(mean + 2 * sd).argsort(descending=True, stable=True)[:COMPARED]]
    landscapes = surrogate.draws(torch.cat([serial, promising]), DRAWS, generator)
    gains = landscapes[:, 1:].max(1).values - landscapes[:, 0]
    least = margin * surrogate.posterior(serial).mean.abs()
    return float((gains > least).double().mean())


def _looked_at(choices: Choices, generator: torch.Generator) -> Tensor:
    if choices.count <= LOOKED_AT:
        return torch.tensor(list(itertools.product(*map(range, choices.sizes))), dtype=torch.long)
    return choices.uniform(LOOKED_AT, generator).long()
