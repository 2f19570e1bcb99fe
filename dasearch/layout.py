"""Adapter layouts: the choice made at each adapter site of each layer.

Liu et al. 2024 (DARec), sec. 2.3.3: the vector z of 3L choices between serial and parallel. Here a choice is a value (`Choice`)
of which a search space lists any number, including other kinds of trained modules, as the paper's conclusion suggests.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dasearch.errors import LayoutError

SEPARATOR = "-"
WHOLE = math.inf  # units of an adapter with the model's own width


class Join(StrEnum):
    """How an adapter that reads its sublayer's input is combined with the sublayer's output.

    Examples:
        >>> from dasearch import Join
        >>> Join("sum") is Join.SUM
        True
    """

    MODEL = "model"  # as set by ``model.parallel_reduce`` and ``model.parallel_residual``: the paper's mean by default
    SUM = "sum"  # ``SA + B(h)``, He et al. 2022


@dataclass(frozen=True)
class Choice:
    """A module, or none, that can be placed at an adapter site.

    Args:
        name: name in a search space's list.
        letter: letter in a layout's text.
        active: False for no adapter, which leaves the frozen layer unchanged.
        parallel: whether the adapter reads its sublayer's input rather than its output.
        width: bottleneck units, or LoRA's rank, at most the model's; None: as many as the model's.
        join: how a parallel adapter is combined with the sublayer's output.
        lora: whether it is LoRA (Hu et al. 2022) on the queries and values of an attention site instead of an adapter.

    Raises:
        LayoutError: for a letter outside A to Z and a to z, a width below 1, or a LoRA choice that is inactive, parallel, or
            has a join.

    Examples:
        >>> from dasearch import CHOICES, Choice
        >>> narrow = Choice("narrow", "n", width=8)
        >>> narrow.nearest([CHOICES["serial"], CHOICES["parallel"]]).name
        'serial'
    """

    name: str
    letter: str
    active: bool = True
    parallel: bool = False
    width: int | None = None
    join: Join = Join.MODEL
    lora: bool = False

    def __post_init__(self) -> None:
        if len(self.letter) != 1 or not (self.letter.isascii() and self.letter.isalpha()):
            raise LayoutError(f"choice {self.name!r} has the letter {self.letter!r}; give one of A to Z or a to z")
        if self.width is not None and self.width < 1:
            raise LayoutError(f"choice {self.name!r} has width {self.width}; an adapter has at least 1 unit")
        if self.lora and (not self.active or self.parallel or self.join is not Join.MODEL):
            raise LayoutError(
                f"choice {self.name!r} is LoRA, which changes queries and values and joins no sublayer; give it a width alone"
            )

    @property
    def adapts(self) -> bool:
        """Whether the choice is a bottleneck adapter."""
        return self.active and not self.lora

    @property
    def numbers(self) -> tuple[float, float, float, float, float]:
        """The site's row of `Layout.tensor`: `READS`, `ACTIVE`, `JOINS`, `UNITS`, `LORA`."""
        joins = self.parallel and self.join is Join.MODEL
        return (
            float(self.parallel),
            float(self.adapts),
            float(joins),
            WHOLE if self.width is None else float(self.width),
            float(self.lora),
        )

    def record(self) -> dict[str, Any]:
        """The fields as a dictionary; ``lora`` is omitted if False, as in records written before LoRA was supported."""
        return {name: value for name, value in asdict(self).items() if name != "lora" or value}

    def nearest(self, choices: Sequence[Choice]) -> Choice:
        """This choice if listed, else the most similar: by presence, then kind, placement, join and width, in this order."""

        def unlike(other: Choice) -> tuple[float, ...]:
            widths = [math.log(choice.width or 1 << 20) for choice in (self, other)]
            fields = ("active", "lora", "parallel", "join")
            different = (getattr(self, field) != getattr(other, field) for field in fields)
            return *map(float, different), abs(widths[0] - widths[1])

        return self if self in choices else min(choices, key=unlike)


