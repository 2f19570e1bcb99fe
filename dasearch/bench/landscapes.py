"""Landscapes whose best layout is known: planted ones, and tables of layouts that were all really trained.

A planted landscape is a sum over layers of effects of single sites, of pairs of sites within a layer and of one site in
neighbouring layers, so that its optimum is found exactly, by dynamic programming over layers; the sparse family depends on a
few bits and is enumerated.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dasearch.errors import DasearchError

SITES = 3
NOISE = 0.2  # standard deviation of an evaluation's noise, as a share of the landscape's own over random layouts
SPARSE_BITS = 6
OBJECTIVE, OUTPUTS = "MRR", ("MRR", "Recall@10", "NDCG@10", "loss")
SCALE = 1 / 4  # length scale of smooth effects, as a share of the depth


class Landscape(Protocol):
    """What samplers are raced on."""

    @property
    def names(self) -> list[str]:
        """A name a bit."""

    def truth(self, bits: tuple[int, ...]) -> float:
        """The noise-free value: 0 for the mean of random layouts, 1 for the best."""

    def observe(self, bits: tuple[int, ...], generator: torch.Generator) -> list[float]:
        """A noisy value, of any unit, as the last number; before it the learning curve, if there is one."""


@dataclass(frozen=True)
class Planted:
    """Bits as -1 and 1: ``single (L, S)``, ``within (L, S, S)``, ``between (L - 1, S)``."""

    single: Tensor
    within: Tensor
    between: Tensor

    @property
    def names(self) -> list[str]:
        layers, sites = self.single.shape
        return [f"layer{layer + 1:02d}.site{site}" for layer in range(layers) for site in range(sites)]

    def value(self, bits: Tensor) -> Tensor:
        """Shapes: 0 and 1 ``(m, L * S)`` -> ``(m,)``."""
        x = (2.0 * bits.double() - 1).view(len(bits), *self.single.shape)
        pairs = torch.einsum("mls,lst,mlt->m", x, self.within, x)
        return (x * self.single).sum((1, 2)) + pairs + (x[:, :-1] * self.between * x[:, 1:]).sum((1, 2))

    @cached_property
    def optimum(self) -> float:
        """By dynamic programming over the states of a layer."""
        states = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=self.single.shape[1])), dtype=torch.float64)
        own = states @ self.single.T + torch.einsum("as,lst,at->al", states, self.within, states)  # (states, L)
        best = own[:, 0]
        for layer in range(1, len(self.single)):
            joint = (states * self.between[layer - 1]) @ states.T
            best = (best[:, None] + joint).max(0).values + own[:, layer]
        return float(best.max())

    @cached_property
    def spread(self) -> float:
        """Standard deviation over random layouts: terms are uncorrelated."""
        pairs = (self.within + self.within.transpose(1, 2)).triu(1)
        return float(torch.stack([part.square().sum() for part in (self.single, pairs, self.between)]).sum().sqrt())

    def truth(self, bits: tuple[int, ...]) -> float:
        return float(self.value(torch.tensor([bits]))[0]) / self.optimum

    def observe(self, bits: tuple[int, ...], generator: torch.Generator) -> list[float]:
        noise = float(torch.randn((), generator=generator, dtype=torch.float64))
        return [float(self.value(torch.tensor([bits]))[0]) + NOISE * self.spread * noise]


@dataclass(frozen=True)
class Sparse:
    """Single and paired effects of a few bits."""

    count: int
    active: Tensor
    single: Tensor
    pairs: Tensor

    @property
    def names(self) -> list[str]:
        return [f"layer{i // SITES + 1:02d}.site{i % SITES}" for i in range(self.count)]

    def value(self, bits: Tensor) -> Tensor:
        """Shapes: 0 and 1 ``(m, count)`` -> ``(m,)``."""
        return self._of_active(2.0 * bits[:, self.active].double() - 1)

    def _of_active(self, x: Tensor) -> Tensor:
        return x @ self.single + ((x @ self.pairs) * x).sum(1)

    @cached_property
    def optimum(self) -> float:
        states = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=len(self.active))), dtype=torch.float64)
        return float(self._of_active(states).max())

    @cached_property
    def spread(self) -> float:
        """Standard deviation over random layouts."""
        return float((self.single.square().sum() + self.pairs.square().sum()).sqrt())

    def truth(self, bits: tuple[int, ...]) -> float:
        return float(self.value(torch.tensor([bits]))[0]) / self.optimum

    def observe(self, bits: tuple[int, ...], generator: torch.Generator) -> list[float]:
        noise = float(torch.randn((), generator=generator, dtype=torch.float64))
        return [float(self.value(torch.tensor([bits]))[0]) + NOISE * self.spread * noise]


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _over_depth(layers: int, width: int, generator: torch.Generator) -> Tensor:
    """Effects that change smoothly with depth, ``(layers, width)``."""
    at = torch.arange(layers, dtype=torch.float64)
    kernel = torch.exp(-0.5 * ((at[:, None] - at) / (SCALE * layers)).square())
    lower: Tensor = torch.linalg.cholesky(kernel + 1e-8 * torch.eye(layers, dtype=torch.float64))
    return lower @ _normal(generator, layers, width)


def _linear(single: Tensor) -> Planted:
    layers, sites = single.shape
    return Planted(single, single.new_zeros(layers, sites, sites), single.new_zeros(layers - 1, sites))


def independent(layers: int, generator: torch.Generator) -> Planted:
    """Every bit for itself."""
    return _linear(_normal(generator, layers, SITES))


def smooth(layers: int, generator: torch.Generator) -> Planted:
    """Every site's effect smooth over depth."""
    return _linear(_over_depth(layers, SITES, generator))


