"""Reading of YAML files, with one-sentence errors for whatever the library raises."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from dasearch.errors import WrongUse

# of yaml.safe_load: ValueError for 2020-13-45, LookupError and AttributeError for `!!int ""` and `!!timestamp x`
UNREADABLE = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
SHOWN = 300  # characters of a reason
FLOAT = "tag:yaml.org,2002:float"
EXPONENT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")


class Reader(yaml.SafeLoader):
    """YAML 1.1 with the numbers of 1.2, sec. 10.3.2: ``1e-3``, without point or sign, is a number as well."""


class Writer(yaml.SafeDumper):
    """Quotes texts that `Reader` would read as numbers."""


for end in (Reader, Writer):
    end.add_implicit_resolver(FLOAT, EXPONENT, list("-+.0123456789"))


def read_yaml(path: Path, error: type[WrongUse]) -> Any:
    """The value of a file.

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
        ValueError: for invalid YAML, too deep nesting, or recursion; its message is one line.
    """
    try:
        value = yaml.load(text, Reader)
        written = json.dumps(value, ensure_ascii=False, default=str, skipkeys=True)  # rejects an anchor inside itself
        written.encode()  # and half a surrogate pair, which UTF-8 cannot encode
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UNREADABLE as problem:
        raise ValueError(" ".join(str(problem).split())[:SHOWN] or type(problem).__name__) from None
    return value


def written_yaml(value: Any) -> str:
    """The text of a value, which `parse_yaml` reads back."""
    text: str = yaml.dump(value, Dumper=Writer, sort_keys=False, allow_unicode=True)
    return text
