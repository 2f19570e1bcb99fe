"""The surrogate's dictionary of features: the components that a layered landscape may be composed of.

Each component is a kernel written out as features, scaled to variance one over uniformly drawn points: a separate effect of
every choice (`LINEAR`), an effect of a site shared by all layers, effects of a site that vary smoothly or quickly with depth,
pairs of sites within a layer and pairs of neighbouring layers, each layer on its own or smooth over depth. Two kernels have no
explicit features: all pairs, and an isotropic kernel of the Hamming distance.

Without layers only linear, pairs and isotropic remain.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from dasearch.bayes.choices import Choices

LINEAR = "linear"
PICKED = "picked pairs"
PAIRS, ISOTROPIC = "pairs", "isotropic"  # the two kernels without explicit features
SMOOTH, QUICK = 1 / 4, 1 / 10  # length scales over depth, as shares of the number of layers
REACH = 1 / 4  # length scale of the isotropic kernel, as a share of the number of variables
NEGLIGIBLE = 1e-6  # eigenvalues of a depth kernel below this share of the largest are dropped
SCALE_REACH = 0.35  # length scale over an ordered variable's range: one peak or valley
WIGGLES = 0.01  # smallest eigenvalue kept of a kernel over such a scale, as a share: three or four shapes remain


@dataclass(frozen=True, eq=False)
class Part:
    """The features of one component, in groups that read separate terms: one kind of column or pair at all depths.

    Attributes:
        name: name of the component.
        groups: for all groups of one shape, the indices of the terms that they read, ``(B, R)``, and the matrices that map
            these terms to features, ``(B, R, K)``.
    """

    name: str
    groups: tuple[tuple[Tensor, Tensor], ...]

    @property
    def alike(self) -> bool:
        """Whether its features have one prior variance in every member of a surrogate."""
        return self.name not in (LINEAR, PICKED)

    @property
    def count(self) -> int:
        """Number of features."""
        return sum(factor.shape[0] * factor.shape[2] for _, factor in self.groups)

    def features(self, terms: Tensor) -> Tensor:
        """Feature values of this component. Shapes: terms ``(T, m)`` -> ``(count, m)``."""
        groups = [_combined(terms[rows], factor) for rows, factor in self.groups]
        return groups[0] if len(groups) == 1 else torch.cat(groups)


def _combined(read: Tensor, factor: Tensor) -> Tensor:
    """Features of groups from the terms that they read. Shapes: ``(B, R, m)``, ``(B, R, K)`` -> ``(B * K, m)``."""
    product = read * factor if factor.shape[1:] == (1, 1) else torch.bmm(factor.mT, read)
    return product.flatten(0, 1)


@dataclass(frozen=True, eq=False)
class Dictionary:
    """The features of one space; `dictionary` builds and caches them.

    A point's terms are its contrast columns and their pairwise products; features are weighted sums of a few terms each.

    Attributes:
        pairs: the column pairs whose products are terms, ``(P, 2)``.
        parts: the components in the order of their features, `LINEAR` first with one feature per column.
    """

    choices: Choices
    pairs: Tensor
    parts: tuple[Part, ...]

    @cached_property
    def component(self) -> tuple[str, ...]:
        """The component that each feature belongs to, by name; one entry per feature."""
        return tuple(part.name for part in self.parts for _ in range(part.count))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the components, the two kernels without explicit features last."""
        return (*(part.name for part in self.parts), PAIRS, ISOTROPIC)

    def with_pairs(self, pairs: list[tuple[int, int]]) -> Dictionary:
        """This dictionary with one more feature of variance one for each of these column pairs."""
        if not pairs:
            return self
        rows = len(self.choices.columns) + len(self.pairs) + torch.arange(len(pairs))[:, None]
        picked = Part(PICKED, ((rows, torch.ones(len(pairs), 1, 1, dtype=torch.float64)),))
        return replace(self, pairs=torch.cat([self.pairs, torch.tensor(pairs)]), parts=(*self.parts, picked))

    def terms(self, contrasts: Tensor) -> Tensor:
        """Contrast columns, then their products. Shapes: contrasts ``(m, D)`` -> ``(T, m)``."""
        columns, (first, second) = contrasts.T.contiguous(), self.pairs.T
        products = columns[first].mul_(columns[second])
        return torch.cat([columns, products])

    def features(self, contrasts: Tensor) -> Tensor:
        """Values of all features. Shapes: contrasts ``(..., D)`` -> ``(..., F)``."""
        terms = self.terms(contrasts.reshape(-1, contrasts.shape[-1]))
        features = torch.cat([part.features(terms) for part in self.parts])
        return features.T.contiguous().view(*contrasts.shape[:-1], len(features))

    def pair_kernel(self, a: Tensor, b: Tensor) -> Tensor:
        """Kernel of all products of two columns of different variables.

        Shapes: ``(..., m, D)``, ``(..., n, D)`` -> ``(..., m, n)``.
        """
        return self._pairs(a @ b.mT, (a * (self.choices.column_size - 2)) @ b.mT)

    def pair_variance(self, a: Tensor) -> Tensor:
        """The diagonal of ``pair_kernel(a, a)``, ``(..., m)``."""
        return self._pairs(a.square().sum(-1), a.square() @ (self.choices.column_size - 2))

    def _pairs(self, product: Tensor, within_variables: Tensor) -> Tensor:
        """All squares minus those of one variable's own columns, whose products are ``C - 1 + (C - 2) x`` their product."""
        return (product.square() - len(self.choices.columns) - within_variables) * (self.pair_weight / 2)

    @property
    def pair_weight(self) -> float:
        """Prior variance of one column pair's coefficient under `pair_kernel`."""
        sizes = self.choices.sizes
        count = len(self.choices.columns) ** 2 - sum((size - 1) ** 2 for size in sizes)
        return 2 / count if count else 0.0

    def isotropic_kernel(self, a: Tensor, b: Tensor) -> Tensor:
        """``exp(-Hamming distance / reach)``, a Gaussian kernel on bits; shapes as in `pair_kernel`."""
        sizes = self.choices.column_size
        agreeing = (a / sizes) @ b.mT + sum(1 / size for size in self.choices.sizes)
        return torch.exp((agreeing - self.choices.d) / self.lengthscale)

    @property
    def lengthscale(self) -> float:
        """Length scale of the isotropic kernel, in Hamming distance."""
        return max(1.0, REACH * self.choices.d)

    def isotropic_weights(self) -> tuple[float, Tensor]:
        """The isotropic kernel's expansion: the constant's weight, and the factor ``(D,)`` by which each column raises it."""
        sizes = self.choices.column_size
        differing = torch.exp(torch.tensor(-1 / self.lengthscale, dtype=torch.float64))
        share = (1 - differing) / sizes  # of one column
        rest = 1 - share * (sizes - 1)  # of the constant, within one variable
        first = self.choices.column_choice == 1
        return float(rest[first].prod()), share / rest


