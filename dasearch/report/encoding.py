"""Substitutes for characters that an output encoding lacks (`PYTHONIOENCODING=ascii`, C locale, cp1252)."""

from __future__ import annotations

import codecs
import io
from typing import TextIO

ERRORS = "dasearch"  # the name of `in_place` among Python's error handlers
SPELLED = {"±": "+-", "–": "-", "—": "-", "−": "-", "…": "...", "×": "x", "·": ".", "→": "->", "≥": ">=", "≤": "<="}  # fmt: skip


def in_place(error: UnicodeError) -> tuple[str, int]:
    """The substitute for unencodable characters: a spelling of ours, else Python's escape.

    Raises:
        UnicodeError: ``error``, if it is not an encoding error.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(SPELLED.get(one) or one.encode("ascii", "backslashreplace").decode() for one in lacking), error.end


def write_any(stream: TextIO) -> None:
    """Make a stream of this process accept any text."""
    codecs.register_error(ERRORS, in_place)
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors=ERRORS)


def writes_all(stream: TextIO) -> bool:
    """Whether a stream can encode every character."""
    return codecs.lookup(stream.encoding or "utf-8").name.startswith("utf")
