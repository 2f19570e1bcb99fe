"""JSON files that later releases can read, by a ``schema_version`` of MAJOR.MINOR.

A minor version only adds fields, so unknown fields of a newer minor version are ignored. In a file of a known version
an unknown field is an edit or a misspelling, and rejected; so is another major version.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from dasearch.errors import LayoutError, first_line, suggestion

FIELD = "schema_version"


class VersionedFile(BaseModel):
    """Base of such files.

    Attributes:
        VERSION: the version that this release writes; also the default of the subclass's field ``schema_version``.
        WHAT: a noun for such a file in messages.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    VERSION: ClassVar[str]
    WHAT: ClassVar[str]

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read and check a file.

        Raises:
            LayoutError: for a missing or damaged file, or one of another major version.
        """
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise LayoutError(f"{path} cannot be read ({error.strerror}); name a {cls.WHAT}") from None
        except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8
            raise LayoutError(
                f"{path} is not a {cls.WHAT} or is truncated ({first_line(error)}); write or copy it again"
            ) from None
        return cls.of_record(record, str(path))

    @classmethod
    def of_record(cls, record: Any, source: str) -> Self:
        """Check a file's contents.

        Raises:
            LayoutError: for another major version, or contents that do not fit.
        """
        if not isinstance(record, dict):
            raise LayoutError(f"{source} is not a usable {cls.WHAT}: it is not a JSON object")
        version = record.get(FIELD)
        version = "1.0" if version == 1 else str(version)  # before minor versions the version was the number 1
        major, minor = _parts(version, source)
        known_major, known_minor = _parts(cls.VERSION, cls.WHAT)
        if major != known_major:
            fix = "update dasearch" if major > known_major else "write it again with this dasearch"
            raise LayoutError(f"{source} has schema version {version} and this dasearch reads {known_major}.x; {fix}")
        try:
            return cls.model_validate({**record, FIELD: version}, extra="ignore" if minor > known_minor else None)
        except ValidationError as error:
            reason = _reason(error.errors()[0], version, list(cls.model_fields))
            raise LayoutError(f"{source} is not a usable {cls.WHAT}: {reason}") from None

    def text(self) -> str:
        """The file's content."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON Schema of the format, which allows fields of later minor versions."""
        schema = cls.model_json_schema()
        for part in (schema, *schema.get("$defs", {}).values()):
            part.pop("additionalProperties", None)
        schema["properties"][FIELD]["pattern"] = rf"^{cls.VERSION.split('.')[0]}\.\d+$"
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _parts(version: str, source: str) -> tuple[int, int]:
    if not re.fullmatch(r"\d{1,9}\.\d{1,9}", version):
        raise LayoutError(f"{source}: {FIELD} {version[:80]!r} is not of the form MAJOR.MINOR; write the file again")
    major, minor = map(int, version.split("."))
    return major, minor


def _reason(error: ErrorDetails, version: str, fields: list[str]) -> str:
    where = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"version {version} has no field {where!r}{suggestion(where, fields)}; remove it"
    reason = str(error["ctx"]["error"]) if error["type"] == "value_error" else error["msg"]
    return f"{where}: {reason}" if where else reason