READS, ACTIVE, JOINS, UNITS, LORA = range(5)  # columns of `Layout.tensor`; ACTIVE: 1 for an adapter

SERIAL = Choice("serial", "S")
PARALLEL = Choice("parallel", "P", parallel=True)
NONE = Choice("none", "N", active=False)
PARALLEL_SUM = Choice("parallel-sum", "A", parallel=True, join=Join.SUM)
LOW_RANK = Choice("lora", "L", lora=True)
PLACEMENTS = (SERIAL, PARALLEL)  # the paper's two
CHOICES: Mapping[str, Choice] = {choice.name: choice for choice in (*PLACEMENTS, NONE, PARALLEL_SUM, LOW_RANK)}


class ModelKind(StrEnum):
    """The recommenders whose layouts can be searched."""

    DAREC = "darec"
    IDLE = "idle"
    RA_REC = "ra-rec"
    E4S_REC = "e4s-rec"


SITES: dict[ModelKind, tuple[str, ...]] = {  # sites of a layer, in the order of a layout's letters
    ModelKind.DAREC: ("causal", "context", "recommendation"),
    ModelKind.IDLE: ("injection", "refinement", "alignment"),
    ModelKind.RA_REC: ("user", "item", "instruction"),
    ModelKind.E4S_REC: ("attention", "ffn"),
}
ADAPTER_MODELS = (ModelKind.DAREC, ModelKind.E4S_REC)  # models whose sites hold adapters and accept any choice
ATTENTION_SITES = (
    "causal",
    "context",
    "attention",
)  # sites with their own queries and values, where LoRA applies


class Difference(NamedTuple):
    """One site at which two layouts differ; layer and site are counted from 0."""

    layer: int
    site: int
    before: str
    after: str


def legend_of(choices: Iterable[Choice]) -> str:
    """The legend of choices' letters: ``S serial, P parallel``."""
    return ", ".join(f"{choice.letter} {choice.name}" for choice in choices)


