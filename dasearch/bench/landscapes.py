"""Landscapes with a known optimum: synthetic ("planted") ones, and tables of layouts that were all trained.

A planted landscape is a sum over layers of effects of single sites, of pairs of sites within a layer and of one site in
neighbouring layers, so that its optimum is found exactly by dynamic programming over layers; the sparse family depends on a
few sites and is enumerated. Effects are coefficients of the orthogonal columns of `Choices.contrasts`, k = choices - 1 per site:
-1 and 1 for two choices. Terms are therefore uncorrelated over random layouts, and all choices are drawn alike. Interaction
coefficients shrink with the number of choices, so that pairs keep their share of the variance.
"""

from __future__ import annotations

import itertools
import json
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dasearch.bayes import Choices
from dasearch.errors import DasearchError

SITES = 3
BINARY = 2  # default number of choices of a site
MOST_CHOICES = 8  # the sparse family holds all combinations of the active sites' choices in memory
NOISE = 0.2  # standard deviation of an evaluation's noise, as a share of the landscape's own over random layouts
SPARSE_SITES = 6
OBJECTIVE, OUTPUTS = "MRR", ("MRR", "Recall@10", "NDCG@10", "loss")
SCALE = 1 / 4  # length scale of smooth effects, as a share of the depth


class Landscape(Protocol):
    """An objective over layouts on which samplers are compared."""

    @property
    def sizes(self) -> dict[str, int]:
        """Number of choices of each site of each layer, by name."""

    def truth(self, codes: tuple[int, ...]) -> float:
        """The noise-free value, scaled so that random layouts have mean 0 and the best layout has 1."""

    def observe(self, codes: tuple[int, ...], generator: torch.Generator) -> list[float]:
        """A noisy evaluation in arbitrary units: the learning curve, if there is one, followed by the value."""


def contrasts(choices: int) -> Tensor:
    """The contrast columns of one site, ``(choices, k)``."""
    return Choices((choices,)).contrasts(torch.arange(choices)[:, None])


def combinations(choices: int, sites: int) -> Tensor:
    """The contrast columns of every combination of choices, ``(choices ** sites, sites * k)``."""
    codes = torch.tensor(list(itertools.product(range(choices), repeat=sites)))
    return contrasts(choices)[codes].flatten(1)


class Formula(ABC):
    """A landscape given by a formula with mean 0 over random layouts."""

    @property
    @abstractmethod
    def optimum(self) -> float:
        """The largest value of any layout."""

    @property
    @abstractmethod
    def spread(self) -> float:
        """Standard deviation of the value over random layouts."""

    @abstractmethod
    def value(self, codes: Tensor) -> Tensor:
        """Noise-free values of layouts. Shapes: codes ``(m, L * S)`` -> ``(m,)``."""

    def truth(self, codes: tuple[int, ...]) -> float:
        """The noise-free value divided by the optimum."""
        return float(self.value(torch.tensor([codes]))[0]) / self.optimum

    def observe(self, codes: tuple[int, ...], generator: torch.Generator) -> list[float]:
        """The value with normal noise of `NOISE` times the landscape's spread; no learning curve."""
        noise = float(torch.randn((), generator=generator, dtype=torch.float64))
        return [float(self.value(torch.tensor([codes]))[0]) + NOISE * self.spread * noise]


def site_names(layers: int, sites: int = SITES) -> list[str]:
    """Names of all sites, layer by layer: ``layer01.site0``, ``layer01.site1``."""
    return [f"layer{layer + 1:02d}.site{site}" for layer in range(layers) for site in range(sites)]


