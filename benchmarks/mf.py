"""Item factors by the randomised solver against ARPACK's, exact to rounding: seconds, and hard negatives they share.

Run: python benchmarks/mf.py [STUDY] [--rank 1000]. Both sides run in this process on the training matrix of a study,
`amazon-scientific` by default. In the end the hard negatives of one thread against those of all.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.linalg import svds
from threadpoolctl import threadpool_limits

from dasearch.data import HardNegatives, LeaveOneOut, hard_negatives
from dasearch.data.negatives import randomised_factors, user_item
from dasearch.search.study import Study
from dasearch.threads import using

Factors = Callable[[], np.ndarray]


def timed(name: str, factors: Factors) -> tuple[float, np.ndarray]:
    wall, processor = time.perf_counter(), time.process_time()
    found = factors()
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    print(f"{name:<26} {wall:>7.1f} s, of processor {processor:>7.1f} s", flush=True)
    return wall, found


def arpack(table: csr_array, rank: int) -> np.ndarray:
    _, values, right = svds(table, k=rank, v0=np.ones(min(table.shape)), return_singular_vectors="vh")
    return (values[:, None] * right).T


def pairs(negatives: HardNegatives) -> set[tuple[int, int]]:
    rows = torch.arange(len(negatives.sizes)).repeat_interleave(negatives.sizes)
    return set(zip(rows.tolist(), negatives.flat.tolist(), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", default="amazon-scientific")
    parser.add_argument("--rank", type=int, default=1000)
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    study = Study.load(given.study, given.changes)
    train = LeaveOneOut(study.dataset()).development.train
    table = user_item(train, len(study.dataset().items))
    print(f"{table.shape[0]:,} users, {table.shape[1]:,} items, {table.nnz:,} purchases, rank {given.rank}; ", end="")
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}")

    def hard(factors: np.ndarray) -> set[tuple[int, int]]:
        space = torch.as_tensor(factors)
        return pairs(hard_negatives(space, space, train, fraction=study.settings.data.hard_negative_fraction))

    exactly, factors = timed("ARPACK", partial(arpack, table, given.rank))
    wanted, energy = hard(factors), np.square(factors).sum()
    sides = {
        f"randomised, {n} iterations": partial(randomised_factors, table, given.rank, iterations=n) for n in (2, 3, 4)
    }
    for name, side in sides.items():
        seconds, factors = timed(name, side)
        share = len(hard(factors) & wanted) / len(wanted)
        kept = np.square(factors).sum() / energy
        print(f"{'':<26} {seconds / exactly:.2f} x ARPACK, {share:.1%} of its hard negatives, {kept:.2%} of its energy")
    chosen = hard(randomised_factors(table, given.rank))
    with threadpool_limits(1), using(1):
        alone = hard(randomised_factors(table, given.rank))
    print(f"hard negatives that one thread changes: {len(chosen ^ alone)} of {len(chosen):,}")


if __name__ == "__main__":
    main()
