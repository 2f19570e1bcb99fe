"""Adapter layouts: which adapter of which layer is in series with its sublayer and which runs parallel to it.

Liu et al. 2024 (DARec), sec. 2.3.3: the vector z of 3L binary choices.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dasearch.errors import LayoutError

SERIAL, PARALLEL = "S", "P"
SEPARATOR = "-"
CHOICES = ("serial", "parallel")  # in the order of the bit's value


class ModelKind(StrEnum):
    """The recommenders whose layouts are searched."""

    DAREC = "darec"
    IDLE = "idle"
    RA_REC = "ra-rec"


SITES: dict[ModelKind, tuple[str, ...]] = {  # of a layer, in the order of a layout's letters
    ModelKind.DAREC: ("causal", "context", "recommendation"),
    ModelKind.IDLE: ("injection", "refinement", "alignment"),
    ModelKind.RA_REC: ("user", "item", "instruction"),
}


class Difference(NamedTuple):
    """One site at which two layouts differ; layer and site count from 0."""

    layer: int
    site: int
    before: str
    after: str


@dataclass(frozen=True, order=True)
class Layout:
    """A group of bits per layer, a bit per site: 0 serial, 1 parallel. ``str`` and `parse` invert each other."""

    bits: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.bits or not self.bits[0]:
            raise LayoutError("a layout needs at least one layer with one site, as in SPS-PPS")
        if len({len(group) for group in self.bits}) != 1:
            raise LayoutError(
                f"every layer of a layout needs the same number of sites; {self} has layers of several sizes"
            )
        if any(bit not in (0, 1) for group in self.bits for bit in group):
            raise LayoutError("a layout's bits are 0 (serial) or 1 (parallel)")

    def __str__(self) -> str:
        return SEPARATOR.join("".join((SERIAL, PARALLEL)[bit] for bit in group) for group in self.bits)

    @classmethod
    def parse(cls, text: str) -> Layout:
        """Read ``SPS-PPS``; spaces around it and lower case are accepted.

        Raises:
            LayoutError: for an empty text, another letter than S or P, or layers of unequal length.
        """
        letters = text.strip().upper()
        stray = sorted(set(letters) - {SERIAL, PARALLEL, SEPARATOR})
        if stray:
            raise LayoutError(f"a layout is written with S, P and -, as in SPS-PPS; {text!r} has {stray[0]!r}")
        return cls(tuple(tuple(int(letter == PARALLEL) for letter in group) for group in letters.split(SEPARATOR)))

    @classmethod
    def from_bits(cls, bits: Iterable[int], *, sites: int) -> Layout:
        """Read a flat sequence of bits, the sites of the first layer first."""
        flat = [int(bit) for bit in bits]
        if sites < 1 or len(flat) % sites:
            raise LayoutError(f"{len(flat)} bits do not fill layers of {sites} sites; give a multiple of {sites}")
        return cls(tuple(tuple(flat[start : start + sites]) for start in range(0, len(flat), sites)))

    @classmethod
    def all_serial(cls, layers: int, sites: int = 3) -> Layout:
        return cls(((0,) * sites,) * layers)

    @classmethod
    def all_parallel(cls, layers: int, sites: int = 3) -> Layout:
        return cls(((1,) * sites,) * layers)

    @classmethod
    def random(cls, layers: int, sites: int = 3, *, generator: torch.Generator) -> Layout:
        return cls.from_bits(torch.randint(2, (layers * sites,), generator=generator).tolist(), sites=sites)

    @property
    def layers(self) -> int:
        return len(self.bits)

    @property
    def sites(self) -> int:
        return len(self.bits[0])

    @property
    def flat(self) -> tuple[int, ...]:
        """All bits, the sites of the first layer first."""
        return tuple(bit for group in self.bits for bit in group)

    def tensor(self, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
        """Shape ``(layers, sites)``: what a recommender's forward reads."""
        return torch.tensor(self.bits, device=device, dtype=dtype)

    def distance(self, other: Layout) -> int:
        """Hamming distance."""
        return len(self.diff(other))

    def diff(self, other: Layout) -> tuple[Difference, ...]:
        """The sites at which ``other`` differs from this layout."""
        if (self.layers, self.sites) != (other.layers, other.sites):
            raise LayoutError(f"{self} and {other} differ in layers or sites; compare layouts of one search space")
        return tuple(
            Difference(layer, site, CHOICES[mine], CHOICES[theirs])
            for layer, (ours, others) in enumerate(zip(self.bits, other.bits, strict=True))
            for site, (mine, theirs) in enumerate(zip(ours, others, strict=True))
            if mine != theirs
        )

    def require(self, layers: int, sites: int) -> Layout:
        """This layout, if it has so many layers and sites."""
        if (self.layers, self.sites) != (layers, sites):
            raise LayoutError(
                f"the layout {self} has {self.layers} layers of {self.sites} sites and the model has {layers} of {sites}; "
                f"give a layout such as {Layout.all_serial(layers, sites)}"
            )
        return self


def replaced_layers(layers: int, every: int) -> tuple[int, ...]:
    """Layers, counted from 0, that become dynamically adapted: k with ``(k + 1) % every == 0`` (DARec fig. 10).

    Raises:
        LayoutError: if ``every`` does not divide ``layers``, so that the top layer would stay plain.
    """
    if every < 1 or layers % every:
        raise LayoutError(
            f"replace_every is {every} and the backbone has {layers} layers; choose a divisor of {layers}"
        )
    return tuple(range(every - 1, layers, every))


class Depth(NamedTuple):
    """Where a layout's groups stand: the adapted layers, counted from 0 and ascending, of a backbone of so many."""

    replaced: tuple[int, ...]
    layers: int


def carried(layout: Layout, of: Depth, to: Depth) -> Layout:
    """A layout of one depth at another: every layer takes the choices of the layer nearest to it in relative depth.

    Layer k of L stands at (2k + 1) / 2L. Of two layers equally near, the deeper one counts, so that where every r-th layer
    is adapted, it speaks for the r - 1 before it, and so that equal depths give the layout back.
    """
    layout.require(len(of.replaced), layout.sites)

    def nearest(layer: int) -> int:
        gaps = [abs((2 * layer + 1) * of.layers - (2 * other + 1) * to.layers) for other in of.replaced]
        return min(range(len(gaps)), key=lambda place: (gaps[place], -place))

    return Layout(tuple(layout.bits[nearest(layer)] for layer in to.replaced))


def site_names(replaced: Sequence[int], sites: Sequence[str]) -> tuple[str, ...]:
    """``layer03.context`` for every bit, in the order of `Layout.flat`; layers are named from 1."""
    return tuple(f"layer{layer + 1:02d}.{site}" for layer in replaced for site in sites)


def as_record(layout: Layout, names: Sequence[str]) -> dict[str, Any]:
    """``{name: "serial" | "parallel"}`` for every bit."""
    return {name: CHOICES[bit] for name, bit in zip(names, layout.flat, strict=True)}