@dataclass(frozen=True)
class Layout:
    """A group of choices per layer, one choice per site. ``str`` and `parse` are inverses.

    Examples:
        >>> from dasearch import Layout
        >>> layout = Layout.parse("SPS-PPS")
        >>> layout.z
        (0, 1, 0, 1, 1, 0)
        >>> layout.distance(Layout.all_serial(layers=2))
        3
    """

    groups: tuple[tuple[Choice, ...], ...]

    def __post_init__(self) -> None:
        if not self.groups or not self.groups[0]:
            raise LayoutError("a layout needs at least one layer with one site, as in SPS-PPS")
        if len({len(group) for group in self.groups}) != 1:
            raise LayoutError(
                f"every layer of a layout needs the same number of sites; {self} has layers of several sizes"
            )

    def __str__(self) -> str:
        return SEPARATOR.join("".join(choice.letter for choice in group) for group in self.groups)

    def __repr__(self) -> str:
        return f"Layout({str(self)!r})"

    @classmethod
    def parse(cls, text: str, choices: Iterable[Choice] = tuple(CHOICES.values())) -> Layout:
        """Parse ``SPS-PPS``; surrounding spaces are ignored, and a letter that matches no choice is retried in upper case.

        Raises:
            LayoutError: for an empty text, a letter of none of ``choices``, or layers of unequal length.
        """
        by_letter = {choice.letter: choice for choice in choices}
        known = {letter.lower(): choice for letter, choice in by_letter.items()} | by_letter
        stray = sorted(set(text.strip()) - {*known, SEPARATOR})
        if stray:
            letters = ", ".join(by_letter)
            raise LayoutError(f"a layout is written with {letters} and -, as in SPS-PPS; {text!r} has {stray[0]!r}")
        return cls(tuple(tuple(known[letter] for letter in group) for group in text.strip().split(SEPARATOR)))

    @classmethod
    def of(cls, flat: Iterable[Choice], *, sites: int) -> Layout:
        """A layout from a flat sequence of choices, layer by layer.

        Raises:
            LayoutError: if the number of choices is not a multiple of ``sites``.
        """
        flat = tuple(flat)
        if sites < 1 or len(flat) % sites:
            raise LayoutError(f"{len(flat)} choices do not fill layers of {sites} sites; give a multiple of {sites}")
        return cls(tuple(flat[start : start + sites] for start in range(0, len(flat), sites)))

    @classmethod
    def from_bits(cls, bits: Iterable[int], *, sites: int) -> Layout:
        """A layout from the paper's vector z: 0 serial, 1 parallel, layer by layer."""
        return cls.of((PLACEMENTS[int(bit)] for bit in bits), sites=sites)

    @classmethod
    def uniform(cls, choice: Choice, layers: int, sites: int = 3) -> Layout:
        """A layout with the same choice at every site."""
        return cls(((choice,) * sites,) * layers)

    @classmethod
    def all_serial(cls, layers: int, sites: int = 3) -> Layout:
        """The layout whose adapters are all serial."""
        return cls.uniform(SERIAL, layers, sites)

    @classmethod
    def all_parallel(cls, layers: int, sites: int = 3) -> Layout:
        """The layout whose adapters are all parallel."""
        return cls.uniform(PARALLEL, layers, sites)

    @classmethod
    def random(cls, layers: int, sites: int = 3, *, generator: torch.Generator) -> Layout:
        """A layout of independent, uniform choices between serial and parallel."""
        drawn = torch.randint(len(PLACEMENTS), (layers * sites,), generator=generator).tolist()
        return cls.of((PLACEMENTS[code] for code in drawn), sites=sites)

    @property
    def layers(self) -> int:
        """Number of adapted layers."""
        return len(self.groups)

    @property
    def sites(self) -> int:
        """Number of sites per layer."""
        return len(self.groups[0])

    @property
    def flat(self) -> tuple[Choice, ...]:
        """All choices, layer by layer."""
        return tuple(choice for group in self.groups for choice in group)

    @property
    def z(self) -> tuple[int, ...]:
        """The paper's vector: 1 for an adapter parallel to its sublayer, else 0; layer by layer."""
        return tuple(int(choice.parallel) for choice in self.flat)

    @property
    def choices(self) -> tuple[Choice, ...]:
        """The distinct choices, in order of first occurrence."""
        return tuple(dict.fromkeys(self.flat))

    @property
    def own_choices(self) -> tuple[Choice, ...]:
        """The distinct choices defined by a search space, whose letters are not self-explanatory."""
        return tuple(choice for choice in self.choices if choice not in CHOICES.values())

    def active_layers(self, site: int) -> int:
        """Number of layers with an active choice at a site."""
        return sum(group[site].active for group in self.groups)

    @property
    def has_lora(self) -> bool:
        """Whether any site has LoRA."""
        return any(choice.lora for choice in self.choices)

    @property
    def columns(self) -> int:
        """Number of columns that `tensor` needs: up to `UNITS` if a choice has its own width, up to `LORA` if one is LoRA."""
        if self.has_lora:
            return LORA + 1
        return UNITS if all(choice.width is None for choice in self.choices) else UNITS + 1

    def tensor(
        self,
        *,
        columns: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """The layout as a recommender's forward pass reads it: ``(layers, sites, columns)``.

        The columns are `READS`, `ACTIVE`, `JOINS`, `UNITS`, `LORA`.

        Args:
            columns: number of columns, at least the property ``columns``, which is the default.
            device: device of the tensor.
            dtype: floating-point type of the tensor.
        """
        numbers = [[choice.numbers[: columns or self.columns] for choice in group] for group in self.groups]
        return torch.tensor(numbers, device=device, dtype=dtype)

    def distance(self, other: Layout) -> int:
        """Hamming distance: the number of sites at which ``other`` differs."""
        return len(self.diff(other))

    def diff(self, other: Layout) -> tuple[Difference, ...]:
        """The sites at which ``other`` differs from this layout.

        Raises:
            LayoutError: if the layouts have different shapes.
        """
        if (self.layers, self.sites) != (other.layers, other.sites):
            raise LayoutError(f"{self} and {other} differ in layers or sites; compare layouts of one search space")
        return tuple(
            Difference(layer, site, mine.name, theirs.name)
            for layer, (ours, others) in enumerate(zip(self.groups, other.groups, strict=True))
            for site, (mine, theirs) in enumerate(zip(ours, others, strict=True))
            if mine != theirs
        )

    def require(self, layers: int, sites: int) -> Layout:
        """This layout, after checking its shape.

        Raises:
            LayoutError: if it has another number of layers or sites.
        """
        if (self.layers, self.sites) != (layers, sites):
            raise LayoutError(
                f"the layout {self} has {self.layers} layers of {self.sites} sites and the model has {layers} of {sites}; "
                f"give a layout such as {Layout.all_serial(layers, sites)}"
            )
        return self


class Structure(NamedTuple):
    """What determines a model's parameters besides its settings, whatever the layout; of a search space the same for all layouts.

    Attributes:
        replace_every: replacement frequency r.
        lora: whether the attention sites have LoRA, for layouts that choose it.
    """

    replace_every: int = 1
    lora: bool = False


PLAIN = Structure()  # every layer is adapted, none by LoRA


def replaced_layers(layers: int, every: int) -> tuple[int, ...]:
    """Indices of the adapted layers, from 0: every k with ``(k + 1) % every == 0`` (DARec fig. 10).

    Raises:
        LayoutError: if ``every`` does not divide ``layers``, so that the top layer would not be adapted.
    """
    if every < 1 or layers % every:
        raise LayoutError(
            f"replace_every is {every} and the backbone has {layers} layers; choose a divisor of {layers}"
        )
    return tuple(range(every - 1, layers, every))


class Depth(NamedTuple):
    """The depth of a layout's groups: ascending indices of the adapted layers, from 0, and the backbone's number of layers."""

    replaced: tuple[int, ...]
    layers: int


def map_to_depth(layout: Layout, of: Depth, to: Depth) -> Layout:
    """Transfer a layout to another depth: every layer takes the choices of the layer nearest in relative depth.

    Layer k of L has the relative depth (2k + 1) / 2L. Ties go to the deeper layer, so that where every r-th layer is adapted, it
    represents the r - 1 before it, and so that equal depths return the same layout.
    """
    layout.require(len(of.replaced), layout.sites)

    def nearest(layer: int) -> int:
        gaps = [abs((2 * layer + 1) * of.layers - (2 * other + 1) * to.layers) for other in of.replaced]
        return min(range(len(gaps)), key=lambda place: (gaps[place], -place))

    return Layout(tuple(layout.groups[nearest(layer)] for layer in to.replaced))


def require_lora_sites(layout: Layout, sites: Sequence[str]) -> None:
    """Reject LoRA at a site without its own queries and values.

    Raises:
        LayoutError: naming the first such site.
    """
    for layer, group in enumerate(layout.groups, start=1):
        for site, choice in zip(sites, group, strict=True):
            if choice.lora and site not in ATTENTION_SITES:
                raise LayoutError(
                    f"layer {layer} of {layout} has {choice.name} at {site}; LoRA changes queries and values, which the "
                    f"sites {', '.join(ATTENTION_SITES)} alone have"
                )


def site_names(replaced: Sequence[int], sites: Sequence[str]) -> tuple[str, ...]:
    """``layer03.context`` for every site, in the order of `Layout.flat`; layers are numbered from 1."""
    return tuple(f"layer{layer + 1:02d}.{site}" for layer in replaced for site in sites)


def as_record(layout: Layout, names: Sequence[str]) -> dict[str, Any]:
    """``{site name: choice name}`` for every site."""
    return {name: choice.name for name, choice in zip(names, layout.flat, strict=True)}