@dataclass(frozen=True)
class Planted(Formula):
    """Coefficients of contrast columns: ``single (L, S, k)``, ``within (L, S, k, S, k)``, ``between (L - 1, S, k, k)``.

    ``within`` is zero unless the first site comes before the second.
    """

    single: Tensor
    within: Tensor
    between: Tensor

    @property
    def choices(self) -> int:
        """Number of choices of each site."""
        return self.single.shape[2] + 1

    @property
    def sizes(self) -> dict[str, int]:
        """Number of choices of each site of each layer, by name."""
        return dict.fromkeys(site_names(*self.single.shape[:2]), self.choices)

    def value(self, codes: Tensor) -> Tensor:
        """Sum of single, within-layer and neighbouring-layer effects. Shapes: codes ``(m, L * S)`` -> ``(m,)``."""
        x = contrasts(self.choices)[codes.long().view(len(codes), *self.single.shape[:2])]  # (m, L, S, k)
        flat = x.flatten(2)
        pairs = torch.einsum("mls,lst,mlt->m", flat, self._flat_within, flat)
        following = torch.einsum("mlsj,lsjk->mlsk", x[:, :-1], self.between) * x[:, 1:]
        return (flat * self.single.flatten(1)).sum((1, 2)) + pairs + following.flatten(2).sum((1, 2))

    @property
    def _flat_within(self) -> Tensor:
        """``within`` with site and column merged, ``(L, S * k, S * k)``."""
        return self.within.flatten(3, 4).flatten(1, 2)

    @cached_property
    def optimum(self) -> float:
        """The exact maximum, by dynamic programming over the states of a layer."""
        sites, columns = self.single.shape[1:]
        states = combinations(self.choices, sites)
        own = states @ self.single.flatten(1).T + torch.einsum("as,lst,at->al", states, self._flat_within, states)
        best = own[:, 0]  # of (states, L)
        for layer in range(1, len(self.single)):
            moved = torch.einsum("asj,sjk->ask", states.view(-1, sites, columns), self.between[layer - 1])
            best = (best[:, None] + moved.flatten(1) @ states.T).max(0).values + own[:, layer]
        return float(best.max())

    @cached_property
    def spread(self) -> float:
        """Standard deviation over random layouts: the root of the summed squares, as terms are uncorrelated."""
        parts = (self.single, self.within, self.between)
        return float(torch.stack([part.square().sum() for part in parts]).sum().sqrt())


@dataclass(frozen=True)
class Sparse(Formula):
    """Single and pair effects of a few sites: ``active (A,)``, ``single (A, k)``, ``pairs (A, k, A, k)``, as in `Planted`."""

    layers: int
    active: Tensor
    single: Tensor
    pairs: Tensor

    @property
    def choices(self) -> int:
        """Number of choices of each site."""
        return self.single.shape[1] + 1

    @property
    def sizes(self) -> dict[str, int]:
        """Number of choices of each site of each layer, by name."""
        return dict.fromkeys(site_names(self.layers), self.choices)

    def value(self, codes: Tensor) -> Tensor:
        """Sum of the active sites' effects. Shapes: codes ``(m, L * S)`` -> ``(m,)``."""
        return self._of_active(contrasts(self.choices)[codes[:, self.active].long()].flatten(1))

    def _of_active(self, x: Tensor) -> Tensor:
        return x @ self.single.flatten() + ((x @ self.pairs.flatten(2).flatten(0, 1)) * x).sum(1)

    @cached_property
    def optimum(self) -> float:
        """The exact maximum, by enumeration of the active sites' choices."""
        return float(self._of_active(combinations(self.choices, len(self.active))).max())

    @cached_property
    def spread(self) -> float:
        """Standard deviation over random layouts: the root of the summed squares, as terms are uncorrelated."""
        return float((self.single.square().sum() + self.pairs.square().sum()).sqrt())


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _pairs(generator: torch.Generator, sites: int, columns: int, *layers: int) -> Tensor:
    """Normally distributed interactions of every two sites, ``(*layers, sites, k, sites, k)``."""
    upper = torch.ones(sites, sites, dtype=torch.float64).triu(1)[:, None, :, None]
    return _normal(generator, *layers, sites, columns, sites, columns) * upper / math.sqrt(columns)


