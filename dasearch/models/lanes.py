"""Rows of one forward pass split over threads of a CPU, forwards and backwards.

Small models are a sequence of small operations, which gain nothing from threads inside each; rows do not meet before the
loss, so that every thread can take some of them through all layers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")
LaneFunction = Callable[..., Tensor]  # a slice of the rows, and the tensors' parts of it -> their states
FEWEST_ROWS = 4  # of a lane: less is not worth a thread


class RowLanes:
    """A pool of threads that take rows through a model.

    Args:
        count: threads; each computes with one.
        parameters: trained ones that the model reads.
    """

    def __init__(self, count: int, parameters: Sequence[Tensor]) -> None:
        self.count, self.parameters = count, list(parameters)
        self.pool = ThreadPoolExecutor(count)

    def run(self, function: LaneFunction, rows: int, tensors: Sequence[Tensor]) -> Tensor:
        """``function(slice(0, rows), *tensors)``, computed by parts and put together along the first axis.

        Args:
            function: depends on the trained parameters and on ``tensors`` alone where gradients are wanted.
            tensors: with the rows along the first axis.
        """
        count = min(self.count, rows // FEWEST_ROWS)
        if count < 2 or not torch.is_grad_enabled():
            return function(slice(0, rows), *tensors)
        return _Lanes.apply(self, function, _slices(rows, count), len(tensors), *tensors, *self.parameters)  # type: ignore[no-any-return, no-untyped-call]

    def each(self, function: Callable[[T], R], parts: Iterable[T]) -> list[R]:
        """The function of each part, several at a time, in the parts' order."""
        return list(self.pool.map(function, parts))

    def close(self) -> None:
        self.pool.shutdown()


def _slices(rows: int, count: int) -> list[slice]:
    edges = [rows * k // count for k in range(count + 1)]
    return [slice(low, high) for low, high in itertools.pairwise(edges)]


class _Lanes(torch.autograd.Function):
    """Each lane keeps its own graph between forward and backward; gradients of parameters are added in the lanes' order."""

    @staticmethod
    def forward(
        ctx: Any, lanes: RowLanes, function: LaneFunction, parts: list[slice], n_tensors: int, *inputs: Tensor
    ) -> Tensor:
        tensors, parameters = inputs[:n_tensors], inputs[n_tensors:]

        def forwards(part: slice) -> tuple[list[Tensor], Tensor]:
            with torch.enable_grad():
                own = [tensor[part].detach().requires_grad_(tensor.requires_grad) for tensor in tensors]
                return own, function(part, *own)

        graphs = list(lanes.pool.map(forwards, parts))
        ctx.lanes, ctx.graphs, ctx.parts, ctx.parameters = lanes, graphs, parts, parameters
        return torch.cat([out.detach() for _, out in graphs])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        def backwards(line: tuple[slice, tuple[list[Tensor], Tensor]]) -> tuple[Tensor | None, ...]:
            part, (own, out) = line
            if not out.requires_grad:  # of the frozen model alone
                return (None,) * (len(own) + len(ctx.parameters))
            learning = [tensor for tensor in own if tensor.requires_grad]
            found = torch.autograd.grad(out, [*learning, *ctx.parameters], gradient[part], allow_unused=True)
            of_tensors = iter(found[: len(learning)])
            return *(next(of_tensors) if t.requires_grad else None for t in own), *found[len(learning) :]

        by_lane = list(ctx.lanes.pool.map(backwards, zip(ctx.parts, ctx.graphs, strict=True)))
        n = len(ctx.graphs[0][0])
        of_tensors = [
            _joined(parts, ctx.graphs, k) for k, parts in enumerate(zip(*(f[:n] for f in by_lane), strict=True))
        ]
        of_parameters = [_added(parts) for parts in zip(*(found[n:] for found in by_lane), strict=True)]
        return None, None, None, None, *of_tensors, *of_parameters


def _joined(parts: Sequence[Tensor | None], graphs: Sequence[tuple[list[Tensor], Tensor]], k: int) -> Tensor | None:
    """The gradient of the k-th tensor from those of its parts."""
    if all(part is None for part in parts):
        return None
    filled = [torch.zeros_like(own[k]) if part is None else part for part, (own, _) in zip(parts, graphs, strict=True)]
    return torch.cat(filled)


def _added(parts: Sequence[Tensor | None]) -> Tensor | None:
    total: Tensor | None = None
    for part in parts:
        if part is not None:
            total = part if total is None else total + part
    return total
