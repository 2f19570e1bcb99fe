"""Landscapes whose best layout is known: planted ones, and tables of layouts that were all really trained.

A planted landscape is a sum over layers of effects of single sites, of pairs of sites within a layer and of one site in
neighbouring layers, so that its optimum is found exactly, by dynamic programming over layers; the sparse family depends on a
few sites and is enumerated. Effects are coefficients of the orthogonal columns of `Choices.contrasts`, k = choices - 1 a site:
-1 and 1 for two choices. So terms are uncorrelated over random layouts, and no choice is drawn otherwise than another. Where
sites meet, coefficients of more choices are so much smaller as there are more of them: pairs keep their share of the variance.
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
BINARY = 2  # choices of a site, where nothing else is said
MOST_CHOICES = 8  # of the sparse family all combinations of the active sites' choices are held at once
NOISE = 0.2  # standard deviation of an evaluation's noise, as a share of the landscape's own over random layouts
SPARSE_SITES = 6
OBJECTIVE, OUTPUTS = "MRR", ("MRR", "Recall@10", "NDCG@10", "loss")
SCALE = 1 / 4  # length scale of smooth effects, as a share of the depth


class Landscape(Protocol):
    """What samplers are raced on."""

    @property
    def sizes(self) -> dict[str, int]:
        """The number of choices of each site of each layer, by name."""

    def truth(self, codes: tuple[int, ...]) -> float:
        """The noise-free value: 0 for the mean of random layouts, 1 for the best."""

    def observe(self, codes: tuple[int, ...], generator: torch.Generator) -> list[float]:
        """A noisy value, of any unit, as the last number; before it the learning curve, if there is one."""


def contrasts(choices: int) -> Tensor:
    """The columns of one site, ``(choices, k)``."""
    return Choices((choices,)).contrasts(torch.arange(choices)[:, None])


def combinations(choices: int, sites: int) -> Tensor:
    """The columns of every combination of choices, ``(choices ** sites, sites * k)``."""
    codes = torch.tensor(list(itertools.product(range(choices), repeat=sites)))
    return contrasts(choices)[codes].flatten(1)


class Formula(ABC):
    """A landscape that is a formula, whose mean over random layouts is 0."""

    @property
    @abstractmethod
    def optimum(self) -> float: ...

    @property
    @abstractmethod
    def spread(self) -> float:
        """Standard deviation over random layouts."""

    @abstractmethod
    def value(self, codes: Tensor) -> Tensor:
        """Shapes: codes ``(m, L * S)`` -> ``(m,)``."""

    def truth(self, codes: tuple[int, ...]) -> float:
        return float(self.value(torch.tensor([codes]))[0]) / self.optimum

    def observe(self, codes: tuple[int, ...], generator: torch.Generator) -> list[float]:
        noise = float(torch.randn((), generator=generator, dtype=torch.float64))
        return [float(self.value(torch.tensor([codes]))[0]) + NOISE * self.spread * noise]


def site_names(layers: int, sites: int = SITES) -> list[str]:
    """Names of every site, a layer after the other: ``layer01.site0``, ``layer01.site1``."""
    return [f"layer{layer + 1:02d}.site{site}" for layer in range(layers) for site in range(sites)]


@dataclass(frozen=True)
class Planted(Formula):
    """Effects of columns: ``single (L, S, k)``, ``within (L, S, k, S, k)``, ``between (L - 1, S, k, k)``.

    ``within`` is zero but where the first site comes before the second.
    """

    single: Tensor
    within: Tensor
    between: Tensor

    @property
    def choices(self) -> int:
        return self.single.shape[2] + 1

    @property
    def sizes(self) -> dict[str, int]:
        return dict.fromkeys(site_names(*self.single.shape[:2]), self.choices)

    def value(self, codes: Tensor) -> Tensor:
        x = contrasts(self.choices)[codes.long().view(len(codes), *self.single.shape[:2])]  # (m, L, S, k)
        flat = x.flatten(2)
        pairs = torch.einsum("mls,lst,mlt->m", flat, self._flat_within, flat)
        following = torch.einsum("mlsj,lsjk->mlsk", x[:, :-1], self.between) * x[:, 1:]
        return (flat * self.single.flatten(1)).sum((1, 2)) + pairs + following.flatten(2).sum((1, 2))

    @property
    def _flat_within(self) -> Tensor:
        """``(L, S * k, S * k)``."""
        return self.within.flatten(3, 4).flatten(1, 2)

    @cached_property
    def optimum(self) -> float:
        """By dynamic programming over the states of a layer."""
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
        """Terms are uncorrelated."""
        parts = (self.single, self.within, self.between)
        return float(torch.stack([part.square().sum() for part in parts]).sum().sqrt())


@dataclass(frozen=True)
class Sparse(Formula):
    """Single and paired effects of a few sites: ``active (A,)``, ``single (A, k)``, ``pairs (A, k, A, k)``, as `Planted`."""

    layers: int
    active: Tensor
    single: Tensor
    pairs: Tensor

    @property
    def choices(self) -> int:
        return self.single.shape[1] + 1

    @property
    def sizes(self) -> dict[str, int]:
        return dict.fromkeys(site_names(self.layers), self.choices)

    def value(self, codes: Tensor) -> Tensor:
        return self._of_active(contrasts(self.choices)[codes[:, self.active].long()].flatten(1))

    def _of_active(self, x: Tensor) -> Tensor:
        return x @ self.single.flatten() + ((x @ self.pairs.flatten(2).flatten(0, 1)) * x).sum(1)

    @cached_property
    def optimum(self) -> float:
        return float(self._of_active(combinations(self.choices, len(self.active))).max())

    @cached_property
    def spread(self) -> float:
        return float((self.single.square().sum() + self.pairs.square().sum()).sqrt())


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _pairs(generator: torch.Generator, sites: int, columns: int, *layers: int) -> Tensor:
    """Of every two sites, ``(*layers, sites, k, sites, k)``."""
    upper = torch.ones(sites, sites, dtype=torch.float64).triu(1)[:, None, :, None]
    return _normal(generator, *layers, sites, columns, sites, columns) * upper / math.sqrt(columns)


def _over_depth(layers: int, columns: int, generator: torch.Generator) -> Tensor:
    """Effects that change smoothly with depth, ``(layers, SITES, k)``."""
    at = torch.arange(layers, dtype=torch.float64)
    kernel = torch.exp(-0.5 * ((at[:, None] - at) / (SCALE * layers)).square())
    lower: Tensor = torch.linalg.cholesky(kernel + 1e-8 * torch.eye(layers, dtype=torch.float64))
    return (lower @ _normal(generator, layers, SITES * columns)).view(layers, SITES, columns)


def _planted(single: Tensor, within: Tensor | None = None, between: Tensor | None = None) -> Planted:
    """What is left out is zero."""
    layers, sites, columns = single.shape
    if within is None:
        within = single.new_zeros(layers, sites, columns, sites, columns)
    if between is None:
        between = single.new_zeros(layers - 1, sites, columns, columns)
    return Planted(single, within, between)


def independent(layers: int, generator: torch.Generator, choices: int = BINARY) -> Planted:
    """Every site for itself."""
    return _planted(_normal(generator, layers, SITES, choices - 1))


def smooth(layers: int, generator: torch.Generator, choices: int = BINARY) -> Planted:
    """The effect of each choice of a site is smooth over depth."""
    return _planted(_over_depth(layers, choices - 1, generator))


def step(layers: int, generator: torch.Generator, choices: int = BINARY) -> Planted:
    """The order of every site's choices is reversed once, at a depth of its own."""
    turn = torch.randint(1, layers, (SITES,), generator=generator)
    direction = torch.nn.functional.normalize(_normal(generator, SITES, choices - 1), dim=1)
    height = 0.5 + torch.rand(SITES, generator=generator, dtype=torch.float64)
    side = torch.where(torch.arange(layers)[:, None] < turn, -1.0, 1.0)
    return _planted(side[..., None] * (direction * height[:, None]))


