"""Names of before, which keep working for one version."""

from __future__ import annotations

import warnings
from typing import Any


def renamed(old: str, new: str) -> Any:
    """A property for the old name of an attribute or method; it warns and gives what has the new one."""

    def get(self: object) -> Any:
        warnings.warn(f"{type(self).__name__}.{old} is called {new} now", DeprecationWarning, stacklevel=2)
        return getattr(self, new)

    return property(get)
