"""The many cases of the night are left out of every other run."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    asked = config.getoption("markexpr", "")
    skip = pytest.mark.skip(reason="python -m pytest -m nightly tests/fuzz runs it")
    for item in items:
        if item.get_closest_marker("nightly") is not None and "nightly" not in asked:
            item.add_marker(skip)
