"""Threads: the OpenMP wait policy, and the number of threads for a given amount of work.

An idle OpenMP thread spins by default. With other busy processes it occupies a core that they need: on two cores three
concurrent trainings took four times as long as one. Passive waiting costs one wake-up per operation instead, which is too
much for small work: that gets one thread. This module imports torch as late as possible, because torch's OpenMP reads the
environment once, at loading.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

POLICY, PASSIVE = (
    "OMP_WAIT_POLICY",
    "PASSIVE",
)  # obeyed by GNU's OpenMP (torch on Linux), LLVM's (macOS), Intel's (Windows)
CHOSEN_BY = (POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # variables by which a user sets the wait policy

# In rows x tokens x width. Forward and backward of a layer, passive waiting (benchmarks/threads.py): on busy cores two threads
# took 1.2 to 1.7 times as long as one below 150,000, 1.0 to 1.15 times from 200,000 on, where a free core is worth the risk.
WORK_OF_A_THREAD = 100_000


class SetBy(StrEnum):
    """The source of the wait policy."""

    DASEARCH = "dasearch"
    ENVIRONMENT = "the environment"
    NOBODY = "nobody"  # torch was imported before dasearch


@dataclass(frozen=True)
class Waiting:
    """The wait policy: its variables, as in ``OMP_WAIT_POLICY=PASSIVE``, and who set them."""

    policy: str
    set_by: SetBy

    def __str__(self) -> str:
        if self.set_by is SetBy.NOBODY:
            return (
                "threads spin while they wait, as torch was imported before dasearch; import dasearch first, or set "
                f"{POLICY}={PASSIVE}"
            )
        return f"threads wait by {self.policy}, set by {self.set_by}"


def wait_passively(environment: MutableMapping[str, str], *, too_late: bool) -> Waiting:
    """Set passive waiting, unless the user set a policy or it is ``too_late``."""
    chosen = [f"{name}={environment[name]}" for name in CHOSEN_BY if name in environment]
    if chosen:
        return Waiting(" ".join(chosen), SetBy.ENVIRONMENT)
    if too_late:
        return Waiting("", SetBy.NOBODY)
    environment[POLICY] = PASSIVE
    return Waiting(f"{POLICY}={PASSIVE}", SetBy.DASEARCH)


WAITING = wait_passively(os.environ, too_late="torch" in sys.modules)  # subprocesses inherit it


def cores() -> int:
    """Number of cores available to this process: by the machine, its affinity, and its cgroup quota."""
    from joblib import cpu_count

    return int(cpu_count())


def most_threads() -> int:
    """Default maximum of threads: one per core, and no more than torch's setting."""
    import torch

    return min(cores(), torch.get_num_threads())


def fitting(work: int, *, most: int) -> int:
    """Threads for steps of ``work`` = rows x tokens x width numbers: at least one, at most ``most``."""
    return max(1, min(most, work // WORK_OF_A_THREAD))


@contextmanager
def using(threads: int | None) -> Iterator[None]:
    """Use this many threads in the block (None: `most_threads`); the number is restored afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or most_threads())
    try:
        yield
    finally:
        torch.set_num_threads(before)
