"""Search spaces: a model's sites, the choices at each, which sites are free, and a hash that identifies the space.

A space file contains no optimiser settings; a study only resumes with a space of the same hash.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dasearch.errors import LayoutError, SearchSpaceError, suggestion
from dasearch.layout import (
    ADAPTER_MODELS,
    ATTENTION_SITES,
    CHOICES,
    PLACEMENTS,
    SITES,
    Choice,
    Depth,
    Join,
    Layout,
    ModelKind,
    Structure,
    as_record,
    replaced_layers,
    site_names,
)
from dasearch.shipped import find_shipped, shipped_names
from dasearch.yaml_files import read_yaml

DIVISIBLE = 60  # divisible by every possible number of choices of a site
MOST_CHOICES = 6  # of a site: as many as figures can distinguish by colour


class ChoiceFile(BaseModel):
    """A choice defined by a search space as a variant of a shipped one; omitted fields are inherited."""

    model_config = ConfigDict(extra="forbid")

    like: str = Field(description="a shipped choice: " + ", ".join(CHOICES))
    letter: str = Field(description="a letter for layouts, as s in sPS-PPS")
    width: int | None = Field(
        None, ge=1, description="bottleneck units, at most model.bottleneck; of LoRA its rank, at most model.lora_rank"
    )
    join: Join | None = Field(None, description="how an adapter that reads its sublayer's input joins: model or sum")

    @field_validator("like")
    @classmethod
    def _shipped(cls, like: str) -> str:
        if like not in CHOICES:
            raise ValueError(
                f"there is no shipped choice {like!r}{suggestion(like, list(CHOICES))}; {', '.join(CHOICES)}"
            )
        return like

    def choice(self, name: str) -> Choice:
        """The choice under this name."""
        like = CHOICES[self.like]
        return replace(like, name=name, letter=self.letter, width=self.width, join=self.join or like.join)


class SearchSpaceFile(BaseModel):
    """The contents of ``search_spaces/NAME.yaml``; patterns such as ``*.causal`` or ``layer01.*`` select sites."""

    model_config = ConfigDict(extra="forbid")

    name: str
    model: ModelKind
    sites: list[str] = Field(min_length=1, description="adapter sites of a layer, in the order of a layout's letters")
    choices: list[str] | dict[str, list[str]] = Field(
        default=["serial", "parallel"], description="choices available at every site, or a list per site"
    )
    define: dict[str, ChoiceFile] = Field(default={}, description="custom choices, by name")
    replace_every: int = Field(
        default=1, ge=1, description="replacement frequency r: layer k is adapted if r divides k"
    )
    fixed: dict[str, str] = Field(default={}, description="sites fixed to one choice, by pattern")
    equal: list[str] = Field(default=[], description="constraints: all sites that match one pattern take one choice")

    @model_validator(mode="after")
    def _sites_of_the_model(self) -> SearchSpaceFile:
        if tuple(self.sites) != SITES[self.model]:
            raise ValueError(
                f"{self.model} has the sites [{', '.join(SITES[self.model])}]; name them all; fixed: can fix one"
            )
        return self

    @model_validator(mode="after")
    def _choices_of_the_sites(self) -> SearchSpaceFile:
        if isinstance(self.choices, dict) and sorted(self.choices) != sorted(self.sites):
            raise ValueError(f"choices lists [{', '.join(self.choices)}]; list those of [{', '.join(self.sites)}]")
        for names in self.choices.values() if isinstance(self.choices, dict) else [self.choices]:
            self._require_choices(names)
        self._require_attention_sites()
        shadowing = sorted(set(self.define) & set(CHOICES))
        if shadowing:
            raise ValueError(f"define redefines the shipped choice {shadowing[0]!r}; choose another name")
        by_letter: dict[str, str] = {}
        for choice in self.alphabet:
            other = by_letter.setdefault(choice.letter, choice.name)
            if other != choice.name:
                raise ValueError(f"{other} and {choice.name} share the letter {choice.letter}; change one of them")
        return self

    def _require_choices(self, names: list[str]) -> None:
        listed = f"[{', '.join(names)}]"
        if len(set(names)) != len(names):
            raise ValueError(f"{listed} lists a choice twice; list each choice once")
        if not 2 <= len(names) <= MOST_CHOICES:
            raise ValueError(
                f"{listed} has {len(names)} choices; a site takes 2 to {MOST_CHOICES}; use fixed: for a single one"
            )
        any_choice = self.model in ADAPTER_MODELS
        able = {**CHOICES, **self.define} if any_choice else {c.name: c for c in PLACEMENTS}
        for name in names:
            if name not in able:
                own = "there is " if any_choice else f"{self.model} has "
                raise ValueError(f"{own}no choice {name!r}{suggestion(name, list(able))}; {', '.join(able)}")

    def _require_attention_sites(self) -> None:
        """Reject LoRA at sites without their own queries and values."""
        for site in self.sites:
            lora = next((choice.name for choice in self.of_site(site) if choice.lora), None)
            if lora is not None and site not in ATTENTION_SITES:
                able = [other for other in self.sites if other in ATTENTION_SITES]
                raise ValueError(
                    f"{site} has no choice {lora!r}: LoRA changes queries and values, which {' and '.join(able)} alone "
                    f"{'have' if len(able) > 1 else 'has'}; list choices by site"
                )

    @property
    def alphabet(self) -> tuple[Choice, ...]:
        """All distinct choices of the space, in the order of the sites' lists."""
        lists = [self.choices] if isinstance(self.choices, list) else [self.choices[site] for site in self.sites]
        return tuple(self.named(name) for name in dict.fromkeys(name for names in lists for name in names))

    @property
    def has_lora(self) -> bool:
        """Whether LoRA is a choice at any site."""
        return any(choice.lora for choice in self.alphabet)

    @property
    def structure(self) -> Structure:
        """The structure that all models of the space share."""
        return Structure(self.replace_every, self.has_lora)

    def named(self, name: str) -> Choice:
        """The choice with this name, defined here or shipped."""
        return self.define[name].choice(name) if name in self.define else CHOICES[name]

    def of_site(self, site: str) -> tuple[Choice, ...]:
        """The choices available at a site."""
        names = self.choices if isinstance(self.choices, list) else self.choices[site]
        return tuple(self.named(name) for name in names)


