"""Token rows that a language model reads: a user's item sentences, or the alignment prompt with one item's.

``[SEQ]`` ends each item and is never truncated; an item's tokens and its ``[SEQ]`` share a segment (DARec sec. 2.2.2, 2.2.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dasearch.data.dataset import IntArray
from dasearch.data.sentences import Sentences

PAD_SEGMENT = -1
NO_ITEM = -1
HISTORY_ITEMS = 50  # newest items that an ID encoder reads


@dataclass(frozen=True)
class Rows:
    """Token rows and their segments. Shapes: tokens, segments ``(batch, m)`` int64.

    A segment's tokens are contiguous; segment -1 is padding, on the right.
    """

    tokens: Tensor
    segments: Tensor

    @property
    def real(self) -> Tensor:
        """True where a token is not padding, ``(batch, m)``."""
        return self.segments != PAD_SEGMENT

    def to(self, device: torch.device | str) -> Rows:
        """The same rows on a device."""
        return Rows(moved(self.tokens, device), moved(self.segments, device))

    @classmethod
    def together(cls, parts: Sequence[Rows]) -> Rows:
        """The rows of all parts concatenated, padded to the longest."""
        return cls(together([p.tokens for p in parts], 0), together([p.segments for p in parts], PAD_SEGMENT))


@dataclass(frozen=True)
class SequenceBatch:
    """Users' rows. Shapes: users, examples ``(batch,)``; items, ends, targets ``(batch, n)``; histories ``(batch, h)``.

    ``users`` are positions in the data set (-1 for a new user), ``items`` the row's items (-1 padding), ``ends`` the token
    index of each one's ``[SEQ]`` (0 padding), ``targets`` the item to predict there (-1 none), ``histories`` the newest
    items before the last target, which may be more than the row holds (-1 padding), ``examples`` the row's position in
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
        """The same batch on a device."""
        parts = (self.users, self.items, self.ends, self.targets, self.histories, self.examples)
        return SequenceBatch(self.rows.to(device), *(moved(part, device) for part in parts))

    @classmethod
    def together(cls, batches: Sequence[SequenceBatch]) -> SequenceBatch:
        """The rows of all batches concatenated, padded to common shapes."""
        if len(batches) == 1:
            return batches[0]
        rest = [(field.name, 0 if field.name == "ends" else NO_ITEM) for field in fields(cls) if field.name != "rows"]
        parts = {name: together([getattr(batch, name) for batch in batches], fill) for name, fill in rest}
        return cls(Rows.together([batch.rows for batch in batches]), **parts)

    def widened(self, items: int, histories: int) -> SequenceBatch:
        """The same rows, padded to this many items and this history length."""
        room = (0, items - self.items.shape[1])
        return replace(
            self,
            items=F.pad(self.items, room, value=NO_ITEM),
            ends=F.pad(self.ends, room),
            targets=F.pad(self.targets, room, value=NO_ITEM),
            histories=F.pad(self.histories, (0, histories - self.histories.shape[1]), value=NO_ITEM),
        )

    @property
    def last(self) -> Tensor:
        """Index of each row's last item, ``(batch,)``."""
        return (self.items != NO_ITEM).sum(dim=1) - 1

    def at_last(self, values: Tensor) -> Tensor:
        """The entries of ``values`` ``(batch, n)`` at each row's last item, ``(batch,)``."""
        return values.gather(1, self.last[:, None]).squeeze(1)


def moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """On the device; to a GPU asynchronously, by way of pinned memory."""
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def together(parts: Sequence[Tensor], fill: int) -> Tensor:
    """Tensors concatenated along the first axis, the second padded on the right to the longest."""
    if parts[0].dim() == 1 or len({part.shape[1] for part in parts}) == 1:
        return torch.cat(list(parts))
    longest = max(part.shape[1] for part in parts)
    return torch.cat(
        [F.pad(part, (0, 0) * (part.dim() - 2) + (0, longest - part.shape[1]), value=fill) for part in parts]
    )


