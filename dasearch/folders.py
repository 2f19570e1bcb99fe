"""Folders that are there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dasearch.errors import WrongUse


def require_free(out: Path, error: type[WrongUse]) -> None:
    """Refuse a place that holds something, before any work is done for it."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise error(f"{out} exists and is not an empty folder; nothing was written: name another one")


@contextmanager
def whole_folder(out: Path, error: type[WrongUse]) -> Iterator[Path]:
    """A folder beside ``out`` that takes its name when the block ends well.

    Raises:
        WrongUse: as ``error``, if ``out`` holds something or cannot be written; ``out`` is then as it was.
    """
    require_free(out, error)
    out = out.absolute()
    unfinished = out.with_name(f".{out.name}.unfinished-{os.getpid()}")
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        unfinished.replace(out)
    except OSError as problem:
        raise error(f"{out} cannot be written ({problem.strerror}); choose another place") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