@dataclass(frozen=True)
class SearchSpace:
    """A space file resolved for a backbone: the names of all sites, their choices, and which are free, fixed or tied."""

    file: SearchSpaceFile
    backbone_layers: int

    def __repr__(self) -> str:
        return f"SearchSpace({self.file.name!r}: {self.layers} layers, {len(self.names)} sites, {len(self.free)} free)"

    def __post_init__(self) -> None:
        unmatched = [p for p in (*self.file.fixed, *self.file.equal) if not fnmatch.filter(self.names, p)]
        if unmatched:
            raise SearchSpaceError(f"no site matches {unmatched[0]!r}; sites are {self.names[0]} to {self.names[-1]}")
        for name, choice in self.fixed.items():
            if choice not in self._by_name[name]:
                able = ", ".join(self._by_name[name])
                raise SearchSpaceError(f"fixed: {name} has no choice {choice!r}; it takes {able}")
        for pattern in self.file.equal:
            if len({tuple(self._by_name[name]) for name in fnmatch.filter(self.names, pattern)}) > 1:
                raise SearchSpaceError(
                    f"equal: {pattern!r} ties sites with different lists of choices; tie sites with the same list"
                )
            if len({self.fixed[name] for name in fnmatch.filter(self.names, pattern) if name in self.fixed}) > 1:
                raise SearchSpaceError(f"equal: {pattern!r} ties sites that fixed: sets to different choices; drop one")

    @property
    def replaced(self) -> tuple[int, ...]:
        """Indices of the backbone's adapted layers, from 0."""
        return replaced_layers(self.backbone_layers, self.file.replace_every)

    @property
    def layers(self) -> int:
        """Number of adapted layers: the groups of a layout."""
        return len(self.replaced)

    @property
    def depth(self) -> Depth:
        """The depth of the adapted layers in the backbone."""
        return Depth(self.replaced, self.backbone_layers)

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of a layer's sites, in the order of a layout's letters."""
        return tuple(self.file.sites)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of all sites, ``layer01.causal`` and so on, in the order of `Layout.flat`."""
        return site_names(self.replaced, self.sites)

    @cached_property
    def choices(self) -> dict[str, tuple[Choice, ...]]:
        """The choices available at every site, by its name."""
        return {name: self.file.of_site(name.partition(".")[2]) for name in self.names}

    @cached_property
    def _by_name(self) -> dict[str, dict[str, Choice]]:
        return {name: {choice.name: choice for choice in choices} for name, choices in self.choices.items()}

    @cached_property
    def fixed(self) -> dict[str, str]:
        """The choice of every fixed site, by the site's name."""
        return {n: choice for pattern, choice in self.file.fixed.items() for n in fnmatch.filter(self.names, pattern)}

    @cached_property
    def tied_to(self) -> dict[str, str]:
        """The site whose choice each site follows: itself, unless a constraint ties it to another."""
        leaders = {name: name for name in self.names}
        for pattern in self.file.equal:
            group = fnmatch.filter(self.names, pattern)
            held = [name for name in group if name in self.fixed]
            first = leaders[(held or group)[0]]
            joined = {leaders[name] for name in group}
            leaders = {name: first if leader in joined else leader for name, leader in leaders.items()}
        return leaders

    @cached_property
    def free(self) -> tuple[str, ...]:
        """The sites for which the search selects a choice."""
        return tuple(n for n, leader in self.tied_to.items() if n == leader and n not in self.fixed)

    @property
    def all_serial(self) -> Layout:
        """The all-serial layout, or the nearest one that the fixed sites allow."""
        return self.nearest(Layout.all_serial(self.layers, len(self.sites)))

    def random(self, generator: torch.Generator) -> Layout:
        """A layout of uniformly drawn choices; drawn for all sites, also for those that are not free."""
        numbers = torch.randint(DIVISIBLE, (len(self.names),), generator=generator).tolist()
        drawn = zip(self.choices.items(), numbers, strict=True)
        return self.decode({name: choices[number % len(choices)].name for (name, choices), number in drawn})

    @property
    def size(self) -> int:
        """Number of layouts."""
        return math.prod(len(self.choices[name]) for name in self.free)

    def parse(self, text: str) -> Layout:
        """Parse a layout in the space's letters, and in those shipped letters that it does not use, ignoring case if unambiguous.

        Raises:
            LayoutError: as `Layout.parse`.
        """
        own = {choice.letter: choice for choice in self.file.alphabet}
        shipped = {choice.letter: choice for choice in CHOICES.values()}
        letters = shipped | own
        written = "".join(letter if letter in letters else letter.upper() for letter in text)
        return Layout.parse(written, letters.values())

    def decode(self, chosen: Mapping[str, str]) -> Layout:
        """The layout for a choice of each free site.

        Raises:
            LayoutError: if a free site is missing, or has a choice that is not available there.
        """
        for name in self.free:
            if chosen.get(name) not in self._by_name[name]:
                given = f"{name} is {chosen[name]!r}" if name in chosen else f"no choice is given for {name}"
                raise LayoutError(f"{given}; give one of {', '.join(self._by_name[name])}")
        full = {**chosen, **self.fixed}
        names = {name: full[name] if name in self.fixed else full[self.tied_to[name]] for name in self.names}
        return Layout.of((self._by_name[name][names[name]] for name in self.names), sites=len(self.sites))

    def codes(self, layout: Layout) -> tuple[int, ...]:
        """The index of each free site's choice in its list of choices."""
        by_name = dict(zip(self.names, layout.flat, strict=True))
        return tuple(self.choices[name].index(by_name[name]) for name in self.free)

    def decode_codes(self, codes: Sequence[int]) -> Layout:
        """The layout with these codes; inverse of `codes`."""
        chosen = zip(self.free, codes, strict=True)
        return self.decode({name: self.choices[name][int(code)].name for name, code in chosen})

    def foreign(self, chosen: Mapping[str, Any]) -> str | None:
        """The first free site whose given choice is not available there; None if there is none."""
        return next((n for n in self.free if n in chosen and chosen[n] not in self._by_name[n]), None)

    def holds(self, chosen: Mapping[str, str]) -> bool:
        """Whether `decode` would succeed; False for incomplete trials and for choices of another space."""
        return all(chosen.get(name) in self._by_name[name] for name in self.free)

    def encode(self, layout: Layout) -> dict[str, str]:
        """The choice of each free site.

        Raises:
            LayoutError: if the layout has another shape or is outside the space.
        """
        record = as_record(layout.require(self.layers, len(self.sites)), self.names)
        chosen = {name: record[name] for name in self.free}
        foreign = self.foreign(chosen)
        if foreign is not None:
            able = ", ".join(self._by_name[foreign])
            raise LayoutError(
                f"{layout} is outside the search space: {foreign} is {chosen[foreign]}, not one of {able}"
            )
        wrong = self.decode(chosen).diff(layout)
        if wrong:
            name = self.names[wrong[0].layer * len(self.sites) + wrong[0].site]
            raise LayoutError(f"{layout} is outside the search space: {name} must be {wrong[0].before}")
        return chosen

    def nearest(self, layout: Layout) -> Layout:
        """The layout of this space with ``layout``'s choices at free sites, or the most similar ones available."""
        layout.require(self.layers, len(self.sites))
        given = dict(zip(self.names, layout.flat, strict=True))
        return self.decode({name: given[name].nearest(self.choices[name]).name for name in self.free})

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> SearchSpace:
        """The space with this `record`."""
        file = {key: value for key, value in record.items() if key != "backbone_layers"}
        return cls(SearchSpaceFile.model_validate(file), int(record["backbone_layers"]))

    def record(self) -> dict[str, object]:
        """Everything covered by the hash, as JSON values; an empty ``define`` is omitted, as in records of earlier versions."""
        file = self.file.model_dump(mode="json", exclude=None if self.file.define else {"define"})
        return {**file, "backbone_layers": self.backbone_layers}

    @property
    def hash(self) -> str:
        """16 hexadecimal digits, independent of version, key order and machine."""
        return hashlib.sha256(json.dumps(self.record(), sort_keys=True).encode()).hexdigest()[:16]


