"""Rows that a language model reads: a user's item sentences, or the alignment prompt with one item's.

``[SEQ]`` closes each item and is never cut; an item's tokens and its ``[SEQ]`` share a segment (DARec sec. 2.2.2, 2.2.3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dasearch.data.dataset import IntArray
from dasearch.data.examples import Examples
from dasearch.data.sentences import Sentences
from dasearch.data.splits import Development

PAD_SEGMENT = -1
NO_ITEM = -1
HISTORY_ITEMS = 50  # newest items that an ID encoder reads
BUCKET_BATCHES = 16  # batches whose rows are sorted by length together


@dataclass(frozen=True)
class Rows:
    """Shapes: tokens, segments ``(batch, m)`` int64.

    A segment's tokens stand together; segment -1 is padding, on the right.
    """

    tokens: Tensor
    segments: Tensor

    @property
    def real(self) -> Tensor:
        """True where a token is no padding, ``(batch, m)``."""
        return self.segments != PAD_SEGMENT

    def to(self, device: torch.device | str) -> Rows:
        return Rows(self.tokens.to(device), self.segments.to(device))


@dataclass(frozen=True)
class SequenceBatch:
    """Users' rows. Shapes: users, examples ``(batch,)``; items, ends, targets ``(batch, n)``; histories ``(batch, h)``.

    ``users`` are positions in the data set (-1 someone else), ``items`` the row's items (-1 padding), ``ends`` the token
    index of each one's ``[SEQ]`` (0 padding), ``targets`` the item to predict there (-1 none), ``histories`` the newest
    items before the last target, which may be more than the row holds (-1 padding), ``examples`` the row's place among
    the study's `Examples` (-1 none).
    """

    rows: Rows
    users: Tensor
    items: Tensor
    ends: Tensor
    targets: Tensor
    histories: Tensor
    examples: Tensor

    def to(self, device: torch.device | str) -> SequenceBatch:
        parts = (self.users, self.items, self.ends, self.targets, self.histories, self.examples)
        return SequenceBatch(self.rows.to(device), *(part.to(device) for part in parts))

    @property
    def last(self) -> Tensor:
        """Index of each row's last item, ``(batch,)``."""
        return (self.items != NO_ITEM).sum(dim=1) - 1

    def at_last(self, values: Tensor) -> Tensor:
        """Of ``values`` ``(batch, n)`` those at each row's last item, ``(batch,)``."""
        return values.gather(1, self.last[:, None]).squeeze(1)


@dataclass(frozen=True)
class RowFormat:
    """How rows are laid out; token ids of ``[SEQ]``, ``[ALIGN]``, padding, a row's start, if any, and a prompt after it."""

    seq_token: int
    align_token: int
    pad_token: int = 0
    start_token: int | None = None
    max_items: int = 50
    max_tokens: int = 2048
    prompt: tuple[int, ...] = ()
    history_items: int = HISTORY_ITEMS

    @property
    def start(self) -> list[int]:
        return [] if self.start_token is None else [self.start_token]

    @property
    def opening(self) -> list[int]:
        """What a user's row begins with."""
        return [*self.start, *self.prompt]


@dataclass(frozen=True)
class Row:
    """One unpadded row. Shapes: tokens, segments ``(m,)``; items, and the index of each one's ``[SEQ]``, ``(n,)``."""

    tokens: IntArray
    segments: IntArray
    items: IntArray
    ends: IntArray


def fitting(history: IntArray, sentences: Sentences, row_format: RowFormat) -> IntArray:
    """The newest items of a history that fit a row: at most ``max_items``, at most ``max_tokens`` tokens, at least one."""
    newest = history[-row_format.max_items :]
    sizes = np.cumsum((sentences.lengths[newest] + 1)[::-1])
    room = row_format.max_tokens - len(row_format.opening)
    count = max(1, int(np.searchsorted(sizes, room, side="right")))
    return newest[-count:]


