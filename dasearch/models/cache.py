"""The cache folder."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache() -> Path:
    """``$DASEARCH_CACHE``, else ``dasearch`` in the user's cache folder."""
    named = os.environ.get("DASEARCH_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dasearch"
