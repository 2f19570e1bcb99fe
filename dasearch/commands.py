"""Command lines that are printed for a person to paste: quoted by one rule, with the options that find the same studies."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import NamedTuple

from dasearch.errors import without_passwords

PROGRAM = "dasearch"
OUTPUT = "runs"  # without --output
ONCE = ("--no-train",)  # what holds a run back; to go on is to leave it out


class Place(NamedTuple):
    """The options by which a command finds the studies that another one wrote; as of `open_store`."""

    output: str = OUTPUT
    storage: str | None = None

    @property
    def options(self) -> list[str]:
        """Of commands that read studies; a password is not shown."""
        output = [] if self.output == OUTPUT else ["--output", self.output]
        return output if self.storage is None else [*output, "--storage", without_passwords(self.storage)]


def command(*words: object) -> str:
    """``dasearch`` with its arguments, as a shell reads them."""
    return shlex.join([PROGRAM, *map(str, words)])


def resumed(arguments: Sequence[str]) -> str:
    """The command line that goes on to the end with what one of these arguments did."""
    return command(*(without_passwords(word) for word in arguments if word not in ONCE))