def _over_depth(layers: int, columns: int, generator: torch.Generator) -> Tensor:
    """Effects that vary smoothly with depth, ``(layers, SITES, k)``."""
    at = torch.arange(layers, dtype=torch.float64)
    kernel = torch.exp(-0.5 * ((at[:, None] - at) / (SCALE * layers)).square())
    lower: Tensor = torch.linalg.cholesky(kernel + 1e-8 * torch.eye(layers, dtype=torch.float64))
    return (lower @ _normal(generator, layers, SITES * columns)).view(layers, SITES, columns)


def _planted(single: Tensor, within: Tensor | None = None, between: Tensor | None = None) -> Planted:
    """A landscape whose omitted interactions are zero."""
    layers, sites, columns = single.shape
    if within is None:
        within = single.new_zeros(layers, sites, columns, sites, columns)
    if between is None:
        between = single.new_zeros(layers - 1, sites, columns, columns)
    return Planted(single, within, between)


def independent(layers: int, generator: torch.Generator, choices: int = BINARY) -> Planted:
    """Independent effects of every site in every layer."""
    return _planted(_normal(generator, layers, SITES, choices - 1))


def smooth(layers: int, generator: torch.Generator, choices: int = BINARY) -> Planted:
    """Effects of each site's choices that vary smoothly with depth."""
    return _planted(_over_depth(layers, choices - 1, generator))


def step(layers: int, generator: torch.Generator, choices: int = BINARY) -> Planted:
    """Effects of each site's choices that change sign once, at a random depth per site."""
    turn = torch.randint(1, layers, (SITES,), generator=generator)
    direction = torch.nn.functional.normalize(_normal(generator, SITES, choices - 1), dim=1)
    height = 0.5 + torch.rand(SITES, generator=generator, dtype=torch.float64)
    side = torch.where(torch.arange(layers)[:, None] < turn, -1.0, 1.0)
    return _planted(side[..., None] * (direction * height[:, None]))


def within(layers: int, generator: torch.Generator, choices: int = BINARY) -> Planted:
    """Interactions of the sites within a layer, independent between layers."""
    pairs = _pairs(generator, SITES, choices - 1, layers)
    return _planted(0.7 * _normal(generator, layers, SITES, choices - 1), within=pairs)


def neighbours(layers: int, generator: torch.Generator, choices: int = BINARY) -> Planted:
    """Interactions of a site with itself in the next layer, similar in all layers; small smooth single effects."""
    columns = choices - 1
    alike, own = (_normal(generator, count, SITES, columns, columns) for count in (1, layers - 1))
    single = 0.5 * _over_depth(layers, columns, generator)
    return _planted(single, between=(alike + 0.3 * own) / math.sqrt(columns))


def sparse(layers: int, generator: torch.Generator, choices: int = BINARY) -> Sparse:
    """Effects of six sites and their pairs; all other sites have no effect."""
    active = torch.randperm(layers * SITES, generator=generator)[:SPARSE_SITES]
    pairs = 0.5 * _pairs(generator, SPARSE_SITES, choices - 1)
    return Sparse(layers, active, _normal(generator, SPARSE_SITES, choices - 1), pairs)


class Family(Protocol):
    """A factory of random landscapes with a given number of layers and of choices per site."""

    def __call__(self, layers: int, generator: torch.Generator, choices: int = BINARY) -> Planted | Sparse:
        """Draw a landscape with this many layers and choices per site."""


FAMILIES: dict[str, Family] = {
    "independent": independent,
    "smooth": smooth,
    "step": step,
    "within": within,
    "neighbours": neighbours,
    "sparse": sparse,
}


