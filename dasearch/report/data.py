"""Data sets and data formats in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from rich.console import Console

from dasearch.data import Statistics
from dasearch.data.readers import Reader

NO_NUMBERS = ("identity", "remarks")


def show_statistics(console: Console, found: Statistics) -> None:
    """Print one statistic per line, the consistency check of table 1, and what was dropped from the source."""
    numbers = {name.replace("_", " "): value for name, value in asdict(found).items() if name not in NO_NUMBERS}
    width = max(map(len, numbers))
    for name, value in numbers.items():
        shown = f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if isinstance(value, float) else str(value)
        console.print(f"{name:<{width}}  {shown}", highlight=False, markup=False)
    each = found.train_interactions / found.users
    verdict = "holds" if found.identity else "does not hold: the split lost or repeated interactions"
    console.print(
        f"{'check':<{width}}  train interactions / users + 2 = mean length, as in DARec's table 1: "
        f"{each:.2f} + 2 = {found.mean_length:.2f}, {verdict}",
        soft_wrap=True,
        markup=False,
    )
    for remark in found.remarks:
        console.print(f"{'note':<{width}}  {remark}", soft_wrap=True, markup=False, highlight=False)


def show_formats(console: Console, readers: Mapping[str, Reader], names: Mapping[str, object]) -> None:
    """Print each format with its files and their origin, then the data sets known by name."""
    width = max(map(len, readers))
    for name, reader in readers.items():
        console.print(f"{name:<{width}}  {reader.FILES}", soft_wrap=True, markup=False)
        console.print(f"{'':<{width}}  from: {reader.ORIGIN}", soft_wrap=True, markup=False)
    console.print(f"Any file may be gzipped (.gz). Known by name, without files: {', '.join(names)}.", soft_wrap=True)
