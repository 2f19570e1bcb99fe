"""Threads: how those of one process wait for each other, and how many a piece of work is given.

A thread of OpenMP that is done before the others of its team spins. Beside another busy process it so takes the core that
the others need: on two cores three trainings at once took four times as long as one. Passive waiting costs a wake-up an
operation instead, which small work should not pay: that is given one thread. Nothing here imports torch before it must,
because its OpenMP reads the environment once, when it is loaded.
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
CHOSEN_BY = (POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # by any of these a user says how threads wait

# Of rows x tokens x width. A layer forward and backward, passively waiting (benchmarks/threads.py): on busy cores two threads
# took 1.2 to 1.7 times as long as one below 150,000, 1.0 to 1.15 times from 200,000 on, where a free core is worth the risk.
WORK_OF_A_THREAD = 100_000


class SetBy(StrEnum):
    """Who chose how idle threads wait."""

    DASEARCH = "dasearch"
    ENVIRONMENT = "the environment"
    NOBODY = "nobody"  # torch was imported before dasearch


@dataclass(frozen=True)
class Waiting:
    """How threads wait: the variables that say so, as in ``OMP_WAIT_POLICY=PASSIVE``, and who set them."""

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
    """Ask for passive waiting, unless the user asked for something else or it is ``too_late``."""
    chosen = [f"{name}={environment[name]}" for name in CHOSEN_BY if name in environment]
    if chosen:
        return Waiting(" ".join(chosen), SetBy.ENVIRONMENT)
    if too_late:
        return Waiting("", SetBy.NOBODY)
    environment[POLICY] = PASSIVE
    return Waiting(f"{POLICY}={PASSIVE}", SetBy.DASEARCH)


WAITING = wait_passively(os.environ, too_late="torch" in sys.modules)  # subprocesses inherit it


def cores() -> int:
    """Cores that this process may use: of the machine, its affinity, and its control group's quota."""
    from joblib import cpu_count

    return int(cpu_count())


def most_threads() -> int:
    """Most threads that dasearch takes by itself: a core each, and no more than torch was told to take."""
    import torch

    return min(cores(), torch.get_num_threads())


def fitting(work: int, *, most: int) -> int:
    """Threads for steps of ``work`` = rows x tokens x width numbers: at least one, at most ``most``."""
    return max(1, min(most, work // WORK_OF_A_THREAD))


@contextmanager
def using(threads: int | None) -> Iterator[None]:
    """Compute with so many threads (None: `most_threads`); afterwards with as many as before."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or most_threads())
    try:
        yield
    finally:
        torch.set_num_threads(before)
