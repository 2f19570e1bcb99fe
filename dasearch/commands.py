"""Command lines to paste: consistently quoted, with the options that locate the same studies."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import NamedTuple

from dasearch.errors import without_passwords

PROGRAM = "dasearch"
OUTPUT = "runs"  # without --output
ONCE = ("--no-train",)  # flags that stop a run early, removed to resume it


class Place(NamedTuple):
    """The options by which a command locates the studies that another one wrote; as in `open_store`."""

    output: str = OUTPUT
    storage: str | None = None

    @property
    def options(self) -> list[str]:
        """Options of commands that read studies; passwords are hidden."""
        output = [] if self.output == OUTPUT else ["--output", self.output]
        return output if self.storage is None else [*output, "--storage", without_passwords(self.storage)]


def command(*words: object) -> str:
    """``dasearch`` with its arguments, quoted for a shell."""
    return shlex.join([PROGRAM, *map(str, words)])


def resumed(arguments: Sequence[str]) -> str:
    """The command line that resumes and finishes what these arguments began."""
    return command(*(without_passwords(word) for word in arguments if word not in ONCE))
