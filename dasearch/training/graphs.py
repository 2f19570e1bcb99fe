"""Steps as CUDA graphs: where shapes come again, a step's thousands of kernels are launched at once.

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

SPARE = 1.1  # of the memory that a step is expected to want, which goes by the largest steps so far
SHARE_OF_LIGHT = 0.15  # what a step wants that computes activations again, of one that keeps them
SHARE_OF_SMALLER = 0.25  # what a capture wants beyond the memory of a larger one before it
Step = Callable[[SequenceBatch, Drawn], None]


def tensors_of(part: Any) -> list[Tensor]:
    """Every tensor of a batch or of what was drawn for it, in the order of their fields."""
    values = [getattr(part, field.name) for field in dataclasses.fields(part)]
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif value is not None:
            found += tensors_of(value)
    return found


@dataclass(frozen=True)
class Captured:
    """A graph and the tensors that it reads."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]

    def replay(self, given: list[Tensor]) -> None:
        for own, new in zip(self.inputs, given, strict=True):
            own.copy_(new.pin_memory(), non_blocking=True)
        self.graph.replay()


class StepGraphs:
    """Runs steps; from the second of the same shapes on as a graph, all graphs in one pool of memory.

    A pool keeps the activations of its largest graph, so that there may be no room for a step beside it. A step without a
    graph is then a light one, and a larger graph takes the place of the others, which are captured again when they come.
    Steps are given anew with each run and not held: graphs go, with their memory, when who trains goes, and no later.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool: Any = None
        self.largest = 0  # numbers of the largest graph of the pool
        self.bytes_a_number = 0.0  # of a batch, that a step without a graph took
        self.known: dict[tuple[Any, ...], Captured | None] = {}

    def run(self, batch: SequenceBatch, drawn: Drawn, *, step: Step, light: Step) -> None:
        """One step of a batch that is on the CPU.

        Args:
            step: reads its arguments, which are on the device, and tensors that keep their place; it waits for nothing.
            light: the same in a little of the memory and more time.
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
        """Whether a graph of so many numbers fits with a light step beside it, once smaller graphs are given up."""
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
        """Bytes of a step of so many numbers."""
        return SPARE * self.bytes_a_number * numbers

    def _free(self) -> int:
        torch.cuda.empty_cache()  # what other steps left is not the pool's to use
        return torch.cuda.mem_get_info(self.device)[0]

    def _launch(self, batch: SequenceBatch, drawn: Drawn, numbers: int, *, step: Step, light: Step) -> None:
        """A step without a graph."""
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
    """Without Python's cyclic garbage collection, which may end a graph: CUDA then breaks the capture that is under way."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
