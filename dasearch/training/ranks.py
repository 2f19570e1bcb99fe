"""One training by several processes, a GPU each, that torchrun started.

Every rank holds the whole model: data parallelism, and no FSDP, for the frozen models here fit on one card and what is
trained is small. The ranks take turns at the micro-batches of each optimiser step and at the batches of the validation.
Gradients are gathered and added in the order of the micro-batches, which all-reduce would not keep, so that a training by
N ranks comes out as one process's to the last bit where their kernels are deterministic. Nothing here imports torch before
it must: the command line asks who speaks.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from dasearch.errors import RankError, StudyError, WrongUse, first_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")
SIZE, RANK = "WORLD_SIZE", "RANK"  # set by torchrun
SIZE_HERE, RANK_HERE = "LOCAL_WORLD_SIZE", "LOCAL_RANK"  # of one machine
FIRST = 0  # writes, and speaks


@dataclass(frozen=True)
class Peers:
    """The processes of one training: how many, and which of them this is. What it does, all do at the same point.

    Attributes:
        here: its place among those of its machine.
    """

    rank: int = FIRST
    size: int = 1
    here: int = FIRST

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == FIRST

    @property
    def speaks(self) -> bool:
        """Whether this is the process that says why all of them end, once a machine."""
        return self.here == FIRST

    def own(self, parts: Iterable[T]) -> Iterator[T]:
        """Every ``size``-th part: those that fall to this process."""
        return itertools.islice(parts, self.rank, None, self.size)

    def total(self, own: Iterable[Tensor], count: int, like: Tensor) -> Tensor:
        """The sum of ``count`` parts in their order, of which these are `own`; each as large as ``like``."""
        return functools.reduce(_plus, own if self.size == 1 else self.in_order(list(own), count, like))

    def in_order(self, own: Sequence[Tensor], count: int, like: Tensor) -> list[Tensor]:
        """All ``count`` parts, of which these are `own`; each as large as ``like``. All are held at once."""
        import torch

        turns = -(-count // self.size)
        mine = torch.stack([*own, *[torch.zeros_like(like)] * (turns - len(own))])  # (turns, ...)
        found = [torch.empty_like(mine) for _ in range(self.size)]
        _at_once(lambda: torch.distributed.all_gather(found, mine))
        return [found[place % self.size][place // self.size] for place in range(count)]

    def fill(self, *tensors: Tensor) -> None:
        """Give every process the entries of all, where each has its own and zeros elsewhere."""
        import torch

        for tensor in tensors if self.size > 1 else ():
            _at_once(functools.partial(torch.distributed.all_reduce, tensor))

    def follow(self, tensors: Iterable[Tensor]) -> None:
        """Set tensors to those of the first process, for preparation on a GPU may differ in its last digits."""
        import torch

        with torch.inference_mode():
            for tensor in tensors if self.size > 1 else ():
                first = tensor.detach().clone(memory_format=torch.contiguous_format)
                _at_once(functools.partial(torch.distributed.broadcast, first, src=FIRST))
                tensor.copy_(first)

    def require_same_epochs(self, done: int, device: torch.device) -> None:
        """Refuse to go on where processes found other checkpoints.

        Raises:
            RankError: if they have done other numbers of epochs.
        """
        import torch

        if self.size > 1:
            mine = torch.tensor(done, device=device)
            found = [int(other) for other in self.in_order([mine], self.size, mine)]
            if len(set(found)) > 1:
                raise RankError(
                    f"the ranks found checkpoints after {', '.join(map(str, found))} epochs; give --out on a disk that all "
                    "machines share"
                )

    def require_shares(self, key: str, accumulate: int) -> None:
        """Refuse steps whose micro-batches cannot be shared evenly.

        Raises:
            StudyError: naming the setting that decides it.
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
    """What torchrun's environment says of this process."""
    size = int(os.environ.get(SIZE, "1"))
    if size == 1 or RANK not in os.environ:
        return ALONE
    return Peers(int(os.environ[RANK]), size, int(os.environ.get(RANK_HERE, FIRST)))


def require_alone(command: str) -> None:
    """Refuse several ranks where each would do the whole of a command.

    Raises:
        WrongUse: if torchrun started more than one.
    """
    if started().size > 1:
        raise WrongUse(f"torchrun shares `dasearch train` among GPUs; start `dasearch {command}` without it")


@contextmanager
def joined(device: torch.device) -> Iterator[Peers]:
    """The processes of this training, connected: over NCCL on GPUs, gloo on CPUs; alone without torchrun.

    Raises:
        RankError: if they cannot be connected.
        WrongUse: if a machine has fewer GPUs than ranks, or the study names one of them.
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
    torch.distributed.destroy_process_group()  # after an error it would wait for the others


def _take_gpu(device: torch.device, here: int) -> None:
    """``cuda`` means a GPU of its own in each process."""
    import torch

    ranks, there = int(os.environ.get(SIZE_HERE, "1")), torch.cuda.device_count()
    if device.index is not None:
        raise WrongUse(f"device is {device} and each rank needs a GPU of its own; use --set device=cuda")
    if ranks > there:
        raise WrongUse(
            f"torchrun started {ranks} ranks and this machine has {there} GPUs; use --nproc-per-node {there}"
        )
    torch.cuda.set_device(here)


def _at_once(call: Callable[[], object]) -> None:
    """Something that all processes do together.

    Raises:
        RankError: if one of them is gone.
    """
    import torch

    try:
        call()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RankError(
            "another rank of this training ended; run the same command again to go on after the last epoch"
        ) from error
