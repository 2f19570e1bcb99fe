"""The analysis of variance of a table: how much of the spread of layouts single sites explain, pairs of them, and more.

Over all layouts the products of the sites' orthogonal columns (`landscapes.contrasts`), one of each of some sites, are an
orthonormal basis; the squares of the coefficients add up to the variance of layouts. For two choices they are Walsh functions.
Noise adds its variance over the number of layouts to every square, and is taken off.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from dasearch.bench.landscapes import Table, contrasts

SINGLE, PAIRS, MORE = "single sites", "pairs", "three and more"


class Effect(NamedTuple):
    """What choices change against the first of their sites, ``(variable, code)`` each, averaged over all other sites.

    Of two choices the interaction: how much one's effect changes with the other.
    """

    choices: tuple[tuple[int, int], ...]
    value: float
    sd: float  # by noise alone


def by_site(table: Table) -> Tensor:
    """The means over seeds, an axis a site: ``(*sizes)``."""
    return table.means.view(*table.sizes.values())  # layouts stand in the order of their codes


def variances(means: Tensor, noise: float) -> dict[str, float]:
    """The variance of layouts by the number of sites that it takes to explain it.

    Args:
        means: an axis a site, ``(*sizes)``.
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
    """Of every choice but the first; arguments as in `variances`."""
    found = []
    for i, size in enumerate(means.shape):
        averages = means.movedim(i, 0).reshape(size, -1).mean(1)
        sd = (2 * noise * size / means.numel()) ** 0.5
        found += [Effect(((i, k),), float(averages[k] - averages[0]), sd) for k in range(1, size)]
    return found


def pair_effects(means: Tensor, noise: float) -> list[Effect]:
    """Of every two choices but the first, of different sites; arguments as in `variances`."""
    found = []
    for (i, size), (j, other) in itertools.combinations(enumerate(means.shape), 2):
        averages = means.movedim((i, j), (0, 1)).reshape(size, other, -1).mean(2)
        changes = averages - averages[:1] - averages[:, :1] + averages[0, 0]
        sd = (4 * noise * size * other / means.numel()) ** 0.5
        codes = itertools.product(range(1, size), range(1, other))
        found += [Effect(((i, a), (j, b)), float(changes[a, b]), sd) for a, b in codes]
    return found
