"""Finite products of categorical choices, as tensors.

A point is a row of codes, ``(d,)`` float64 integers: the index of each variable's choice. For two choices the codes are
the bits. `Choices.contrasts` turns codes into orthogonal columns of unit variance under the uniform distribution, so that
linear terms are main effects and products of columns are interactions.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

LAYERED_NAME = re.compile(r"^layer(?P<layer>\d+)\.(?P<site>.+)$")


@dataclass(frozen=True)
class Choices:
    """A finite product space: the number of choices of each variable and, where known, its layer and site.

    Args:
        sizes: number of choices of each variable, at least two.
        places: ``(layer, site)`` of each variable, None for a variable without one; None for a space without layers.
        positions: positions of each variable's choices on a scale in [0, 1], None for an unordered variable; None if all
            variables are unordered.

    Examples:
        >>> from dasearch.bayes import Choices
        >>> choices = Choices.named({"layer01.method": 3, "layer01.cached": 2, "layer02.method": 3})
        >>> choices, choices.count, len(choices.columns)
        (Choices(1 of 2, 2 of 3), 18, 5)
    """

    sizes: tuple[int, ...]
    places: tuple[tuple[int, str] | None, ...] | None = None
    positions: tuple[tuple[float, ...] | None, ...] | None = None

    def __repr__(self) -> str:
        counts = sorted(Counter(self.sizes).items())
        return f"Choices({', '.join(f'{count} of {size}' for size, count in counts)})"

    @classmethod
    def binary(cls, d: int) -> Choices:
        """A space of ``d`` variables with two choices each and no layers."""
        return cls((2,) * d)

    @classmethod
    def named(
        cls, sizes: Mapping[str, int], positions: Mapping[str, tuple[float, ...] | None] | None = None
    ) -> Choices:
        """A space of named variables, with layers and sites from names such as ``layer03.context`` if there are several."""
        matches = [LAYERED_NAME.match(name) for name in sizes]
        places = tuple((int(match["layer"]), match["site"]) if match else None for match in matches)
        known = len({place[0] for place in places if place}) > 1
        scales = tuple((positions or {}).get(name) for name in sizes)
        return cls(tuple(sizes.values()), places if known else None, scales if any(scales) else None)

    @property
    def d(self) -> int:
        """Number of variables."""
        return len(self.sizes)

    @property
    def count(self) -> int:
        """Number of points."""
        return math.prod(self.sizes)

    @cached_property
    def columns(self) -> tuple[tuple[int, int], ...]:
        """``(variable, k)`` of each contrast column, k counted from 1; as many columns as free parameters."""
        return tuple((i, k) for i, size in enumerate(self.sizes) for k in range(1, size))

    @cached_property
    def column_variable(self) -> Tensor:
        """The variable of each column, ``(D,)`` int64."""
        return torch.tensor([i for i, _ in self.columns])

    @cached_property
    def column_choice(self) -> Tensor:
        """The choice index k of each column, ``(D,)`` int64."""
        return torch.tensor([k for _, k in self.columns])

    @cached_property
    def column_size(self) -> Tensor:
        """The number of choices of each column's variable, ``(D,)`` float64."""
        return torch.tensor([float(self.sizes[i]) for i, _ in self.columns], dtype=torch.float64)

    def contrasts(self, codes: Tensor) -> Tensor:
        """Orthogonal contrast columns of codes. Shapes: codes ``(..., d)`` -> ``(..., D)`` float64; -1 and 1 for two choices."""
        codes = codes.double()
        if all(size == 2 for size in self.sizes):
            return 2 * codes - 1
        value = codes[..., self.column_variable]
        k = self.column_choice.double()
        height = ((k + 1) * k / self.column_size).rsqrt()  # Helmert: -1 below k, k at k, 0 above
        return height * torch.where(value < k, -1.0, torch.where(value == k, k, 0.0))

    def effect_rows(self) -> Tensor:
        """Column weights of each choice's effect against its variable's first choice: ``(D, D)``, one row per choice."""
        rows = torch.zeros(len(self.columns), self.d, dtype=torch.float64)
        rows[torch.arange(len(rows)), self.column_variable] = self.column_choice.double()
        own = self.column_variable[:, None] == self.column_variable
        return (self.contrasts(rows) - self.contrasts(torch.zeros_like(rows))) * own

    def uniform(self, m: int, generator: torch.Generator) -> Tensor:
        """Uniformly drawn points, ``(m, d)``."""
        drawn = torch.rand(m, self.d, generator=generator, dtype=torch.float64)
        return self.from_unit(drawn)

    def from_unit(self, unit: Tensor) -> Tensor:
        """Codes from numbers in [0, 1), where each choice gets an equal share. Shapes: ``(m, d)`` -> ``(m, d)``."""
        sizes = torch.tensor(self.sizes, dtype=torch.float64)
        return (unit * sizes).floor().minimum(sizes - 1)


def hold(codes: Tensor, fixed: Mapping[int, int]) -> Tensor:
    """Set the variables of ``fixed`` to its codes, in place; shapes: ``(..., d)``."""
    for variable, code in fixed.items():
        codes[..., variable] = float(code)
    return codes


def among(codes: Tensor, known: Tensor) -> Tensor:
    """Whether each row of ``codes`` ``(m, d)`` occurs in ``known`` ``(e, d)``: ``(m,)`` bool."""
    codes, known = codes.double(), known.double()
    if not len(known):
        return torch.zeros(len(codes), dtype=torch.bool)
    squared = codes.square().sum(1, keepdim=True) + known.square().sum(1) - 2 * codes @ known.T  # exact for integers
    return (squared < 0.5).any(1)
