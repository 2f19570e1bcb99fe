"""Parsing of cells and fields as texts, identifiers or times. Other values are rejected, not converted to strings."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterator, Sequence

MICROSECONDS = 1_000_000
WHOLE = re.compile(r"(0|-?[1-9]\d*)(\.0+)?", re.ASCII)  # as an integer is written, or the float that equals it


def text_of(value: object, clean: Callable[[str], str] = str.strip) -> str:
    """A value as text: a list's parts joined by spaces, empty for null and NaN.

    Raises:
        TypeError: for an object, or a list of numbers; the message names it.
    """
    return writable(" ".join(filter(None, map(clean, _parts(value)))))


def _parts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        if any(isinstance(part, int | float) and part == part for part in value):
            raise TypeError("a list of numbers")
        for part in value:
            yield from _parts(part)
    elif isinstance(value, int | float):
        yield from [str(value)] if value == value else []
    elif value is not None:
        raise TypeError("an object" if isinstance(value, dict) else f"a {type(value).__name__}")


def writable(text: str) -> str:
    """Text that UTF-8 can encode; JSON may hold half a surrogate pair."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def identifier_of(value: object) -> str:
    """A field as an identifier: text unchanged, an integer, a whole float as the integer; empty for null and NaN.

    Raises:
        TypeError: for a list, an object or a boolean.
    """
    if isinstance(value, str):
        return writable(value)
    if isinstance(value, bool | list | tuple | dict | set | bytes):
        raise TypeError(f"a {type(value).__name__}")
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def whole_identifiers(identifiers: Sequence[str]) -> Sequence[str]:
    """``1.0`` as ``1`` where all are whole numbers: a table with missing values writes its integers as floats."""
    if all(map(WHOLE.fullmatch, identifiers)):
        return [identifier.partition(".")[0] for identifier in identifiers]
    return identifiers


def whole(text: str) -> int:
    """Parse an integer, ``1.5e9`` and ``978300760.0`` included.

    Raises:
        ValueError, OverflowError: for anything else.
    """
    try:
        return int(text)
    except ValueError:
        number = int(float(text))
        if number != float(text):
            raise
        return number


class Times:
    """Timestamps in reading order, unscaled; once one has a fraction, all of them in microseconds."""

    def __init__(self) -> None:
        self.found = array("q")
        self._factor = 1

    def append(self, text: str) -> None:
        """Add a timestamp.

        Raises:
            ValueError, OverflowError: for a value that is not a number, or does not fit in 64 bits.
        """
        try:
            self.found.append(whole(text) * self._factor)
        except ValueError:
            time = round(float(text) * MICROSECONDS)
            if self._factor == 1:
                self.found, self._factor = array("q", (earlier * MICROSECONDS for earlier in self.found)), MICROSECONDS
            self.found.append(time)