def space_differences(before: Mapping[str, object], after: Mapping[str, object]) -> str:
    """``sites: [...] -> [...]`` for each key that differs between two `SearchSpace.record` values."""
    keys = sorted({*before, *after})
    return "; ".join(f"{k}: {before.get(k)} -> {after.get(k)}" for k in keys if before.get(k) != after.get(k))


def load_search_space(name: str, *, backbone_layers: int, replace_every: int | None = None) -> SearchSpace:
    """Load a space file, by path or shipped name, and resolve it for a backbone with this many layers.

    Raises:
        SearchSpaceError: if the file is missing or malformed.
    """
    path = find_shipped(name, "search_spaces")
    if path is None:
        known = shipped_names("search_spaces")
        raise SearchSpaceError(
            f"there is no search space {name!r}{suggestion(name, known)}; shipped ones: {', '.join(known)}"
        )
    try:
        file = SearchSpaceFile.model_validate(read_yaml(path, SearchSpaceError))
    except ValidationError as error:
        first = error.errors()[0]
        reason = str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"]
        raise SearchSpaceError(f"{path}: {'.'.join(map(str, first['loc'])) or 'content'}: {reason}") from None
    if replace_every is not None:
        file = file.model_copy(update={"replace_every": replace_every})
    return SearchSpace(file, backbone_layers)
