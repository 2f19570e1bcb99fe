"""Training steps as CUDA graphs: for repeating shapes, a step's thousands of kernels are launched at once.

The frozen layers of a small model take less time on a GPU than Python takes to launch their kernels one by one.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dasearch.data import SequenceBatch
from dasearch.training.method import Drawn

SPARE = 1.1  # safety factor of a step's expected memory, which is extrapolated from the largest steps so far
SHARE_OF_LIGHT = 0.15  # memory of a step with recomputed activations, as a share of one that keeps them
SHARE_OF_SMALLER = 0.25  # additional memory of a capture after a larger one
Step = Callable[[SequenceBatch, Drawn], None]


def tensors_of(part: Any) -> list[Tensor]:
    """Every tensor of a batch or of its sampled inputs, in the order of their fields."""
    values = [getattr(part, field.name) for field in dataclasses.fields(part)]
    tensors: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif value is not None:
            tensors += tensors_of(value)
    return tensors


@dataclass(frozen=True)
class Captured:
    """A captured graph and the tensors that it reads."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]

    def replay(self, given: list[Tensor]) -> None:
        """Copy ``given`` into the graph's input tensors and launch the graph."""
        for own, new in zip(self.inputs, given, strict=True):
            own.copy_(new.pin_memory(), non_blocking=True)
        self.graph.replay()


class StepGraphs:
    """Runs training steps; from the second step of the same shapes as a graph, with one memory pool for all graphs.

    A pool keeps the activations of its largest graph, which may leave no room for an eager step. Steps without a graph then
    recompute activations ("light"), and a larger graph replaces the others, which are recaptured when needed.
    Step functions are passed to each run and not stored: graphs and their memory are released with their owner.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool: Any = None
        self.largest = 0  # input numbers of the largest graph of the pool
        self.bytes_a_number = 0.0  # memory per input number of a step without a graph
        self.known: dict[tuple[Any, ...], Captured | None] = {}

    def run(self, batch: SequenceBatch, drawn: Drawn, *, step: Step, light: Step) -> None:
        """Run one step on a batch in CPU memory.

        Args:
            batch: the rows of the step.
            drawn: the batch's sampled inputs.
            step: the step function; it reads its arguments, which are on the device, and tensors with fixed addresses, and does
                not synchronise.
            light: the same step with less memory and more time.
        """
        given = [*tensors_of(batch), *tensors_of(drawn)]
        numbers = sum(part.numel() for part in given if not part.is_floating_point())
        shapes = tuple(part.shape for part in given)
        captured = self.known.get(shapes)
        if captured is None:
            first = shapes not in self.known
            self.known.setdefault(shapes)
            if first or not self._make_room(numbers):
                self._launch(batch, drawn, numbers, step=step, light=light)
                return
            captured = self.known[shapes] = self._capture(batch, drawn, step)
            self.largest = max(self.largest, numbers)
        captured.replay(given)

    def _make_room(self, numbers: int) -> bool:
        """Whether a graph with this many input numbers fits beside a light step, after releasing smaller graphs."""
        if self._has_room(numbers):
            return True
        if numbers > self.largest > 0:
            self.known = dict.fromkeys(self.known)
            self.pool, self.largest = None, 0
            return self._has_room(numbers)
        return False

    def _has_room(self, numbers: int) -> bool:
        step = self._wanted(numbers)
        return self._free() > step * (SHARE_OF_LIGHT + (1 if numbers > self.largest else SHARE_OF_SMALLER))

    def _wanted(self, numbers: int) -> float:
        """Bytes that a step with this many input numbers needs."""
        return SPARE * self.bytes_a_number * numbers

    def _free(self) -> int:
        torch.cuda.empty_cache()  # memory cached by other steps is not available to the pool
        return torch.cuda.mem_get_info(self.device)[0]

    def _launch(self, batch: SequenceBatch, drawn: Drawn, numbers: int, *, step: Step, light: Step) -> None:
        """Run a step without a graph."""
        on_device = batch.to(self.device), drawn.to(self.device)
        if self._free() < self._wanted(numbers):
            light(*on_device)
            return
        before, peak = torch.cuda.memory_allocated(self.device), torch.cuda.max_memory_allocated(self.device)
        step(*on_device)
        if (reached := torch.cuda.max_memory_allocated(self.device)) > peak:
            self.bytes_a_number = max(self.bytes_a_number, (reached - before) / numbers)

    def _capture(self, batch: SequenceBatch, drawn: Drawn, step: Step) -> Captured:
        own = batch.to(self.device), drawn.to(self.device)
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        with _no_collection(), torch.cuda.graph(graph, pool=self.pool):
            step(*own)
        return Captured(graph, [*tensors_of(own[0]), *tensors_of(own[1])])


@contextmanager
def _no_collection() -> Iterator[None]:
    """Disable cyclic garbage collection, which may release a graph and thereby invalidate a capture in progress."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
