"""The rows of an epoch and their batches: users' whole rows, single targets, held-out items.

A plan is made once and describes every row as a slice of one flat table of items; batches are then sliced from tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dasearch.data.dataset import IntArray
from dasearch.data.examples import Examples
from dasearch.data.rows import NO_ITEM, RowFormat, RowTable, SequenceBatch
from dasearch.data.sentences import Sentences
from dasearch.data.splits import Development

BUCKET_BATCHES = 16  # batches whose rows are sorted by length together


@dataclass(frozen=True)
class RowPlan:
    """Rows as slices of a flat table of items, and the targets of each.

    Shapes: items ``(total,)``; users, begin (start of the user's items), first (start of the row's), stop (one past the
    last), sizes (tokens of the row's items), examples, and targets ``(rows,)``. ``following`` ``(total,)`` is the target
    at each item, -1 for none; without it a row predicts its one target at its last item.
    """

    table: RowTable
    items: Tensor
    users: Tensor
    begin: Tensor
    first: Tensor
    stop: Tensor
    sizes: IntArray
    targets: Tensor
    examples: Tensor
    following: Tensor | None = None

    def __len__(self) -> int:
        return len(self.users)

    def n_batches(self, batch_size: int) -> int:
        """Number of batches that `shuffled` gives."""
        return -(-len(self) // batch_size)

    def shuffled(self, batch_size: int, generator: torch.Generator) -> Iterator[SequenceBatch]:
        """Every row once; rows of similar length share a batch, within chunks of `BUCKET_BATCHES` batches.

        A batch with fewer rows comes last, so that all orders have batches of the same sizes.
        """
        order = torch.randperm(len(self), generator=generator).numpy()
        chunk = batch_size * BUCKET_BATCHES
        pieces = [order[start : start + chunk] for start in range(0, len(order), chunk)]
        batches: list[IntArray] = []
        for piece in pieces:
            by_size = piece[np.argsort(self.sizes[piece], kind="stable")]
            batches += [by_size[start : start + batch_size] for start in range(0, len(by_size), batch_size)]
        turns = torch.randperm(len(batches), generator=generator).tolist()
        for turn in sorted(turns, key=lambda turn: len(batches[turn]) < batch_size):
            yield self.batch(torch.from_numpy(batches[turn]))

    def by_length(self, batch_size: int) -> Iterator[tuple[IntArray, SequenceBatch]]:
        """Every row once, those of similar length together; each batch with the positions of its rows."""
        order = np.argsort(self.sizes, kind="stable")
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            yield places, self.batch(torch.from_numpy(places))

    def batch(self, chosen: Tensor) -> SequenceBatch:
        """The batch of the rows at these positions."""
        first, stop = self.first[chosen], self.stop[chosen]
        items = self._part(self.items, first, stop)
        rows, ends = self.table.rows(items)
        if self.following is not None:
            targets = self._part(self.following, first + 1, stop + 1)
        else:
            targets = torch.full_like(items, NO_ITEM)
            targets.scatter_(1, (stop - first - 1)[:, None], self.targets[chosen][:, None])
        newest = torch.maximum(self.begin[chosen], stop - self.table.format.history_items)
        histories = self._part(self.items, newest, stop)
        return SequenceBatch(rows, self.users[chosen], items, ends, targets, histories, self.examples[chosen])

    @staticmethod
    def _part(values: Tensor, first: Tensor, stop: Tensor) -> Tensor:
        """``values[first:stop]`` of every row, padded on the right."""
        places = first[:, None] + torch.arange(int((stop - first).max()))
        real = places < stop[:, None]
        return torch.where(real, values[places.clamp(max=len(values) - 1)], NO_ITEM)


def row_plan(
    users: IntArray,
    sequences: Sequence[IntArray],
    begin: IntArray,
    stop: IntArray,
    sentences: Sentences,
    row_format: RowFormat,
    *,
    targets: IntArray | None = None,
    examples: IntArray | None = None,
    following: IntArray | None = None,
) -> RowPlan:
    """A row of the newest items that fit, at least one, for each user's part ``begin`` to ``stop`` of all sequences."""
    items = np.concatenate([*sequences, np.zeros(0, dtype=np.int64)])
    tokens = np.concatenate([[0], np.cumsum(sentences.lengths[items] + 1)])
    room = row_format.max_tokens - len(row_format.opening)
    fitting = np.searchsorted(tokens, tokens[stop] - room)
    first = np.minimum(np.maximum.reduce([begin, stop - row_format.max_items, fitting]), stop - 1)
    nothing = np.full(len(users), NO_ITEM)
    return RowPlan(
        table=RowTable(sentences, row_format),
        items=torch.from_numpy(items),
        users=torch.from_numpy(np.asarray(users, dtype=np.int64)),
        begin=torch.from_numpy(begin),
        first=torch.from_numpy(first),
        stop=torch.from_numpy(stop),
        sizes=tokens[stop] - tokens[first],
        targets=torch.from_numpy(nothing if targets is None else targets),
        examples=torch.from_numpy(nothing if examples is None else examples),
        following=None if following is None else torch.from_numpy(following),
    )


def training_plan(
    development: Development, sentences: Sentences, row_format: RowFormat, examples: Examples | None = None
) -> RowPlan:
    """Every user with two training items or more: the newest items as input, at each ``[SEQ]`` the next item as target.

    With ``examples``, only those are targets.
    """
    begin, lengths = _starts(development.train)
    kept = np.flatnonzero(lengths > 1)
    items = np.concatenate(development.train)
    if examples is not None:
        counted = np.zeros(len(items), dtype=np.bool_)
        chosen = examples.of(development.users)
        counted[begin[np.searchsorted(development.users, examples.users[chosen])] + examples.cuts[chosen]] = True
        items = np.where(counted, items, NO_ITEM)
    stop = (begin + lengths - 1)[kept]
    users, sequences = development.users[kept], development.train
    return row_plan(users, sequences, begin[kept], stop, sentences, row_format, following=items)


def example_plan(development: Development, examples: Examples, sentences: Sentences, row_format: RowFormat) -> RowPlan:
    """Every example of ``development``'s users: the items before its cut as input, one target at the last ``[SEQ]``."""
    begin, _ = _starts(development.train)
    places = examples.of(development.users)
    start = begin[np.searchsorted(development.users, examples.users[places])]
    stop = start + examples.cuts[places]
    targets = np.concatenate(development.train)[stop]
    users, sequences = examples.users[places], development.train
    return row_plan(users, sequences, start, stop, sentences, row_format, targets=targets, examples=places)


def evaluation_plan(
    users: IntArray,
    histories: Sequence[IntArray],
    targets: IntArray | None,
    sentences: Sentences,
    row_format: RowFormat,
) -> RowPlan:
    """Every user: the newest history as input, the held-out item, if there is one, as target at the last ``[SEQ]``.

    Without ``targets`` there is nothing to predict, but `SequenceBatch.last` still gives where a prediction is read.
    """
    begin, lengths = _starts(histories)
    return row_plan(users, histories, begin, begin + lengths, sentences, row_format, targets=targets)


def _starts(sequences: Sequence[IntArray]) -> tuple[IntArray, IntArray]:
    """The offset of each sequence in their concatenation, and its length."""
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    return np.cumsum(lengths) - lengths, lengths
