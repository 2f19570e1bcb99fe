"""Search spaces: which sites a model has, which bits are free, and a hash that pins a study to them.

A space file names no optimiser setting; a study refuses to go on with a space of another hash.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dasearch.errors import LayoutError, SearchSpaceError, first_line, suggestion
from dasearch.layout import CHOICES, SITES, Depth, Layout, ModelKind, as_record, replaced_layers, site_names

Choice = Literal["serial", "parallel"]


class SearchSpaceFile(BaseModel):
    """What ``search_spaces/NAME.yaml`` says; patterns such as ``*.causal`` or ``layer01.*`` name sites."""

    model_config = ConfigDict(extra="forbid")

    name: str
    model: ModelKind
    sites: list[str] = Field(min_length=1, description="adapter sites of a layer, in the order of a layout's letters")
    choices: list[Choice] = Field(default=["serial", "parallel"], min_length=2, max_length=2)
    replace_every: int = Field(
        default=1, ge=1, description="replacement frequency r: layer k is adapted if r divides k"
    )
    fixed: dict[str, Choice] = Field(default={}, description="sites held at one choice, by pattern")
    equal: list[str] = Field(default=[], description="constraints: all sites that match one pattern take one choice")

    @field_validator("choices")
    @classmethod
    def _each_once(cls, choices: list[Choice]) -> list[Choice]:
        if len(set(choices)) != len(choices):
            raise ValueError(f"[{', '.join(choices)}] names one choice twice; a search needs two different ones")
        return choices

    @model_validator(mode="after")
    def _sites_of_the_model(self) -> SearchSpaceFile:
        if tuple(self.sites) != SITES[self.model]:
            raise ValueError(
                f"{self.model} has the sites [{', '.join(SITES[self.model])}]; name them all, and hold one with fixed:"
            )
        return self


@dataclass(frozen=True)
class SearchSpace:
    """A space file resolved for a backbone: every bit by name, which are free, which follow another."""

    file: SearchSpaceFile
    backbone_layers: int

    def __post_init__(self) -> None:
        unmatched = [p for p in (*self.file.fixed, *self.file.equal) if not fnmatch.filter(self.names, p)]
        if unmatched:
            raise SearchSpaceError(f"no site matches {unmatched[0]!r}; sites are {self.names[0]} to {self.names[-1]}")
        for pattern in self.file.equal:
            if len({self.fixed[name] for name in fnmatch.filter(self.names, pattern) if name in self.fixed}) > 1:
                raise SearchSpaceError(
                    f"equal: {pattern!r} joins sites that fixed: holds at different choices; drop one"
                )

    @property
    def replaced(self) -> tuple[int, ...]:
        """Adapted layers of the backbone, counted from 0."""
        return replaced_layers(self.backbone_layers, self.file.replace_every)

    @property
    def layers(self) -> int:
        """Number of adapted layers: a layout's groups."""
        return len(self.replaced)

    @property
    def depth(self) -> Depth:
        """Where the adapted layers stand in the backbone."""
        return Depth(self.replaced, self.backbone_layers)

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(self.file.sites)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """``layer01.causal`` and so on, a name a bit."""
        return site_names(self.replaced, self.sites)

    @cached_property
    def fixed(self) -> dict[str, Choice]:
        return {n: choice for pattern, choice in self.file.fixed.items() for n in fnmatch.filter(self.names, pattern)}

    @cached_property
    def leaders(self) -> dict[str, str]:
        """For every bit the bit it follows (itself, where no constraint joins it to an earlier one)."""
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
        """The bits that a search chooses."""
        return tuple(n for n, leader in self.leaders.items() if n == leader and n not in self.fixed)

    @property
    def all_serial(self) -> Layout:
        """The all-serial layout, as near as fixed sites allow."""
        return self.nearest(Layout.all_serial(self.layers, len(self.sites)))

    @property
    def size(self) -> int:
        """Number of layouts."""
        return 1 << len(self.free)

    def decode(self, chosen: Mapping[str, str]) -> Layout:
        """The layout for a choice of each free bit.

        Raises:
            LayoutError: if a free bit is missing, or has another choice than serial and parallel.
        """
        wrong = [name for name in self.free if chosen.get(name) not in CHOICES]
        if wrong:
            given = (
                f"{wrong[0]} is {chosen[wrong[0]]!r}" if wrong[0] in chosen else f"no choice is given for {wrong[0]}"
            )
            raise LayoutError(f"{given}; give one of {', '.join(CHOICES)}")
        full = {**chosen, **self.fixed}
        bits = [
            CHOICES.index(full[self.leaders[name]] if name not in self.fixed else full[name]) for name in self.names
        ]
        return Layout.from_bits(bits, sites=len(self.sites))

    def holds(self, chosen: Mapping[str, str]) -> bool:
        """Whether `decode` finds a layout; not of a trial to be proposed, nor of one with choices from elsewhere."""
        return all(chosen.get(name) in CHOICES for name in self.free)

    def encode(self, layout: Layout) -> dict[str, str]:
        """The choice of each free bit.

        Raises:
            LayoutError: for another shape, or a layout outside the space.
        """
        record = as_record(layout.require(self.layers, len(self.sites)), self.names)
        chosen = {name: record[name] for name in self.free}
        wrong = self.decode(chosen).diff(layout)
        if wrong:
            name = self.names[wrong[0].layer * len(self.sites) + wrong[0].site]
            raise LayoutError(f"{layout} is outside the search space: {name} must be {wrong[0].before}")
        return chosen

    def nearest(self, layout: Layout) -> Layout:
        """The layout of this space that takes ``layout``'s free bits."""
        record = as_record(layout.require(self.layers, len(self.sites)), self.names)
        return self.decode({name: record[name] for name in self.free})

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> SearchSpace:
        """The space that `record` tells of."""
        file = {key: value for key, value in record.items() if key != "backbone_layers"}
        return cls(SearchSpaceFile.model_validate(file), int(record["backbone_layers"]))

    def record(self) -> dict[str, object]:
        """All that the hash covers, as JSON values."""
        return {**self.file.model_dump(mode="json"), "backbone_layers": self.backbone_layers}

    @property
    def hash(self) -> str:
        """Stable over versions, key order and machines: 16 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.record(), sort_keys=True).encode()).hexdigest()[:16]


def space_differences(before: Mapping[str, object], after: Mapping[str, object]) -> str:
    """``sites: [...] -> [...]`` for each key that differs between two `SearchSpace.record` values."""
    keys = sorted({*before, *after})
    return "; ".join(f"{k}: {before.get(k)} -> {after.get(k)}" for k in keys if before.get(k) != after.get(k))


def shipped(folder: str) -> Path:
    """The folder of shipped search spaces or studies: in a checkout beside the package, in a wheel inside it."""
    package = Path(str(resources.files("dasearch")))
    inside = package / "_shipped" / folder
    return inside if inside.is_dir() else package.parent / folder


def find_shipped(name: str, folder: str) -> Path | None:
    """The YAML file that ``name`` means: a path, or the bare name of a shipped one."""
    path = Path(name)
    if path.is_file():
        return path
    for candidate in (shipped(folder) / f"{name}.yaml", shipped(folder).parent / name, shipped(folder) / path.name):
        if candidate.is_file() and (path.parent in (Path(), Path(folder))):
            return candidate
    return None


def load_search_space(name: str, *, backbone_layers: int, replace_every: int | None = None) -> SearchSpace:
    """Read a space file, by path or shipped name, for a backbone of so many layers.

    Raises:
        SearchSpaceError: for a file that is missing or malformed.
    """
    path = find_shipped(name, "search_spaces")
    if path is None:
        known = sorted(p.stem for p in shipped("search_spaces").glob("*.yaml"))
        raise SearchSpaceError(
            f"there is no search space {name!r}{suggestion(name, known)}; shipped ones: {', '.join(known)}"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        file = SearchSpaceFile.model_validate(content)
    except yaml.YAMLError as error:
        raise SearchSpaceError(f"{path} is not YAML: {first_line(error)}") from None
    except ValidationError as error:
        first = error.errors()[0]
        reason = str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"]
        raise SearchSpaceError(f"{path}: {'.'.join(map(str, first['loc'])) or 'content'}: {reason}") from None
    if replace_every is not None:
        file = file.model_copy(update={"replace_every": replace_every})
    return SearchSpace(file, backbone_layers)
