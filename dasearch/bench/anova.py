"""Analysis of variance of a table: the share of the layouts' variance explained by single sites, by pairs, and by higher orders.

Over all layouts, products of the sites' orthogonal columns (`landscapes.contrasts`), one column from each site of a subset, are
an orthonormal basis; the squared coefficients add up to the variance of the layouts. For two choices they are Walsh functions.
Noise adds its variance over the number of layouts to every square, and is subtracted.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from dasearch.bench.landscapes import Table, contrasts

SINGLE, PAIRS, MORE = "single sites", "pairs", "three and more"


class Effect(NamedTuple):
    """The effect of choices against the first choice of their sites, averaged over all other sites.

    ``choices`` holds ``(variable, code)``: one for a main effect, two for an interaction (by how much one changes the other's
    effect). ``sd`` is the standard deviation due to noise.
    """

    choices: tuple[tuple[int, int], ...]
    value: float
    sd: float  # by noise alone


def by_site(table: Table) -> Tensor:
    """The means over seeds as a tensor with one axis per site: ``(*sizes)``."""
    return table.means.view(*table.sizes.values())  # layouts are sorted by their codes


def variances(means: Tensor, noise: float) -> dict[str, float]:
    """The variance of layouts by interaction order: `SINGLE`, `PAIRS`, or `MORE`.

    Args:
        means: mean values with one axis per site, ``(*sizes)``.
        noise: variance of one of these means.
    """
    coefficients, order = means, torch.zeros((), dtype=torch.long)
    for size in means.shape:
        basis = torch.cat([torch.ones(size, 1, dtype=torch.float64), contrasts(size)], 1) / size
        coefficients = torch.tensordot(coefficients, basis, dims=([0], [0]))  # the axis becomes the last
        order = order[..., None] + (torch.arange(size) > 0)
    each = coefficients.square() - noise / means.numel()
    of = {SINGLE: order == 1, PAIRS: order == 2, MORE: order > 2}
    return {kind: max(0.0, float(each[chosen].sum())) for kind, chosen in of.items()}


def main_effects(means: Tensor, noise: float) -> list[Effect]:
    """Main effects of every choice but each site's first; arguments as in `variances`."""
    effects = []
    for i, size in enumerate(means.shape):
        averages = means.movedim(i, 0).reshape(size, -1).mean(1)
        sd = (2 * noise * size / means.numel()) ** 0.5
        effects += [Effect(((i, k),), float(averages[k] - averages[0]), sd) for k in range(1, size)]
    return effects


def pair_effects(means: Tensor, noise: float) -> list[Effect]:
    """Interactions of every two non-first choices of different sites; arguments as in `variances`."""
    effects = []
    for (i, size), (j, other) in itertools.combinations(enumerate(means.shape), 2):
        averages = means.movedim((i, j), (0, 1)).reshape(size, other, -1).mean(2)
        changes = averages - averages[:1] - averages[:, :1] + averages[0, 0]
        sd = (4 * noise * size * other / means.numel()) ** 0.5
        codes = itertools.product(range(1, size), range(1, other))
        effects += [Effect(((i, a), (j, b)), float(changes[a, b]), sd) for a, b in codes]
    return effects