@lru_cache(maxsize=8)
def dictionary(choices: Choices) -> Dictionary:
    """The features of a space, cached."""
    blocks = [_Block(LINEAR, torch.eye(len(choices.columns), dtype=torch.float64), paired=False)]
    layered = _Layered.of(choices)
    pairs: list[tuple[int, int]] = []
    if layered is not None:
        blocks += [_placed(block, layered.columns, len(choices.columns)) for block in layered.blocks()]
        pairs, pair_blocks = layered.pairs()
        blocks += pair_blocks
    if choices.positions is not None:
        scales = _scales(choices)
        of_scales, scale_blocks = _scale_pairs(scales, layered)
        before, total = len(pairs), len(pairs) + len(of_scales)
        blocks = [_placed(block, range(before), total) if block.paired else block for block in blocks]
        blocks += _scale_blocks(scales, len(choices.columns))
        blocks += [_placed(block, range(before, total), total) for block in scale_blocks]
        pairs += of_scales
    return _assemble(choices, blocks, torch.tensor(pairs, dtype=torch.long).reshape(len(pairs), 2))


@dataclass(frozen=True)
class _Block:
    """One component: a factor of the covariance of its column or pair coefficients, ``(D or P, features)``."""

    name: str
    factor: Tensor
    paired: bool


