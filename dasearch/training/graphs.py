"""Steps as CUDA graphs: where shapes come again, a step's thousands of kernels are launched at once.

The frozen layers of a small model take less time on a GPU than Python takes to launch their kernels one by one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dasearch.data import SequenceBatch
from dasearch.training.method import Drawn

STEPS_OF_ROOM = 2.2  # free memory, in steps, that a capture wants: for itself and for a step without a graph beside it
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

    Args:
        step: reads its arguments, which are on the device, and tensors that keep their place; it waits for nothing.
    """

    def __init__(self, step: Step, device: torch.device) -> None:
        self.step, self.device = step, device
        self.pool = torch.cuda.graph_pool_handle()
        self.step_bytes = 0  # of the largest step without a graph
        self.known: dict[tuple[Any, ...], Captured | None] = {}

    def run(self, batch: SequenceBatch, drawn: Drawn) -> None:
        """One step; batch and drawn are on the CPU."""
        given = [*tensors_of(batch), *tensors_of(drawn)]
        shapes = tuple(part.shape for part in given)
        captured = self.known.get(shapes)
        first = shapes not in self.known
        self.known.setdefault(shapes, None)
        if captured is None and (first or not self._room()):
            self._eager(batch, drawn)
            return
        if captured is None:
            captured = self.known[shapes] = self._capture(batch, drawn)
        captured.replay(given)

    def _room(self) -> bool:
        """Whether a step fits beside the pool once more, without a graph, after this one."""
        torch.cuda.empty_cache()  # what eager steps left is not the pool's to use
        free, _ = torch.cuda.mem_get_info(self.device)
        return free > STEPS_OF_ROOM * self.step_bytes

    def _eager(self, batch: SequenceBatch, drawn: Drawn) -> None:
        before = torch.cuda.memory_allocated(self.device)
        self.step(batch.to(self.device), drawn.to(self.device))
        self.step_bytes = max(self.step_bytes, torch.cuda.max_memory_allocated(self.device) - before)

    def _capture(self, batch: SequenceBatch, drawn: Drawn) -> Captured:
        own = batch.to(self.device), drawn.to(self.device)
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            self.step(*own)
        return Captured(graph, [*tensors_of(own[0]), *tensors_of(own[1])])