def within(layers: int, generator: torch.Generator, choices: int = BINARY) -> Planted:
    """Sites of a layer interact, in every layer in its own way."""
    pairs = _pairs(generator, SITES, choices - 1, layers)
    return _planted(0.7 * _normal(generator, layers, SITES, choices - 1), within=pairs)


def neighbours(layers: int, generator: torch.Generator, choices: int = BINARY) -> Planted:
    """A site in one layer interacts with itself in the next, alike in all layers; single effects are smooth and small."""
    columns = choices - 1
    alike, own = (_normal(generator, count, SITES, columns, columns) for count in (1, layers - 1))
    single = 0.5 * _over_depth(layers, columns, generator)
    return _planted(single, between=(alike + 0.3 * own) / math.sqrt(columns))


def sparse(layers: int, generator: torch.Generator, choices: int = BINARY) -> Sparse:
    """Six sites and their pairs; the rest does nothing."""
    active = torch.randperm(layers * SITES, generator=generator)[:SPARSE_SITES]
    pairs = 0.5 * _pairs(generator, SPARSE_SITES, choices - 1)
    return Sparse(layers, active, _normal(generator, SPARSE_SITES, choices - 1), pairs)


class Family(Protocol):
    """Draws a landscape of so many layers and choices of each site."""

    def __call__(self, layers: int, generator: torch.Generator, choices: int = BINARY) -> Planted | Sparse: ...


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

    A search sees each layout as one of the seeds trained it, drawn anew for every layout and race; what a seed adds to all
    layouts alike is taken off first, as it is in `dasearch run`, where all share one seed. The truth is the mean over seeds.

    Attributes:
        outputs: by name, of the epoch kept: ``(layouts, seeds)``.
        curves: by name, of every epoch, ``(layouts, seeds, epochs)``.
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
        """The choices of each site of each layer, by name, as a layout's text writes them."""
        return _letters(self.header)

    @property
    def sizes(self) -> dict[str, int]:
        return {name: len(letters) for name, letters in self.letters.items()}

    @cached_property
    def means(self) -> Tensor:
        return self.outputs[OBJECTIVE].mean(1)

    def truth(self, codes: tuple[int, ...]) -> float:
        mean = float(self.means.mean())
        return (float(self.means[self.index[codes]]) - mean) / (float(self.means.max()) - mean)

    def observe(self, codes: tuple[int, ...], generator: torch.Generator) -> list[float]:
        return self.seen(codes, OBJECTIVE)

    def seen(self, codes: tuple[int, ...], output: str) -> list[float]:
        """The curve of one output as the layout's seed has it, and its value at the epoch kept."""
        layout = self.index[codes]
        seen = (layout, int(self.drawn[layout]))
        curves, values = self.curves[output], self.outputs[output]
        curve = curves - curves.mean(0) + curves.mean((0, 1))
        return [*curve[seen].tolist(), float((values - values.mean(0) + values.mean())[seen])]