def step(layers: int, generator: torch.Generator) -> Planted:
    """Every site changes sides once, at a depth of its own."""
    turn = torch.randint(1, layers, (SITES,), generator=generator)
    height = _normal(generator, SITES).sign() * (0.5 + torch.rand(SITES, generator=generator, dtype=torch.float64))
    return _linear(torch.where(torch.arange(layers)[:, None] < turn, -1.0, 1.0) * height)


def within(layers: int, generator: torch.Generator) -> Planted:
    """Sites of a layer interact, in every layer in its own way."""
    pairs = _normal(generator, layers, SITES, SITES).triu(1)
    return Planted(0.7 * _normal(generator, layers, SITES), pairs, torch.zeros(layers - 1, SITES, dtype=torch.float64))


def neighbours(layers: int, generator: torch.Generator) -> Planted:
    """A site in one layer interacts with itself in the next, alike in all layers; single effects are smooth and small."""
    between = _normal(generator, 1, SITES) + 0.3 * _normal(generator, layers - 1, SITES)
    none = torch.zeros(layers, SITES, SITES, dtype=torch.float64)
    return Planted(0.5 * _over_depth(layers, SITES, generator), none, between)


def sparse(layers: int, generator: torch.Generator) -> Sparse:
    """Six bits and their pairs; the rest does nothing."""
    active = torch.randperm(layers * SITES, generator=generator)[:SPARSE_BITS]
    pairs = 0.5 * _normal(generator, SPARSE_BITS, SPARSE_BITS).triu(1)
    return Sparse(layers * SITES, active, _normal(generator, SPARSE_BITS), pairs)


Family = Callable[[int, torch.Generator], Planted | Sparse]
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
    def names(self) -> list[str]:
        return list(self.header["names"])

    @cached_property
    def means(self) -> Tensor:
        return self.outputs[OBJECTIVE].mean(1)

    def truth(self, bits: tuple[int, ...]) -> float:
        mean = float(self.means.mean())
        return (float(self.means[self.index[bits]]) - mean) / (float(self.means.max()) - mean)

    def observe(self, bits: tuple[int, ...], generator: torch.Generator) -> list[float]:
        layout = self.index[bits]
        seen = (layout, int(self.drawn[layout]))
        curves = self.curves[OBJECTIVE]
        curve = curves - curves.mean(0) + curves.mean((0, 1))
        values = self.outputs[OBJECTIVE]
        return [*curve[seen].tolist(), float((values - values.mean(0) + values.mean())[seen])]


def read_table(path: Path, *, seed: int = 0) -> Table:
    """A table that ``benchmarks/train_table.py`` made; seeds that lack layouts are left out.

    Raises:
        DasearchError: for a file without one whole seed.
    """
    header, *rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    by_seed: dict[int, dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_seed.setdefault(row["seed"], {})[row["layout"]] = row
    layouts = sorted({row["layout"] for row in rows}, key=_bits)
    whole = [found for _, found in sorted(by_seed.items()) if len(found) == 2 ** len(header["names"])]
    if not whole:
        raise DasearchError(f"{path} has no seed with every layout yet; finish it with benchmarks/train_table.py")
    kept = [[found[layout] for found in whole] for layout in layouts]
    curves = {
        name: torch.tensor([[row[name] for row in seeds] for seeds in kept], dtype=torch.float64) for name in OUTPUTS
    }
    best = torch.tensor([[[row["best_epoch"]] for row in seeds] for seeds in kept])
    outputs = {name: curve.gather(2, best).squeeze(2) for name, curve in curves.items()}
    drawn = torch.randint(len(whole), (len(layouts),), generator=torch.Generator().manual_seed(seed))
    return Table(header, [_bits(layout) for layout in layouts], outputs, curves, drawn)


def _bits(layout: str) -> tuple[int, ...]:
    return tuple(int(letter == "P") for letter in layout if letter != "-")
