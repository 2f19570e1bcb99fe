"""Output of `dasearch export` in the terminal."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.filesize import decimal


class Titled(Protocol):
    """An export format with a title."""

    @property
    def title(self) -> str:
        """What the format contains, in one line."""


def show_formats(console: Console, formats: Mapping[str, Titled]) -> None:
    """Print one line per format."""
    width = max(map(len, formats))
    for name, one in formats.items():
        console.print(f"{name:<{width}}  {one.title}", soft_wrap=True, markup=False)


def show_written(console: Console, folder: Path, opened: str) -> None:
    """Print the files of a new folder with their sizes, and how to open it."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    width = max(len(str(file)) for file in files)
    for file in files:
        console.print(f"{file!s:<{width}}  {decimal(file.stat().st_size):>9}", soft_wrap=True, markup=False)
    console.print(f"next: {opened.format(out=shlex.quote(str(folder)))}", soft_wrap=True, markup=False)
