"""Data-parallel training with torchrun, one process (rank) per GPU.

Every rank holds all that is trained, which is small, and the frozen model: whole or, where it does not fit on one GPU, a part of
each layer (`dasearch.training.sharding`). The ranks share the micro-batches of each optimiser step and the batches of the
validation. Gradients are gathered and summed in the order of the micro-batches, which all-reduce would not preserve, so that
training with N ranks gives the same result as one process, bit for bit where kernels are deterministic. torch is imported only
inside functions, because the command line needs `started` before it.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from dasearch.errors import RankError, StudyError, WrongUse, first_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")
SIZE, RANK = "WORLD_SIZE", "RANK"  # set by torchrun
SIZE_HERE, RANK_HERE = "LOCAL_WORLD_SIZE", "LOCAL_RANK"  # within one machine
FIRST = 0  # the rank that writes files


@dataclass(frozen=True)
class Peers:
    """The processes of one training and this process's rank. Its collective methods must be called by all at the same point.

    Attributes:
        size: number of processes.
        rank: index of this process.
        here: index of this process on its machine.
    """

    rank: int = FIRST
    size: int = 1
    here: int = FIRST

    @property
    def first(self) -> bool:
        """Whether this process writes files."""
        return self.rank == FIRST

    @property
    def speaks(self) -> bool:
        """Whether this process reports errors: one per machine."""
        return self.here == FIRST

    def own(self, parts: Iterable[T]) -> Iterator[T]:
        """The parts assigned to this process: every ``size``-th one."""
        return itertools.islice(parts, self.rank, None, self.size)

    def in_step(
        self, parts: Iterable[T], kind: Callable[[T], Hashable] = lambda part: None
    ) -> Iterator[tuple[T, bool]]:
        """The parts of `own` with True, and between them others' parts with False, to be computed for nothing.

        All processes thereby compute equally many parts, and parts of the same ``kind`` at a time, whose computations call the
        same collective operations.
        """
        parts = iter(parts)
        while turn := list(itertools.islice(parts, self.size)):
            kinds = [kind(part) for part in turn]
            for current in dict.fromkeys(kinds):
                own = self.rank < len(turn) and kinds[self.rank] == current
                yield turn[self.rank if own else kinds.index(current)], own

    def computed(
        self, parts: Iterable[T], kind: Callable[[T], Hashable] = lambda part: None, *, together: bool
    ) -> Iterator[tuple[T, bool]]:
        """The parts of `own` with True; ``together``: as `in_step`, for processes that share the frozen layers."""
        return self.in_step(parts, kind) if together else ((part, True) for part in self.own(parts))

    def total(self, own: Iterable[Tensor], count: int, like: Tensor) -> Tensor:
        """The sum of all ``count`` parts in order, given this process's `own`; each has the shape of ``like``."""
        return functools.reduce(_plus, own if self.size == 1 else self.in_order(list(own), count, like))

    def in_order(self, own: Sequence[Tensor], count: int, like: Tensor) -> list[Tensor]:
        """All ``count`` parts in order, given this process's `own`; each has the shape of ``like``. All are in memory at once."""
        import torch

        turns = -(-count // self.size)
        mine = torch.stack([*own, *[torch.zeros_like(like)] * (turns - len(own))])  # (turns, ...)
        gathered = [torch.empty_like(mine) for _ in range(self.size)]
        collective(lambda: torch.distributed.all_gather(gathered, mine))
        return [gathered[place % self.size][place // self.size] for place in range(count)]

    def fill(self, *tensors: Tensor) -> None:
        """Fill tensors, in place, with the entries of all processes, where each process has zeros outside its own."""
        import torch

        for tensor in tensors if self.size > 1 else ():
            collective(functools.partial(torch.distributed.all_reduce, tensor))

    def all_say(self, yes: bool, device: torch.device) -> bool:
        """Whether every process says yes."""
        import torch

        no = torch.tensor(int(not yes), device=device)
        self.fill(no)
        return not no

    def follow(self, tensors: Iterable[Tensor]) -> None:
        """Broadcast tensors from the first process, since preparation on different GPUs may differ in the last digits."""
        import torch

        with torch.inference_mode():
            for tensor in tensors if self.size > 1 else ():
                first = tensor.detach().clone(memory_format=torch.contiguous_format)
                collective(functools.partial(torch.distributed.broadcast, first, src=FIRST))
                tensor.copy_(first)

    def require_same_epochs(self, done: int, device: torch.device) -> None:
        """Check that all processes resume from the same epoch.

        Raises:
            RankError: if their checkpoints have different numbers of epochs.
        """
        import torch

        if self.size > 1:
            mine = torch.tensor(done, device=device)
            epochs = [int(other) for other in self.in_order([mine], self.size, mine)]
            if len(set(epochs)) > 1:
                raise RankError(
                    f"the ranks found checkpoints after {', '.join(map(str, epochs))} epochs; give --out on a disk that all "
                    "machines share"
                )

    def require_shares(self, key: str, accumulate: int) -> None:
        """Check that a step's micro-batches can be shared evenly.

        Raises:
            StudyError: naming the setting to change.
        """
        if accumulate % self.size:
            raise StudyError(
                f"{self.size} ranks share the {accumulate} micro-batches of a step, which must be a multiple of {self.size}; "
                f"use --set {key}={self.size * -(-accumulate // self.size)} (a step reads that times batch_size rows)"
            )


ALONE = Peers()


def _plus(first: Tensor, second: Tensor) -> Tensor:
    return first + second


def started() -> Peers:
    """The processes as described by torchrun's environment variables."""
    size = int(os.environ.get(SIZE, "1"))
    if size == 1 or RANK not in os.environ:
        return ALONE
    return Peers(int(os.environ[RANK]), size, int(os.environ.get(RANK_HERE, FIRST)))


def require_alone(command: str) -> None:
    """Reject torchrun for a command that every rank would execute in full.

    Raises:
        WrongUse: if torchrun started more than one process.
    """
    if started().size > 1:
        raise WrongUse(f"torchrun shares `dasearch train` among GPUs; start `dasearch {command}` without it")


@contextmanager
def joined(device: torch.device) -> Iterator[Peers]:
    """Connect the processes of this training: over NCCL on GPUs, gloo on CPUs; a single process without torchrun.

    Raises:
        RankError: if they cannot be connected.
        WrongUse: if a machine has fewer GPUs than ranks, or the study names a particular GPU.
    """
    peers = started()
    if peers.size == 1:
        yield peers
        return
    import torch

    if device.type == "cuda":
        _take_gpu(device, peers.here)
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        torch.distributed.init_process_group(backend)
    except RuntimeError as error:
        raise RankError(
            f"the ranks could not be connected ({first_line(error)}); check torchrun's --nnodes and --rdzv-endpoint"
        ) from error
    yield peers
    torch.distributed.destroy_process_group()  # skipped after an error, when it would wait for the others


def _take_gpu(device: torch.device, here: int) -> None:
    """Assign each process its own GPU for ``cuda``."""
    import torch

    ranks, there = int(os.environ.get(SIZE_HERE, "1")), torch.cuda.device_count()
    if device.index is not None:
        raise WrongUse(f"device is {device} and each rank needs a GPU of its own; use --set device=cuda")
    if ranks > there:
        raise WrongUse(
            f"torchrun started {ranks} ranks and this machine has {there} GPUs; use --nproc-per-node {there}"
        )
    torch.cuda.set_device(here)


def collective(call: Callable[[], T]) -> T:
    """The result of a collective operation.

    Raises:
        RankError: if another process has ended.
    """
    import torch

    try:
        return call()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RankError(
            "another rank of this training ended; run the same command again to resume after the last epoch"
        ) from error