def sequence_row(history: IntArray, sentences: Sentences, row_format: RowFormat) -> Row:
    """``[start] [prompt] T_1 [SEQ] ... T_n [SEQ]`` of the newest items that fit; each is its own segment, even a repeated one."""
    items = fitting(history, sentences, row_format)
    sizes = sentences.lengths[items] + 1
    start = row_format.opening
    ends = len(start) + np.cumsum(sizes) - 1
    tokens = np.full(len(start) + int(sizes.sum()), row_format.seq_token, dtype=np.int64)
    tokens[: len(start)] = start
    inside = np.ones(len(tokens), dtype=np.bool_)
    inside[ends] = False
    inside[: len(start)] = False
    offsets = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    sources = (np.repeat(sentences.starts[items], sizes) + offsets)[inside[len(start) :]]
    tokens[inside] = sentences.flat[sources]
    segments = np.concatenate([np.zeros(len(start)), np.repeat(np.arange(len(items)), sizes) + len(start)]).astype(
        np.int64
    )
    return Row(tokens, segments, items, ends)


def stack(arrays: Sequence[IntArray], fill: int) -> Tensor:
    """Right-padded ``(len(arrays), longest)``."""
    out = np.full((len(arrays), max(len(array) for array in arrays)), fill, dtype=np.int64)
    for line, array in zip(out, arrays, strict=True):
        line[: len(array)] = array
    return torch.from_numpy(out)


def _batch(
    users: IntArray,
    rows: Sequence[Row],
    targets: Sequence[IntArray],
    histories: Sequence[IntArray],
    row_format: RowFormat,
    examples: IntArray | None = None,
) -> SequenceBatch:
    return SequenceBatch(
        Rows(stack([r.tokens for r in rows], row_format.pad_token), stack([r.segments for r in rows], PAD_SEGMENT)),
        torch.as_tensor(users),
        stack([r.items for r in rows], NO_ITEM),
        stack([r.ends for r in rows], 0),
        stack(targets, NO_ITEM),
        stack([history[-row_format.history_items :] for history in histories], NO_ITEM),
        torch.full((len(users),), -1) if examples is None else torch.as_tensor(examples),
    )


def trainable_users(development: Development) -> IntArray:
    """Places in ``development`` of users with something to predict: two training items or more."""
    return np.flatnonzero([len(sequence) > 1 for sequence in development.train])


