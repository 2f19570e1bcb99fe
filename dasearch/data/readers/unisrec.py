"""UniSRec's folder (Hou et al., KDD 2022): histories with their next item, and one text per item."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

from dasearch.data.dataset import TITLE
from dasearch.data.raw import Raw
from dasearch.data.readers.base import (
    Entry,
    Row,
    by_tab,
    catalogued,
    cells,
    collect,
    find,
    lines,
    named_cells,
    names_in,
    only_name,
    require,
)
from dasearch.data.rules import Rules

TEST, TEXT = ".test.inter", ".text"
OTHERS = (".train.inter", ".valid.inter")  # shorter histories of the same users, which the test lines repeat
USER_NUMBERS, ITEM_NUMBERS = ".user2index", ".item2index"
COLUMNS = ("user_id", "item_id_list", "item_id")
FILES = "NAME.train.inter, NAME.valid.inter, NAME.test.inter, NAME.text, and NAME.user2index, NAME.item2index if any"
ORIGIN = "downstream data sets of UniSRec"
NO_TEXT = "."  # what its preprocessing writes for an item without text


def detects(source: Path) -> bool:
    """Whether the source holds UniSRec's files."""
    return bool(_names(source))


def _names(source: Path) -> list[str]:
    return [name.removesuffix(TEST) for name in names_in(source) if name.endswith(TEST)]


def read(source: Path, rules: Rules) -> Raw:
    """A user's sequence is the longest history of the test file and its target; positions are timestamps.

    UniSRec truncates histories to 50 items, so older items of longer ones are not in these files.
    """
    name = only_name(source, _names(source))
    test, *_ = (require(source, name + suffix, (FILES, ORIGIN)) for suffix in (TEST, *OTHERS))
    texts = require(source, name + TEXT, (FILES, ORIGIN))
    users, items = (_identifiers(source, name + suffix) for suffix in (USER_NUMBERS, ITEM_NUMBERS))
    return collect(name, catalogued(texts, _items(texts)), test, _rows(test, users, items))


def _identifiers(source: Path, name: str) -> dict[str, str]:
    """The identifier of each number, where the folder has a mapping."""
    path = find(source, name)
    return {number: identifier for _, (identifier, number) in cells(path, by_tab, 2)} if path else {}


def _rows(path: Path, users: dict[str, str], items: dict[str, str]) -> Iterator[Row]:
    longest: dict[str, tuple[int, str]] = {}  # the line of a user's longest history, items as they are written
    for line, values in named_cells(path, by_tab, COLUMNS):
        user, history, target = cast("list[str]", values)
        sequence = f"{history} {target}"
        if len(sequence.split()) > len(longest.get(user, (0, ""))[1].split()):
            longest[user] = (line, sequence)
    for user, (line, sequence) in longest.items():
        for position, item in enumerate(sequence.split()):
            yield line, users.get(user, user), items.get(item, item), str(position), None


def _items(path: Path) -> Iterator[Entry]:
    body = lines(path)
    next(body, None)
    for number, line in body:
        identifier, _, text = line.partition("\t")
        yield number, identifier, {TITLE: "" if text.strip() == NO_TEXT else text}