@dataclass(frozen=True)
class Table:
    """Every layout of a small space, trained with several seeds.

    A search sees each layout's result for one seed, drawn independently for every layout and race; the mean effect of a seed is
    subtracted first, as in `dasearch run`, where all layouts share one seed. The truth is the mean over seeds.

    Attributes:
        outputs: metrics of the selected epoch, by name: ``(layouts, seeds)``.
        curves: metrics of every epoch, by name: ``(layouts, seeds, epochs)``.
        drawn: index of the seed that a search sees, ``(layouts,)``.
    """

    header: dict[str, Any]
    layouts: list[tuple[int, ...]]
    outputs: dict[str, Tensor]
    curves: dict[str, Tensor]
    drawn: Tensor
    index: dict[tuple[int, ...], int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", {layout: i for i, layout in enumerate(self.layouts)})

    @property
    def letters(self) -> dict[str, str]:
        """The letters of the choices of each site of each layer, by site name."""
        return _letters(self.header)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of choices of each site of each layer, by name."""
        return {name: len(letters) for name, letters in self.letters.items()}

    @cached_property
    def means(self) -> Tensor:
        """Mean objective over seeds, ``(layouts,)``."""
        return self.outputs[OBJECTIVE].mean(1)

    def truth(self, codes: tuple[int, ...]) -> float:
        """The mean over seeds, scaled so that the mean layout has 0 and the best 1."""
        mean = float(self.means.mean())
        return (float(self.means[self.index[codes]]) - mean) / (float(self.means.max()) - mean)

    def observe(self, codes: tuple[int, ...], generator: torch.Generator) -> list[float]:
        """The learning curve and the value of the objective for the layout's drawn seed; ``generator`` is unused."""
        return self.seen(codes, OBJECTIVE)

    def seen(self, codes: tuple[int, ...], output: str) -> list[float]:
        """The learning curve of one output for the layout's drawn seed, followed by its value at the selected epoch."""
        layout = self.index[codes]
        seen = (layout, int(self.drawn[layout]))
        curves, values = self.curves[output], self.outputs[output]
        curve = curves - curves.mean(0) + curves.mean((0, 1))
        return [*curve[seen].tolist(), float((values - values.mean(0) + values.mean())[seen])]


def read_table(path: Path, *, seed: int = 0) -> Table:
    """Read a table written by ``benchmarks/train_table.py``; seeds with missing layouts are dropped.

    Raises:
        DasearchError: if no seed is complete, or a layout does not match the file's header.
    """
    header, *rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    letters = list(_letters(header).values())
    by_seed: dict[int, dict[tuple[int, ...], dict[str, Any]]] = {}
    for row in rows:
        by_seed.setdefault(row["seed"], {})[_codes(row["layout"], letters, path)] = row
    layouts = sorted({layout for by_layout in by_seed.values() for layout in by_layout})
    count = math.prod(map(len, letters))
    whole = [by_layout for _, by_layout in sorted(by_seed.items()) if len(by_layout) == count]
    if not whole:
        raise DasearchError(f"{path} has no seed with every layout yet; finish it with benchmarks/train_table.py")
    kept = [[by_layout[layout] for by_layout in whole] for layout in layouts]
    curves = {
        name: torch.tensor([[row[name] for row in seeds] for seeds in kept], dtype=torch.float64) for name in OUTPUTS
    }
    best = torch.tensor([[[row["best_epoch"]] for row in seeds] for seeds in kept])
    outputs = {name: curve.gather(2, best).squeeze(2) for name, curve in curves.items()}
    drawn = torch.randint(len(whole), (len(layouts),), generator=torch.Generator().manual_seed(seed))
    return Table(header, layouts, outputs, curves, drawn)


def _letters(header: dict[str, Any]) -> dict[str, str]:
    """Letters of each site's choices, by name; early tables had two choices only and do not list them."""
    names = header["names"]
    return dict(zip(names, header.get("letters", ["SP"] * len(names)), strict=True))


def _codes(layout: str, letters: list[str], path: Path) -> tuple[int, ...]:
    letters_of_layout = layout.replace("-", "")
    if len(letters_of_layout) != len(letters) or any(
        letter not in known for letter, known in zip(letters_of_layout, letters, strict=True)
    ):
        raise DasearchError(
            f"{path} has a layout {layout}, and its first line lists {', '.join(letters)} as the sites' letters; "
            "make the table again with benchmarks/train_table.py"
        )
    return tuple(known.index(letter) for letter, known in zip(letters_of_layout, letters, strict=True))