def read_table(path: Path, *, seed: int = 0) -> Table:
    """A table that ``benchmarks/train_table.py`` made; seeds that lack layouts are left out.

    Raises:
        DasearchError: for a file without one whole seed, or with a layout that its first line does not allow.
    """
    header, *rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    letters = list(_letters(header).values())
    by_seed: dict[int, dict[tuple[int, ...], dict[str, Any]]] = {}
    for row in rows:
        by_seed.setdefault(row["seed"], {})[_codes(row["layout"], letters, path)] = row
    layouts = sorted({layout for found in by_seed.values() for layout in found})
    count = math.prod(map(len, letters))
    whole = [found for _, found in sorted(by_seed.items()) if len(found) == count]
    if not whole:
        raise DasearchError(f"{path} has no seed with every layout yet; finish it with benchmarks/train_table.py")
    kept = [[found[layout] for found in whole] for layout in layouts]
    curves = {
        name: torch.tensor([[row[name] for row in seeds] for seeds in kept], dtype=torch.float64) for name in OUTPUTS
    }
    best = torch.tensor([[[row["best_epoch"]] for row in seeds] for seeds in kept])
    outputs = {name: curve.gather(2, best).squeeze(2) for name, curve in curves.items()}
    drawn = torch.randint(len(whole), (len(layouts),), generator=torch.Generator().manual_seed(seed))
    return Table(header, layouts, outputs, curves, drawn)


def _letters(header: dict[str, Any]) -> dict[str, str]:
    """By name; tables from before there were more choices do not say them."""
    names = header["names"]
    return dict(zip(names, header.get("letters", ["SP"] * len(names)), strict=True))


def _codes(layout: str, letters: list[str], path: Path) -> tuple[int, ...]:
    found = layout.replace("-", "")
    if len(found) != len(letters) or any(letter not in known for letter, known in zip(found, letters, strict=True)):
        raise DasearchError(
            f"{path} has a layout {layout}, and its first line lists {', '.join(letters)} as the sites' letters; "
            "make the table anew with benchmarks/train_table.py"
        )
    return tuple(known.index(letter) for letter, known in zip(found, letters, strict=True))
