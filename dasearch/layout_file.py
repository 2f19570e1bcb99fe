"""``layout.json``: a layout with everything that another training framework needs to rebuild it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dasearch.errors import LayoutError
from dasearch.folders import place_of
from dasearch.layout import PLACEMENTS, SITES, Choice, Join, Layout
from dasearch.versioned import VersionedFile

LAYOUT_NAME = "layout.json"


class Metric(BaseModel):
    """A score and its 95% confidence interval (None for a single run)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    split: Literal["validation", "test"] = "validation"


class ChoiceRecord(BaseModel):
    """The definition of one of a layout's letters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    letter: str = Field(pattern="^[A-Za-z]$")
    active: bool = Field(True, description="false: no adapter, the frozen layer as it is")
    parallel: bool = Field(False, description="whether the adapter reads its sublayer's input rather than its output")
    width: int | None = Field(
        None, ge=1, description="bottleneck units; null: `bottleneck`. Of LoRA its rank; null: `lora_rank`"
    )
    join: Join = Field(
        Join.MODEL, description="of an adapter that reads the input: as `parallel_reduce` says, or the plain sum"
    )
    lora: bool = Field(False, description="since 1.2: LoRA on the site's queries and values, in place of an adapter")

    def choice(self) -> Choice:
        """The choice that this record defines."""
        return Choice(**self.model_dump())


def choice_records(*choices: Choice) -> list[ChoiceRecord]:
    """Definitions of letters; serial and parallel, the paper's two, are always included."""
    return [ChoiceRecord(**asdict(choice)) for choice in dict.fromkeys((*PLACEMENTS, *choices))]


class LayoutFile(VersionedFile):
    """The contents of ``layout.json``."""

    VERSION = "1.2"
    WHAT = "layout file (layout.json)"

    schema_version: str = Field(VERSION, description="MAJOR.MINOR; a minor version only adds fields")
    model: str
    backbone: str
    layers: int = Field(ge=1, description="layers of the backbone")
    replaced: list[int] = Field(min_length=1, description="the layers that carry adapters, counted from 1")
    sites: list[str] = Field(min_length=1, description="the adapters of a layer, in the order of the layout's letters")
    layout: str = Field(
        pattern="^[A-Za-z]+(-[A-Za-z]+)*$", description="a group a layer of `replaced`, a letter a site: see `choices`"
    )
    choices: list[ChoiceRecord] = Field(
        default_factory=choice_records, min_length=1, description="since 1.1: what the letters stand for"
    )
    bottleneck: int | None = Field(None, description="DARec: width between an adapter's projections")
    activation: str | None = Field(None, description="DARec: between them")
    prefix: int | None = Field(None, description="IDLE-Adapter and RA-Rec: learned tokens in front of every layer")
    encoder: str | None = Field(None, description="the ID encoder that the model reads, where it reads one")
    parallel_reads: str = Field("sublayer input (after the frozen norm)", description="what a parallel adapter reads")
    parallel_reduce: str | None = Field(None, description="how a parallel adapter joins its sublayer: mean or sum")
    parallel_residual: bool | None = Field(None, description="DARec: whether a parallel adapter adds its own input")
    lora_rank: int | None = Field(None, description="since 1.2: rank of LoRA where a choice names none")
    lora_alpha: float | None = Field(None, description="since 1.2: its scale times its rank")
    metric: Metric | None = None
    study: str
    seed: int
    versions: dict[str, str]

    @model_validator(mode="after")
    def _fits_itself(self) -> Self:
        if self.replaced != sorted(set(self.replaced)) or not 1 <= self.replaced[0] <= self.replaced[-1] <= self.layers:
            raise ValueError(f"replaced {self.replaced} must be an ascending list of layers from 1 to {self.layers}")
        if tuple(self.sites) not in SITES.values():
            known = "; ".join(", ".join(sites) for sites in SITES.values())
            raise ValueError(f"sites {', '.join(self.sites)} belong to no known model ({known})")
        self.parsed()
        return self

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a ``layout.json`` or the one in a folder; raises like `VersionedFile.read`."""
        place = place_of(path, LayoutError)
        return super().read(place / LAYOUT_NAME if place.is_dir() else place)

    def parsed(self) -> Layout:
        """The layout, with one group for every layer of ``replaced``."""
        return Layout.parse(self.layout, [one.choice() for one in self.choices]).require(
            len(self.replaced), len(self.sites)
        )


def read_layout(path: str | Path) -> Layout:
    """The layout of a ``layout.json``, or of a folder that contains one.

    Raises:
        LayoutError: for a missing or damaged file, a newer schema, or a layout that does not match the file's own sites.

    Examples:
        >>> import json, pathlib, tempfile
        >>> from dasearch import read_layout
        >>> file = {"schema_version": "1.2", "model": "e4s-rec", "backbone": "tiny-opt", "layers": 2, "replaced": [1, 2]}
        >>> file |= {"sites": ["attention", "ffn"], "layout": "SP-PP", "study": "e4s-rec", "seed": 0, "versions": {}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = pathlib.Path(folder, "layout.json").write_text(json.dumps(file))
        ...     read_layout(folder)
        Layout('SP-PP')
    """
    return LayoutFile.read(path).parsed()