def n_training_batches(development: Development, batch_size: int) -> int:
    """Number of batches that `training_batches` gives."""
    return -(-len(trainable_users(development)) // batch_size)


def training_batches(
    development: Development,
    sentences: Sentences,
    row_format: RowFormat,
    *,
    batch_size: int,
    generator: torch.Generator,
    examples: Examples | None = None,
) -> Iterator[SequenceBatch]:
    """Every user with two training items or more, once: the newest items in, at each ``[SEQ]`` the item after it.

    Rows of similar length share a batch, within chunks of `BUCKET_BATCHES` batches of shuffled users. Of ``examples``,
    where given, only those count as targets.
    """
    users = trainable_users(development)
    inputs = {k: fitting(development.train[k][:-1], sentences, row_format) for k in users.tolist()}
    sizes = np.array([int((sentences.lengths[inputs[k]] + 1).sum()) for k in users.tolist()], dtype=np.int64)
    for chosen in _bucketed(sizes, batch_size, generator):
        places = users[chosen].tolist()
        rows = [sequence_row(inputs[k], sentences, row_format) for k in places]
        targets = [_targets(development, k, len(inputs[k]), examples) for k in places]
        histories = [development.train[k][:-1] for k in places]
        yield _batch(development.users[places], rows, targets, histories, row_format)


def _targets(development: Development, k: int, count: int, examples: Examples | None) -> IntArray:
    """The newest ``count`` training items of the k-th user; `NO_ITEM` where the item is not among ``examples``."""
    sequence = development.train[k]
    if examples is None:
        return sequence[-count:]
    places = np.arange(len(sequence) - count, len(sequence))
    chosen = np.isin(places, examples.cuts_of(int(development.users[k])))
    return np.where(chosen, sequence[-count:], NO_ITEM)


def example_batches(
    development: Development,
    examples: Examples,
    sentences: Sentences,
    row_format: RowFormat,
    *,
    batch_size: int,
    generator: torch.Generator,
) -> Iterator[SequenceBatch]:
    """Every example of ``development``'s users once: the items before its cut in, one target at the last ``[SEQ]``."""
    places = examples.of(development.users)
    row = {user: k for k, user in enumerate(development.users.tolist())}
    sequences = [development.train[row[user]] for user in examples.users[places].tolist()]
    cuts = examples.cuts[places].tolist()
    histories = [sequence[:cut] for sequence, cut in zip(sequences, cuts, strict=True)]
    targets = np.array([sequence[cut] for sequence, cut in zip(sequences, cuts, strict=True)], dtype=np.int64)
    sizes = _row_sizes(histories, sentences, row_format)
    for chosen in _bucketed(sizes, batch_size, generator):
        yield _one_target_batch(
            examples.users[places[chosen]],
            [histories[k] for k in chosen.tolist()],
            targets[chosen],
            sentences,
            row_format,
            examples=places[chosen],
        )


def n_example_batches(development: Development, examples: Examples, batch_size: int) -> int:
    """Number of batches that `example_batches` gives."""
    return -(-len(examples.of(development.users)) // batch_size)


def _row_sizes(histories: Sequence[IntArray], sentences: Sentences, row_format: RowFormat) -> IntArray:
    inputs = (fitting(history, sentences, row_format) for history in histories)
    return np.array([int((sentences.lengths[items] + 1).sum()) for items in inputs], dtype=np.int64)


def _one_target_batch(
    users: IntArray,
    histories: Sequence[IntArray],
    targets: IntArray | None,
    sentences: Sentences,
    row_format: RowFormat,
    *,
    examples: IntArray | None = None,
) -> SequenceBatch:
    rows = [sequence_row(history, sentences, row_format) for history in histories]
    wanted = [np.full(len(row.items), NO_ITEM, dtype=np.int64) for row in rows]
    if targets is not None:
        for line, target in zip(wanted, targets, strict=True):
            line[-1] = target
    return _batch(users, rows, wanted, histories, row_format, examples)


def _bucketed(sizes: IntArray, batch_size: int, generator: torch.Generator) -> list[IntArray]:
    """Indices of each batch."""
    order = torch.randperm(len(sizes), generator=generator).numpy()
    chunk = batch_size * BUCKET_BATCHES
    pieces = [order[start : start + chunk] for start in range(0, len(order), chunk)]
    batches: list[IntArray] = []
    for piece in pieces:
        by_size = piece[np.argsort(sizes[piece], kind="stable")]
        batches += [by_size[start : start + batch_size] for start in range(0, len(by_size), batch_size)]
    return [batches[k] for k in torch.randperm(len(batches), generator=generator).tolist()]


def evaluation_batches(
    users: IntArray,
    histories: Sequence[IntArray],
    targets: IntArray | None,
    sentences: Sentences,
    row_format: RowFormat,
    *,
    batch_size: int,
) -> Iterator[tuple[IntArray, SequenceBatch]]:
    """Every user once, rows of similar length together: the newest history in, the held-out item at the last ``[SEQ]``.

    Without ``targets`` there is nothing to predict but `SequenceBatch.last` still says where a prediction is read. Each
    batch comes with the places of its rows among ``users``.
    """
    order = np.argsort(_row_sizes(histories, sentences, row_format), kind="stable")
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        yield (
            places,
            _one_target_batch(
                users[places],
                [histories[k] for k in places.tolist()],
                None if targets is None else targets[places],
                sentences,
                row_format,
            ),
        )


class ItemRows:
    """``prompt T_i [ALIGN]`` for any item i (DARec sec. 2.2.2); without ``[ALIGN]`` trained, RA-Rec's item rows.

    Args:
        prompt_group: the prompt and the item are one segment; else the prompt is its own.

    Attributes:
        opening: tokens in front of every item's.
    """

    def __init__(
        self, prompt: Sequence[int], sentences: Sentences, row_format: RowFormat, *, prompt_group: bool = True
    ) -> None:
        self._sentences, self._format = sentences, row_format
        self.opening = [*row_format.start, *prompt]
        self._opening_segments = [0] * len(row_format.start) + [1 if prompt_group else 2] * len(prompt)

    def select(self, items: Tensor) -> Rows:
        """The rows of ``items`` ``(k,)``, as long as the longest of them."""
        tokens, segments = [], []
        for item in items.tolist():
            sentence = self._sentences.of(item)
            tokens.append(np.array([*self.opening, *sentence, self._format.align_token], dtype=np.int64))
            segments.append(np.array([*self._opening_segments, *[1] * (len(sentence) + 1)], dtype=np.int64))
        return Rows(stack(tokens, self._format.pad_token), stack(segments, PAD_SEGMENT))

    def ends(self, items: Tensor) -> Tensor:
        """Token index of each row's ``[ALIGN]``, ``(k,)``."""
        return torch.from_numpy(self._sentences.lengths[items.numpy()] + len(self.opening))
