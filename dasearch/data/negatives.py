"""Hard negatives: items near an item in text or MF space that never occur with it in a training sequence (DARec app. A)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from threadpoolctl import threadpool_limits
from torch import Tensor

from dasearch.data.dataset import IntArray
from dasearch.data.rows import SequenceBatch

FRACTION = 0.005  # of the catalogue, in each space (app. A: Pantry 25, Arts 113)
CHUNK = 1024  # items whose distances are held at once
# Fraction of the largest squared norm: squared distances that differ by less are ties, which rounding must not break.
RESOLUTION = 2.0**-30

# Of the randomised solver at rank 1000, on amazon-scientific: 98.5% of the hard negatives match those of exact factors; after
# two iterations, which take nearly as long, 96.6% (benchmarks/mf.py).
ITERATIONS = 4
OVERSAMPLE = 0.2  # of the rank, and at least
LEAST_OVERSAMPLE = 10
SEED = 0


@dataclass(frozen=True)
class HardNegatives:
    """One list per item, flattened: those of item i are ``flat[starts[i]:starts[i + 1]]``."""

    flat: Tensor
    starts: Tensor

    def of(self, item: int) -> Tensor:
        """Item ids of one item's hard negatives, ``(its size,)``; empty where it has none."""
        return self.flat[self.starts[item] : self.starts[item + 1]]

    @property
    def sizes(self) -> Tensor:
        """Shape ``(items,)``."""
        return self.starts.diff()


@dataclass(frozen=True)
class ContrastiveSample:
    """Anchors of L_cl. Shapes: row, position, positive ``(a,)``; negatives ``(a, n_cl)`` item ids."""

    row: Tensor
    position: Tensor
    positive: Tensor
    negatives: Tensor


def hard_negatives(
    text_vectors: Tensor, factors: Tensor, train: Sequence[IntArray], *, fraction: float = FRACTION
) -> HardNegatives:
    """Per item the nearest ``ceil(fraction * items)`` by L2 in text and in MF space, without those it co-occurs with.

    Shapes: text_vectors ``(items, width)``, factors ``(items, rank)``.
    """
    n_items = len(text_vectors)
    count = min(n_items - 1, math.ceil(fraction * n_items))
    near = _neighbours(text_vectors, count) + _neighbours(factors, count)
    together = co_occurrence(train, n_items)
    hard = sparse.csr_array((near - near.multiply(together)) > 0)
    hard.sort_indices()
    return HardNegatives(
        torch.from_numpy(hard.indices.astype(np.int64)), torch.from_numpy(hard.indptr.astype(np.int64))
    )


def _neighbours(vectors: Tensor, count: int) -> sparse.csr_array:
    """1 where the column's item is among the row's ``count`` nearest others, ``(items, items)``; ties go to the first.

    Squared distances are rounded to multiples of `RESOLUTION`, so that neither a rotation of the vectors nor the
    number of BLAS threads breaks ties: with factors of a sparse matrix half the items have a tie at the end of their
    list.
    """
    n_items = len(vectors)
    centred = vectors.double() - vectors.double().mean(0)
    lengths = centred.square().sum(1)
    unit = RESOLUTION * max(float(lengths.max()), torch.finfo(torch.float64).tiny)
    columns = []
    for chunk in torch.arange(n_items).split(CHUNK):
        distances = lengths[chunk, None] + lengths - 2 * centred[chunk] @ centred.T
        keys = (distances / unit).round().long() * n_items + torch.arange(n_items)  # all distinct within a row
        keys[torch.arange(len(chunk)), chunk] = torch.iinfo(torch.int64).max
        columns.append(keys.topk(count, largest=False).indices)
    indices = torch.cat(columns).numpy().ravel()
    rows = np.repeat(np.arange(n_items), count)
    return sparse.csr_array((np.ones(len(rows)), (rows, indices)), shape=(n_items, n_items))


def co_occurrence(train: Sequence[IntArray], n_items: int) -> sparse.csr_array:
    """1 where two items occur in one training sequence, ``(items, items)``."""
    bought = user_item(train, n_items)
    return sparse.csr_array((bought.T @ bought) > 0).astype(np.float64)


