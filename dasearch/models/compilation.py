"""Layers compiled by torch.compile: one body for all layers of a kind, whatever their rows' shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

MOST_KINDS = 64  # of calls with a body of their own: training or not, one candidate or several, with a key or without
_bodies: dict[Callable[..., Any], Callable[..., Any]] = {}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, compiled once a process; its modules are arguments, so that layers share what is compiled."""
    if function not in _bodies:
        settings: Any = torch._dynamo.config
        settings.recompile_limit = max(settings.recompile_limit, MOST_KINDS)
        _bodies[function] = torch.compile(function, dynamic=True)
    return _bodies[function]
