"""RecFormer's folder of JSON files (Li et al., KDD 2023): only the order of a user's items is known."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dasearch.data.raw import Raw
from dasearch.data.readers.base import Entry, Row, catalogued, collect, find, open_text, require
from dasearch.data.rules import Rules
from dasearch.errors import DataError, first_line

SPLITS = ("train.json", "val.json", "test.json")  # user number -> item numbers; together a user's history
ITEM_NUMBERS, USER_NUMBERS, METADATA = "smap.json", "umap.json", "meta_data.json"
FILES = ", ".join((*SPLITS, METADATA, ITEM_NUMBERS, USER_NUMBERS))
ORIGIN = "fine-tuning data of RecFormer"


def detects(source: Path) -> bool:
    """Whether the source holds one of RecFormer's files."""
    return any(find(source, name) for name in (ITEM_NUMBERS, METADATA))


def read(source: Path, rules: Rules) -> Raw:
    """Timestamps are positions. Each file is a single JSON value and is read into memory whole."""
    paths = {name: require(source, name, (FILES, ORIGIN)) for name in (*SPLITS, METADATA, ITEM_NUMBERS, USER_NUMBERS)}
    items = catalogued(paths[METADATA], _items(paths[METADATA]))
    return collect(source.resolve().name, items, paths["train.json"], _rows(paths))


def _items(path: Path) -> Iterator[Entry]:
    for identifier, attributes in _object(path).items():
        if not isinstance(attributes, dict):
            raise DataError(f"{path}, item {identifier!r}: no object of attributes; fetch the file again")
        yield 0, identifier, attributes


def _rows(paths: dict[str, Path]) -> Iterator[Row]:
    item_names = {number: name for name, number in _numbers(paths[ITEM_NUMBERS]).items()}
    user_names = {str(number): name for name, number in _numbers(paths[USER_NUMBERS]).items()}
    splits = [(paths[name], _object(paths[name])) for name in SPLITS]
    for user in splits[0][1]:
        position = 0
        for path, split in splits:
            numbers = split.get(user, [])
            if not isinstance(numbers, list):
                raise DataError(f"{path}: user {user} has no list of item numbers; fetch the file again")
            for number in numbers:
                if not isinstance(number, int) or number not in item_names:
                    raise DataError(f"{path}: user {user} has item {number!r}, which {ITEM_NUMBERS} lacks; fetch both")
                yield 1, user_names.get(user, user), item_names[number], str(position), None
                position += 1


def _numbers(path: Path) -> dict[str, int]:
    """The number of each name."""
    numbers = _object(path)
    for name, number in numbers.items():
        if not isinstance(number, int):
            raise DataError(f"{path}: {name!r} has no integer; fetch the file again")
    return numbers


def _object(path: Path) -> dict[str, Any]:
    try:
        with open_text(path) as file:
            value = json.load(file, object_pairs_hook=_of_pairs)
    except KeyError as error:
        raise DataError(f"{path}: the key {error.args[0]!r} occurs twice; keep one") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON ({error.msg}); fetch the file again") from None
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({first_line(error)}); fetch the file again") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}, line 1: not a JSON object; fetch the file again")
    return value


def _of_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dictionary of key-value pairs.

    Raises:
        KeyError: naming a key that occurs twice.
    """
    mapping: dict[str, Any] = {}
    for key, value in pairs:
        if key in mapping:
            raise KeyError(key)
        mapping[key] = value
    return mapping
