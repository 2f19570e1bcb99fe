"""What `dasearch export` says in the terminal."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.filesize import decimal


class Titled(Protocol):
    """A form with its one-line title."""

    @property
    def title(self) -> str: ...


def show_formats(console: Console, formats: Mapping[str, Titled]) -> None:
    """A line a form."""
    width = max(map(len, formats))
    for name, one in formats.items():
        console.print(f"{name:<{width}}  {one.title}", soft_wrap=True, markup=False)


def show_written(console: Console, folder: Path, opened: str) -> None:
    """The files of a new folder with their sizes, and how it is opened."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    width = max(len(str(file)) for file in files)
    for file in files:
        console.print(f"{file!s:<{width}}  {decimal(file.stat().st_size):>9}", soft_wrap=True, markup=False)
    console.print(f"next: {opened.format(out=shlex.quote(str(folder)))}", soft_wrap=True, markup=False)