def _depth_blocks(
    name: str, depth: list[int], kind: list[tuple[str, int]], layers: int, *, paired: bool
) -> list[_Block]:
    """Coefficients shared by all layers, smooth over depth, and quickly varying with depth."""
    at = torch.tensor(depth, dtype=torch.float64)
    same = torch.tensor([[float(a == b) for b in kind] for a in kind], dtype=torch.float64)
    gap = (at[:, None] - at).square()
    scales = {"smooth": SMOOTH * layers} if paired else {"smooth": SMOOTH * layers, "quick": max(1.0, QUICK * layers)}
    kernels = {"shared": same, **{word: same * torch.exp(-gap / (2 * scale**2)) for word, scale in scales.items()}}
    groups = [[i for i, other in enumerate(kind) if other == one] for one in dict.fromkeys(kind)]
    return [_Block(f"{name}, {word}", _factor_by_group(kernel, groups), paired) for word, kernel in kernels.items()]


def _factor_by_group(kernel: Tensor, groups: list[list[int]]) -> Tensor:
    """Factor of a kernel that is zero between groups; each column of the factor is zero outside its group."""
    factors = [_factor(kernel[group][:, group]) for group in groups]
    joined = kernel.new_zeros(len(kernel), sum(factor.shape[1] for factor in factors))
    joined[[row for group in groups for row in group]] = torch.block_diag(*factors)
    return joined


@dataclass(frozen=True)
class _Layered:
    """The contrast columns of layered variables: their indices, their depths 0, 1, ..., and their sites and choices."""

    columns: list[int]
    depth: list[int]
    site: list[tuple[str, int]]

    @classmethod
    def of(cls, choices: Choices) -> _Layered | None:
        """The layered columns of a space; None for a space without layers."""
        if choices.places is None:
            return None
        place = {column: choices.places[i] for column, (i, _) in enumerate(choices.columns)}
        columns = [(column, at[0], (at[1], choices.columns[column][1])) for column, at in place.items() if at]
        depths = {layer: depth for depth, layer in enumerate(sorted({layer for _, layer, _ in columns}))}
        return cls(
            [c for c, _, _ in columns], [depths[layer] for _, layer, _ in columns], [site for _, _, site in columns]
        )

    @property
    def layers(self) -> int:
        return max(self.depth) + 1

    def blocks(self) -> list[_Block]:
        return _depth_blocks("site", self.depth, self.site, self.layers, paired=False)

    def pairs(self) -> tuple[list[tuple[int, int]], list[_Block]]:
        """Column pairs within a layer, then of one site in neighbouring layers, with their blocks."""
        depth, site, n = self.depth, self.site, range(len(self.site))
        within = [(i, j) for i in n for j in n if i < j and depth[i] == depth[j] and site[i][0] != site[j][0]]
        neighbours = [(i, j) for i in n for j in n if depth[j] == depth[i] + 1 and site[i][0] == site[j][0]]
        rows, blocks, total = 0, list[_Block](), len(within) + len(neighbours)
        for name, pairs in (("within a layer", within), ("neighbouring layers", neighbours)):
            if not pairs:
                continue
            kinds: list[tuple[str, int]] = [(f"{site[i]}{site[j]}", 0) for i, j in pairs]
            own = [_Block(f"{name}, each", torch.eye(len(pairs), dtype=torch.float64), paired=True)]
            own += _depth_blocks(name, [depth[i] for i, _ in pairs], kinds, self.layers, paired=True)
            blocks += [_placed(block, range(rows, rows + len(pairs)), total) for block in own]
            rows += len(pairs)
        return [(self.columns[i], self.columns[j]) for i, j in within + neighbours], blocks


def _placed(block: _Block, rows: Sequence[int], total: int) -> _Block:
    """The same block at the given rows of a matrix with ``total`` rows."""
    if list(rows) == list(range(total)):
        return block
    factor = torch.zeros(total, block.factor.shape[1], dtype=torch.float64)
    factor[list(rows)] = block.factor
    return replace(block, factor=factor)


class _Scale(NamedTuple):
    """An ordered variable: its columns, and the factor of its coefficients' covariance, ``(columns, shapes)``."""

    columns: list[int]
    factor: Tensor


