"""Readers of public data formats; `load_dataset` selects one by name or by the files present."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dasearch.data.assembly import assemble
from dasearch.data.dataset import Dataset
from dasearch.data.raw import Raw
from dasearch.data.readers import (
    amazon_2018,
    amazon_2023,
    movielens,
    plain,
    recbole,
    recformer,
    table,
    unisrec,
)
from dasearch.data.readers.base import Reader
from dasearch.data.readers.complete_journey import read_complete_journey
from dasearch.data.readers.plain import read_folder
from dasearch.data.rules import Rules
from dasearch.errors import DataError, suggestion
from dasearch.folders import place_of

__all__ = [
    "DATASETS",
    "READERS",
    "Raw",
    "Reader",
    "load_dataset",
    "read_complete_journey",
    "read_folder",
    "read_source",
]

DATASETS: dict[str, Callable[[int], Raw]] = {"complete-journey": read_complete_journey}
TABLE = "table"  # matches any file, so it is tried last
READERS: dict[str, Reader] = {
    "plain": plain,
    "amazon-2018": amazon_2018,
    "amazon-2023": amazon_2023,
    "movielens": movielens,
    "recbole": recbole,
    "recformer": recformer,
    "unisrec": unisrec,
    TABLE: table,
}


def load_dataset(source: str | Path, rules: Rules | None = None, **changes: Any) -> Dataset:
    """A data set by name (``complete-journey``), folder or file, in any format of `READERS`.

    ``load_dataset(folder, min_item_interactions=4)`` is ``load_dataset(folder, Rules(min_item_interactions=4))``.

    Raises:
        DataError: naming file and line, where something cannot be read or nothing is left.
    """
    rules = dataclasses.replace(rules or Rules(), **changes)
    return assemble(read_source(source, rules), rules)


def read_source(source: str | Path, rules: Rules) -> Raw:
    """Everything a source holds, before ties are resolved and filters applied.

    Raises:
        DataError: naming file and line, where something cannot be read.
    """
    if rules.format is None and str(source) in DATASETS:
        return DATASETS[str(source)](rules.seed)
    path = place_of(source, DataError)
    if not path.exists():
        raise DataError(_absent(str(source), rules.format))
    return READERS[format_of(path, rules)].read(path, rules)


def _absent(source: str, form: str | None) -> str:
    if form in READERS:
        files, origin = READERS[form].FILES, READERS[form].ORIGIN
        return f"there is no data set or folder {source!r}; {form} is {files} (from: {origin}): correct data.source"
    hint = suggestion(source, list(DATASETS)).removeprefix("; ") or f"known names: {', '.join(DATASETS)}."
    return (
        f"there is no data set or folder {source!r}; {hint} A folder holds {plain.INTERACTIONS} and {plain.ITEMS}, "
        "or what `dasearch data formats` lists"
    )


def format_of(source: Path, rules: Rules) -> str:
    """The name of a folder's or file's format, from the rules or detected from its files.

    Raises:
        DataError: for an unknown name, a format other than the one named, several formats, or none.
    """
    if rules.format is not None and rules.format not in READERS:
        raise DataError(
            f"data.format is {rules.format!r}{suggestion(rules.format, list(READERS))}; choose {', '.join(READERS)}"
        )
    if (rules.columns or rules.items) and rules.format not in (None, TABLE):
        raise DataError(f"data.columns and data.items apply to tables only; remove them, or set data.format={TABLE}")
    formats = [TABLE] if rules.columns or rules.items else _detected(source)
    if rules.format is not None:
        if len(formats) == 1 and rules.format not in (*formats, TABLE):
            raise DataError(f"{source} is in the format {formats[0]}, not {rules.format}; set data.format={formats[0]}")
        return rules.format
    if len(formats) > 1:
        raise DataError(f"{source} could be {' or '.join(formats)}; choose one with data.format")
    if not formats:
        raise DataError(
            f"{source} is in no known format: it lacks {plain.ITEMS} and {plain.INTERACTIONS}, and what "
            "`dasearch data formats` lists; see there what a folder should contain, or name a table's own file"
        )
    return formats[0]


def _detected(source: Path) -> list[str]:
    named = [name for name, reader in READERS.items() if name != TABLE and reader.detects(source)]
    return named or ([TABLE] if table.detects(source) else [])
