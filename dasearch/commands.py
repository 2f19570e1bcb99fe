"""Command lines to paste: consistently quoted, with the options that locate the same studies."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from dasearch.errors import without_passwords

PROGRAM = "dasearch"
OUTPUT = "runs"  # without --output


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


def resuming(name: str, place: Place, workers: Mapping[str, object], trackers: Iterable[str]) -> str:
    """The command line that resumes a study; worker options without a value are left out."""
    crew = [word for option, value in workers.items() if value for word in (option, without_passwords(str(value)))]
    tracked = [word for tracker in trackers for word in ("--track", tracker)]
    return command("resume", name, *place.options, *crew, *tracked)