def _scales(choices: Choices) -> list[_Scale]:
    """Effects that are smooth over a scale, with mean zero over the grid and variance one over uniformly drawn points."""
    scales = []
    for variable, positions in enumerate(choices.positions or ()):
        if positions is None:
            continue
        columns = [column for column, (i, _) in enumerate(choices.columns) if i == variable]
        at = torch.tensor(positions, dtype=torch.float64)
        kernel = torch.exp(-(at[:, None] - at).square() / (2 * SCALE_REACH**2))
        values = torch.zeros(len(at), choices.d, dtype=torch.float64)
        values[:, variable] = torch.arange(len(at))
        contrasts = choices.contrasts(values)[:, columns] / len(at)
        factor = _factor(contrasts.T @ kernel @ contrasts, least=WIGGLES)
        scales.append(_Scale(columns, factor / factor.square().sum().sqrt()))
    return scales


def _scale_blocks(scales: list[_Scale], total: int) -> list[_Block]:
    """Each ordered variable's own effect."""
    columns = [column for scale in scales for column in scale.columns]
    factor = torch.block_diag(*[scale.factor for scale in scales])
    return [_placed(_Block("ordered", factor, paired=False), columns, total)]


def _scale_pairs(scales: list[_Scale], layered: _Layered | None) -> tuple[list[tuple[int, int]], list[_Block]]:
    """Pairs of an ordered variable with every layered choice and of two ordered variables, with their blocks."""
    parts: dict[str, list[tuple[list[tuple[int, int]], Tensor]]] = {}

    def join(name: str, scale: _Scale, columns: list[int], factor: Tensor) -> None:
        pairs = list(itertools.product(scale.columns, columns))
        parts.setdefault(name, []).append((pairs, torch.kron(scale.factor, factor)))

    if layered is not None:
        shared = _depth_blocks("", layered.depth, layered.site, layered.layers, paired=True)[0].factor
        each = torch.eye(len(layered.columns), dtype=torch.float64)
        for scale in scales:
            join("ordered with layered, shared", scale, layered.columns, shared)
            join("ordered with layered, each", scale, layered.columns, each)
    for first, second in itertools.combinations(scales, 2):
        join("ordered with ordered", first, second.columns, second.factor)
    pairs = list(dict.fromkeys(pair for entries in parts.values() for own, _ in entries for pair in own))
    row = {pair: place for place, pair in enumerate(pairs)}
    blocks = []
    for name, entries in parts.items():
        factor = torch.block_diag(*[one for _, one in entries])
        rows = [row[pair] for own, _ in entries for pair in own]
        blocks.append(_placed(_Block(name, factor, paired=True), rows, len(pairs)))
    return pairs, blocks


def _factor(kernel: Tensor, least: float = NEGLIGIBLE) -> Tensor:
    """Factor U with ``U U^T`` equal to the kernel, without directions whose eigenvalue is below a share of the largest."""
    values, vectors = torch.linalg.eigh(kernel)
    kept = values > least * values.max()
    factor: Tensor = vectors[:, kept] * values[kept].sqrt()
    return factor


def _assemble(choices: Choices, blocks: list[_Block], pairs: Tensor) -> Dictionary:
    parts = []
    for block in blocks:
        factor = block.factor / block.factor.square().sum().sqrt()
        parts.append(Part(block.name, _groups(factor, len(choices.columns) if block.paired else 0)))
    return Dictionary(choices, pairs, tuple(parts))


def _groups(factor: Tensor, before: int) -> tuple[tuple[Tensor, Tensor], ...]:
    """The diagonal blocks of a matrix that is zero elsewhere, grouped by shape; ``before`` is added to their row indices."""
    shapes: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
    left, nonzero = torch.ones(factor.shape[1], dtype=torch.bool), factor != 0
    while left.any():
        column = left.int().argmax()[None]
        rows, columns = _linked(nonzero, column)
        left[columns] = False
        shapes.setdefault((len(rows), len(columns)), []).append((rows + before, factor[rows][:, columns]))
    return tuple(
        (torch.stack([rows for rows, _ in alike]), torch.stack([own for _, own in alike])) for alike in shapes.values()
    )


def _linked(nonzero: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """The rows and columns connected to these columns through nonzero entries."""
    while True:
        rows = nonzero[:, columns].any(1).nonzero().squeeze(1)
        more = nonzero[rows].any(0).nonzero().squeeze(1)
        if len(more) <= len(columns):
            return rows, columns
        columns = more
