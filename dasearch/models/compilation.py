"""Layers compiled by torch.compile: one compiled function for all layers of a kind and all row shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

MOST_KINDS = 64  # compiled variants: training or not, one candidate or several, with or without a key
_bodies: dict[Callable[..., Any], Callable[..., Any]] = {}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, compiled once per process; modules are passed as arguments, so that layers share the compiled code."""
    if function not in _bodies:
        settings: Any = torch._dynamo.config
        settings.recompile_limit = max(settings.recompile_limit, MOST_KINDS)
        _bodies[function] = torch.compile(function, dynamic=True)
    return _bodies[function]