@dataclass(frozen=True)
class RowFormat:
    """The format of rows: token ids of ``[SEQ]``, ``[ALIGN]``, padding, a row's start, if any, and a prompt after it.

    Rows of a batch are padded to the longest of them, or, so that shapes recur, to one token less than the next
    multiple of ``multiple``: with one more key in front their attention masks are aligned.
    """

    seq_token: int
    align_token: int
    pad_token: int = 0
    start_token: int | None = None
    max_items: int = 50
    max_tokens: int = 2048
    prompt: tuple[int, ...] = ()
    history_items: int = HISTORY_ITEMS
    multiple: int = 1

    @property
    def start(self) -> list[int]:
        """Token ids that open a row: the start token, if the model has one."""
        return [] if self.start_token is None else [self.start_token]

    @property
    def opening(self) -> list[int]:
        """Token ids that a user's row begins with: the start token and the prompt."""
        return [*self.start, *self.prompt]

    def width(self, longest: int) -> int:
        """Padded length of a batch whose longest row has ``longest`` tokens."""
        if self.multiple == 1:
            return longest
        rounded = -(-(longest + 1) // self.multiple) * self.multiple - 1
        return max(longest, min(rounded, self.max_tokens))


class RowTable:
    """Builds users' rows: ``[start] [prompt] T_1 [SEQ] ... T_n [SEQ]``, every item a segment, even a repeated one.

    Args:
        sentences: the tokens of all items.
        row_format: special tokens, prompt and padding of the rows.
    """

    def __init__(self, sentences: Sentences, row_format: RowFormat) -> None:
        self.format = row_format
        self._opening = torch.tensor(row_format.opening, dtype=torch.long)
        self._flat, self._starts, self._lengths = (
            torch.from_numpy(part) for part in (sentences.flat, sentences.starts, sentences.lengths)
        )

    def rows(self, items: Tensor) -> tuple[Rows, Tensor]:
        """The rows of items ``(batch, n)``, -1 for padding on the right, and their items' ends ``(batch, n)``."""
        opening, real = len(self._opening), items != NO_ITEM
        known = items.clamp(min=0)
        sizes = torch.where(real, self._lengths[known] + 1, 0)
        stops = opening + sizes.cumsum(1)
        starts = stops - sizes
        m = self.format.width(int(stops[:, -1].max()))
        places = torch.arange(m).expand(len(items), m)
        slot = torch.searchsorted(stops, places.contiguous(), right=True).clamp(max=items.shape[1] - 1)
        item, within = known.gather(1, slot), places - starts.gather(1, slot)
        tokens = self._flat[(self._starts[item] + within).clamp(0, len(self._flat) - 1)]
        tokens = tokens.masked_fill(within == self._lengths[item], self.format.seq_token)
        segments, padding = slot + opening, places >= stops[:, -1:]
        tokens, segments = (
            tokens.masked_fill(padding, self.format.pad_token),
            segments.masked_fill(padding, PAD_SEGMENT),
        )
        tokens[:, :opening], segments[:, :opening] = self._opening, 0
        return Rows(tokens, segments), torch.where(real, stops - 1, 0)


def stack(arrays: Sequence[IntArray], fill: int) -> Tensor:
    """The arrays as rows of one tensor, padded on the right, ``(len(arrays), longest)``."""
    out = np.full((len(arrays), max(len(array) for array in arrays)), fill, dtype=np.int64)
    for line, array in zip(out, arrays, strict=True):
        line[: len(array)] = array
    return torch.from_numpy(out)


class ItemRows:
    """``prompt T_i [ALIGN]`` for any item i (DARec sec. 2.2.2); without ``[ALIGN]`` trained, RA-Rec's item rows.

    All of them are built and padded once, in the constructor.

    Args:
        prompt_group: the prompt and the item are one segment; else the prompt is its own.

    Attributes:
        opening: token ids before every item's.
    """

    def __init__(
        self, prompt: Sequence[int], sentences: Sentences, row_format: RowFormat, *, prompt_group: bool = True
    ) -> None:
        self.opening = [*row_format.start, *prompt]
        self._format = row_format
        self._ends = torch.from_numpy(sentences.lengths) + len(self.opening)
        texts, _real = sentences.padded(torch.arange(len(sentences)), pad_token=row_format.pad_token)
        tokens = F.pad(texts, (len(self.opening), 1), value=row_format.pad_token)
        tokens[:, : len(self.opening)] = torch.tensor(self.opening, dtype=torch.long)
        tokens[torch.arange(len(tokens)), self._ends] = row_format.align_token
        self._tokens = tokens.int()  # int32 halves the memory; a large catalogue has millions
        beginning = [0] * len(row_format.start) + [1 if prompt_group else 2] * len(prompt)
        self._segments = torch.tensor([*beginning, *[1] * (texts.shape[1] + 1)])

    def select(self, items: Tensor) -> Rows:
        """The rows of ``items`` ``(k,)``, padded to the longest of them."""
        ends = self._ends[items]
        longest = int(ends.max()) + 1
        m = self._format.width(longest)
        tokens = F.pad(self._tokens[items, :longest].long(), (0, m - longest), value=self._format.pad_token)
        segments = F.pad(self._segments[:longest], (0, m - longest), value=PAD_SEGMENT)
        padding = torch.arange(m) > ends[:, None]
        return Rows(tokens, segments.expand(len(items), -1).masked_fill(padding, PAD_SEGMENT))

    def ends(self, items: Tensor) -> Tensor:
        """Token index of each row's ``[ALIGN]``, ``(k,)``."""
        return self._ends[items]
