"""Whether any layout is worth having: the chance that one beats all-serial by more than a margin, from trials alone.

Each posterior draw is a landscape; the chance is the share of landscapes in which some layout of the space beats all-serial
by the margin. It needs no further training, and says when a search may stop. It is a statement about what the surrogate
learned, the mean of the validation curve of short trainings, not about the winner, which fresh seeds confirm.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dasearch.bayes import Choices, Surrogate
from dasearch.layout import Layout
from dasearch.search_space import SearchSpace
from dasearch.training.seeds import generator_for

DRAWS = 512  # landscapes: the chance's own standard error is below .01 at .05
LOOKED_AT = 4096  # layouts whose posterior is looked at: all of them, or so many drawn at random
COMPARED = 192  # of these in each landscape: the most promising
UNLIKELY = 0.05  # a chance below it is a flat landscape


def evaluations(space: SearchSpace, signals: Mapping[Layout, float]) -> tuple[Tensor, Tensor, Choices]:
    """What `Surrogate.fit` reads. Shapes: codes ``(layouts, free sites)``, values ``(layouts,)`` float64."""
    values = torch.tensor(list(signals.values()), dtype=torch.float64)
    return codes_of(space, list(signals)), values, choices_of(space)


def codes_of(space: SearchSpace, layouts: Sequence[Layout]) -> Tensor:
    """The free choices of layouts: ``(layouts, free sites)``."""
    codes = [space.codes(layout) for layout in layouts]
    return torch.tensor(codes, dtype=torch.long).view(len(layouts), len(space.free))


def choices_of(space: SearchSpace) -> Choices:
    """The free sites, as the surrogate knows them."""
    return Choices.named({name: len(space.choices[name]) for name in space.free})


def chance_of_gain(space: SearchSpace, signals: Mapping[Layout, float], *, margin: float, seed: int) -> float:
    """The posterior probability that some layout of the space beats all-serial by more than a relative ``margin``.

    Args:
        signals: what the surrogate learned from every evaluated layout; at least one.
        margin: of all-serial's own posterior mean, such as .02.
    """
    surrogate = Surrogate.fit(*evaluations(space, signals))
    generator = generator_for(seed, "worth", len(signals))
    serial, known = codes_of(space, [space.all_serial]), codes_of(space, list(signals))
    others = torch.cat([known, _looked_at(choices_of(space), generator)]).unique(dim=0)
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