def user_item(train: Sequence[IntArray], n_items: int) -> sparse.csr_array:
    """1 where a user bought an item in training, ``(users, items)``."""
    rows = np.repeat(np.arange(len(train)), [len(sequence) for sequence in train])
    table = sparse.coo_array((np.ones(len(rows)), (rows, np.concatenate(train))), shape=(len(train), n_items)).tocsr()
    return sparse.csr_array(table > 0).astype(np.float64)


def mf_vectors(train: Sequence[IntArray], n_items: int, *, rank: int = 1000) -> npt.NDArray[np.float64]:
    """Item factors of the truncated singular value decomposition of the training matrix, ``(items, rank)``.

    ``rank`` is capped at the smaller side of the matrix. Exact where that side is at most `CHUNK` or nothing is cut, else
    by a randomised solver with a fixed seed.
    """
    table = user_item(train, n_items)
    rank = min(rank, *table.shape)
    if rank >= min(table.shape) or min(table.shape) <= CHUNK:
        return exact_factors(table, rank)
    return randomised_factors(table, rank)


def exact_factors(table: sparse.csr_array, rank: int) -> npt.NDArray[np.float64]:
    """Right singular vectors scaled by their singular values, the largest first, ``(items, rank)``."""
    _, values, right = np.linalg.svd(table.toarray(), full_matrices=False)
    return np.asarray((values[:rank, None] * right[:rank]).T)


def randomised_factors(
    table: sparse.csr_array, rank: int, *, iterations: int = ITERATIONS, oversample: float = OVERSAMPLE
) -> npt.NDArray[np.float64]:
    """The same up to a rotation and the error after ``iterations`` (Halko et al. 2011), ``(items, rank)``.

    Computed on the items' Gram matrix: one product with it is worth two with the interaction matrix, and at equal time
    gives half as many wrong neighbours. It runs on one BLAS thread, so that the result is bitwise reproducible; on a
    loaded machine two threads took four times as long, because OpenBLAS's threads spin.
    """
    from sklearn.utils.extmath import randomized_svd  # its import takes a second, so it is not at the top

    extra = min(max(LEAST_OVERSAMPLE, round(oversample * rank)), table.shape[1] - rank)
    products = table.T @ table
    with threadpool_limits(1, user_api="blas"):
        _, squares, right = randomized_svd(products, rank, n_oversamples=extra, n_iter=iterations, random_state=SEED)
    return np.asarray((np.sqrt(squares)[:, None] * right).T)


def sample_contrastive(
    batch: SequenceBatch,
    negatives: HardNegatives,
    *,
    anchors_per_row: int = 1,
    negatives_per_anchor: int = 5,
    generator: torch.Generator,
) -> ContrastiveSample | None:
    """Random anchors whose next item has hard negatives; None where the batch has no such anchor (sec. 2.2.4).

    Where an item has fewer hard negatives than requested, they repeat.
    """
    sizes = negatives.sizes[batch.targets.clamp(min=0)]
    usable = (batch.targets >= 0) & (sizes > 0)
    order = torch.rand(usable.shape, generator=generator).masked_fill(~usable, torch.inf)
    position = order.argsort(dim=1)[:, :anchors_per_row]
    row = torch.arange(len(usable))[:, None].expand_as(position)
    chosen = usable[row, position]
    row, position = row[chosen], position[chosen]
    if not len(row):
        return None
    positive = batch.targets[row, position]
    drawn = _draw(negatives, positive, negatives_per_anchor, generator)
    return ContrastiveSample(row, position, positive, drawn)


def _draw(negatives: HardNegatives, items: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` hard negatives of each item, without repeats where there are enough, ``(a, count)``."""
    sizes = negatives.sizes[items]
    widest = int(sizes.max())
    keys = torch.rand((len(items), widest), generator=generator)
    keys = keys.masked_fill(torch.arange(widest) >= sizes[:, None], torch.inf)
    shuffled = keys.argsort(dim=1)
    slots = torch.arange(count) % sizes[:, None]  # wraps around where there are too few
    return negatives.flat[negatives.starts[items][:, None] + shuffled.gather(1, slots)]
