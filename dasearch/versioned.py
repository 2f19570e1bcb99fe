"""Files that outlive the release that wrote them: JSON with a ``schema_version`` of MAJOR.MINOR.

A minor version adds fields, so a file of a newer one is read and what is unknown in it left out. In a file of a version that
is known an unknown field is an edit or a misspelling, and refused; so is another major version.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from dasearch.errors import LayoutError

FIELD = "schema_version"
Model = TypeVar("Model", bound=BaseModel)


def parse_versioned(model: type[Model], record: dict[str, Any], *, known: str, source: str) -> Model:
    """Check the contents of a file that this release writes in version ``known``.

    Raises:
        LayoutError: for a version it cannot read, or contents that do not fit.
    """
    version = record.get(FIELD)
    if not isinstance(version, str) or not re.fullmatch(r"\d+\.\d+", version):
        raise LayoutError(f'{source} has no {FIELD} such as "{known}"; give a file that `dasearch` wrote')
    (major, minor), (own_major, own_minor) = (map(int, text.split(".")) for text in (version, known))
    if major != own_major:
        raise LayoutError(
            f"{source} is of schema version {version} and this release reads {known}; install another dasearch"
        )
    return validated(model, record, source=source, ignore_unknown=minor > own_minor)


def validated(model: type[Model], record: dict[str, Any], *, source: str, ignore_unknown: bool = False) -> Model:
    """Check contents; the first thing that is wrong with them makes the sentence of a `LayoutError`."""
    try:
        return model.model_validate(record, extra="ignore" if ignore_unknown else None)
    except ValidationError as error:
        first = error.errors()[0]
        reason = str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"].lower()
        place = ".".join(map(str, first["loc"])) or "its contents"
        raise LayoutError(f"{source}: {place}: {reason}; write the file again") from None
