"""Which versions of a file are read, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from dasearch.errors import LayoutError
from dasearch.versioned import parse_versioned


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int


class File(BaseModel):
    model_config = ConfigDict(extra="forbid")
    schema_version: str
    parts: list[Part]


def parse(version: Any, *, known: str = "1.2", **more: Any) -> File:
    record = {"schema_version": version, "parts": [{"size": 3, **more}]}
    return parse_versioned(File, record, known=known, source="f.json")


@pytest.mark.parametrize("version", ["1.0", "1.2", "1.3", "1.10"])
def test_the_same_major_version_is_read(version: str) -> None:
    assert parse(version).parts == [Part(size=3)]


def test_a_newer_minor_version_may_say_more() -> None:
    assert parse("1.10", colour="red").parts == [Part(size=3)]  # 10 is newer than 2


@pytest.mark.parametrize("version", ["1.0", "1.2"])
def test_a_known_version_may_not(version: str) -> None:
    with pytest.raises(
        LayoutError, match=r"f.json: parts.0.colour: extra inputs are not permitted; write the file again"
    ):
        parse(version, colour="red")


@pytest.mark.parametrize("version", ["2.0", "0.9"])
def test_another_major_version_is_refused(version: str) -> None:
    with pytest.raises(LayoutError, match=f"f.json is of schema version {version} and this release reads 1.2; install"):
        parse(version, colour="red")


@pytest.mark.parametrize("version", [None, 1, 1.2, "1", "one"])
def test_a_file_without_a_version_is_refused(version: Any) -> None:
    with pytest.raises(LayoutError, match=r'f.json has no schema_version such as "1.2"'):
        parse(version)


def test_a_newer_minor_version_is_still_checked() -> None:
    with pytest.raises(LayoutError, match=r"f.json: parts.0.size: input should be a valid integer"):
        parse("1.9", size="big")
