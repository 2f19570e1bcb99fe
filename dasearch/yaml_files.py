"""YAML that people write: read whole, or refused in one sentence, whatever the library raises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from dasearch.errors import WrongUse

# of yaml.safe_load: ValueError for 2020-13-45, LookupError and AttributeError for `!!int ""` and `!!timestamp x`
UNREADABLE = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
SHOWN = 300  # letters of a reason


def read_yaml(path: Path, error: type[WrongUse]) -> Any:
    """The value that a file holds.

    Raises:
        WrongUse: as ``error``, for a file that cannot be read or is not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as problem:
        raise error(f"{path} cannot be read ({problem.strerror}); name another file") from None
    except UnicodeDecodeError as problem:
        raise error(f"{path} is not YAML: {problem}") from None
    try:
        return parse_yaml(text)
    except ValueError as problem:
        raise error(f"{path} is not YAML: {problem}") from None


def parse_yaml(text: str) -> Any:
    """The value of a text.

    Raises:
        ValueError: for what is not YAML, nests too deep, or holds itself; it says so in one line.
    """
    try:
        found = yaml.safe_load(text)
        written = json.dumps(found, ensure_ascii=False, default=str, skipkeys=True)  # refuses an anchor inside itself
        written.encode()  # and half a surrogate pair, which no file of ours could hold
    except RecursionError:
        raise ValueError("it nests too deep") from None
    except UNREADABLE as problem:
        raise ValueError(" ".join(str(problem).split())[:SHOWN] or type(problem).__name__) from None
    return found
