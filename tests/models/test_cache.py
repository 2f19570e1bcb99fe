"""The location of the cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from dasearch.models.cache import default_cache


def test_location(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    monkeypatch.setenv("DASEARCH_CACHE", "/elsewhere")
    assert default_cache() == Path("/elsewhere")
    monkeypatch.delenv("DASEARCH_CACHE")
    assert default_cache() == Path("/somewhere/dasearch")
