"""The folder of what is made once and read many times, and how a part of it is written."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def default_cache() -> Path:
    """``$DASEARCH_CACHE``, else ``dasearch`` in the user's cache folder."""
    named = os.environ.get("DASEARCH_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dasearch"


@contextmanager
def written_beside(folder: Path) -> Iterator[Path]:
    """A folder to fill, renamed to ``folder`` at the end, so that an interruption leaves none.

    Where another process was faster, its folder stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
    try:
        yield unfinished
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
