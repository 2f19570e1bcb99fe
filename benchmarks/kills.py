"""Studies through SIGKILLs at seeded moments, of the driver and of workers: what they come to, against the uninterrupted study.

``python -m benchmarks.kills`` prints each kill, and a row a study. It stops at the first epoch that is gone or was trained
twice, at a budget that is not met exactly, at a number of the final tables that differs, and at a process that is left.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.postgres import Server, binaries
from tests.search.kills import Ending, Killer, Place, Tally, differences, drawn, uninterrupted

EXECUTORS = {"inline": None, "ray": 3}  # workers
STORES = ("sqlite", "postgresql")
BUDGET = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--executors", default=",".join(EXECUTORS))
    parser.add_argument("--stores", default=",".join(STORES))
    asked = parser.parse_args()
    rows = [
        "| workers | store | kills | driver, worker | by phase | starts | seconds | as uninterrupted |",
        "|---" * 8 + "|",
    ]
    for executor in asked.executors.split(","):
        reference = reference_of(executor)
        for store in asked.stores.split(","):
            with place(executor, store) as where:
                tally = killed(where, reference, kills=asked.kills, seed=asked.seed)
            different = [] if tally.ending is None else differences(tally.ending, reference)
            rows.append(row(executor, store, tally, same=not different))
            print("\n".join([rows[-1], *different]), flush=True)
    print("\n".join(["", *rows]))


def reference_of(executor: str) -> Ending:
    """What the uninterrupted study comes to, in a file."""
    with place(executor, "sqlite") as where:
        return uninterrupted(where, where.settings(search={"budget": BUDGET}))


@contextmanager
def place(executor: str, store: str) -> Iterator[Place]:
    """A new folder, and for PostgreSQL a server with a new database."""
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        if store == "sqlite":
            yield Place(Path(folder), None, EXECUTORS[executor])
            return
        programs = binaries()
        if programs is None:
            raise SystemExit("PostgreSQL's programs are not installed; --stores sqlite leaves it out")
        server = Server(programs)
        try:
            server.start()
            yield Place(Path(folder), server.database(), EXECUTORS[executor])
        finally:
            server.remove()


def killed(where: Place, reference: Ending, *, kills: int, seed: int) -> Tally:
    """A study through its kills, moments and victims by the seed."""
    moments, victims = drawn(kills, len(reference.curves), seed, workers=where.workers is not None)
    settings = where.settings(search={"budget": BUDGET})
    return Killer(where, settings, moments, victims, say=partial(print, flush=True), thorough=True).run()


def row(executor: str, store: str, tally: Tally, *, same: bool) -> str:
    victims, phases = Counter(victim for _, victim in tally.kills), Counter(phase for phase, _ in tally.kills)
    by_phase = ", ".join(f"{phase} {count}" for phase, count in phases.items())
    equal = "yes" if same else "NO"
    cells = [
        f"{EXECUTORS[executor] or 1} {executor}",
        store,
        len(tally.kills),
        f"{victims['driver']}, {victims['worker']}",
        by_phase,
        tally.starts,
        f"{tally.seconds:.0f}",
        equal,
    ]
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
