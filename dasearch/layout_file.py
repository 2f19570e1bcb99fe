"""``layout.json``: a layout with all that another trainer needs to rebuild it, and how its form may grow.

A form's version is ``MAJOR.MINOR``. A minor version only adds fields, so a reader of the same major leaves out what it does
not know; a major version changes what a field means, and an older reader refuses it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dasearch.errors import LayoutError, suggestion
from dasearch.layout import SITES, Layout

LAYOUT_NAME = "layout.json"


class VersionedFile(BaseModel):
    """A JSON file with a ``schema_version``; subclasses name their ``VERSION`` and what they are."""

    model_config = ConfigDict(extra="ignore")

    VERSION: ClassVar[str]
    WHAT: ClassVar[str]

    schema_version: str = Field("", description="MAJOR.MINOR; a minor version only adds fields")

    @model_validator(mode="before")
    @classmethod
    def _known_version(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
        content = {**content, "schema_version": _as_version(content.get("schema_version", cls.VERSION))}
        major, minor = _parts(content["schema_version"])
        known_major, known_minor = _parts(cls.VERSION)
        if major != known_major:
            raise ValueError(
                f"it has schema version {major}.{minor} and this dasearch reads {known_major}.x; "
                + ("update dasearch" if major > known_major else "write it again with this dasearch")
            )
        unknown = sorted(set(content) - set(cls.model_fields))
        if unknown and minor <= known_minor:
            hint = suggestion(unknown[0], list(cls.model_fields))
            raise ValueError(f"version {major}.{minor} has no field {unknown[0]!r}{hint}; take it out")
        return content

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read and check a file.

        Raises:
            LayoutError: for a missing or damaged file, or one of another major version.
        """
        try:
            return cls.model_validate(json.loads(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise LayoutError(f"{path} cannot be read ({error.strerror}); name a {cls.WHAT}") from None
        except ValidationError as error:
            raise LayoutError(f"{path} is no usable {cls.WHAT}: {_sentence(error)}") from None
        except ValueError as error:  # no JSON, or no UTF-8
            raise LayoutError(f"{path} is no {cls.WHAT} or is cut off ({error}); write or copy it again") from None

    def text(self) -> str:
        """The file's content."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The form as a JSON Schema, open to fields of later minor versions."""
        found = cls.model_json_schema()
        found["properties"]["schema_version"]["pattern"] = rf"^{_parts(cls.VERSION)[0]}\.\d+$"
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


class Metric(BaseModel):
    """A score and its 95% interval (None where there was a single run)."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    split: Literal["validation", "test"] = "validation"


class LayoutFile(VersionedFile):
    """The contents of ``layout.json``."""

    VERSION = "1.0"
    WHAT = "layout file (layout.json)"

    schema_version: str = Field(VERSION, description="MAJOR.MINOR; a minor version only adds fields")
    model: str
    backbone: str
    layers: int = Field(ge=1, description="layers of the backbone")
    replaced: list[int] = Field(min_length=1, description="the layers that carry adapters, counted from 1")
    sites: list[str] = Field(min_length=1, description="the adapters of a layer, in the order of the layout's letters")
    layout: str = Field(
        pattern="^[SP]+(-[SP]+)*$", description="a group a layer of `replaced`, a letter a site: S serial, P parallel"
    )
    bottleneck: int | None = Field(None, description="DARec: width between an adapter's projections")
    activation: str | None = Field(None, description="DARec: between them")
    prefix: int | None = Field(None, description="IDLE-Adapter and RA-Rec: learned tokens in front of every layer")
    encoder: str | None = Field(None, description="IDLE-Adapter and RA-Rec: the ID encoder")
    parallel_reads: str = Field("sublayer input (after the frozen norm)", description="what a parallel adapter reads")
    parallel_reduce: str | None = Field(None, description="how a parallel adapter joins its sublayer: mean or sum")
    parallel_residual: bool | None = Field(None, description="DARec: whether a parallel adapter adds its own input")
    metric: Metric | None = None
    study: str
    seed: int
    versions: dict[str, str]

    @model_validator(mode="after")
    def _fits_itself(self) -> Self:
        if self.replaced != sorted(set(self.replaced)) or not 1 <= self.replaced[0] <= self.replaced[-1] <= self.layers:
            raise ValueError(f"replaced {self.replaced} is no rising list of layers from 1 to {self.layers}")
        if tuple(self.sites) not in SITES.values():
            known = "; ".join(", ".join(sites) for sites in SITES.values())
            raise ValueError(f"sites {', '.join(self.sites)} are of no known model ({known})")
        self.parsed()
        return self

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a ``layout.json``, or that of a folder; raises as `VersionedFile.read`."""
        return super().read(Path(path) / LAYOUT_NAME if Path(path).is_dir() else path)

    def parsed(self) -> Layout:
        """The layout, which has a group for every layer of ``replaced``."""
        return Layout.parse(self.layout).require(len(self.replaced), len(self.sites))


def _as_version(value: Any) -> str:
    """Before minor versions there was the number 1."""
    return f"{value}.0" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _parts(version: str) -> tuple[int, int]:
    major, _, minor = version.partition(".")
    if not (major.isdigit() and minor.isdigit()):
        raise ValueError(f"schema_version {version!r} is not of the form MAJOR.MINOR")
    return int(major), int(minor)


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    reason = str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"]
    return f"{where}: {reason}" if where else reason
