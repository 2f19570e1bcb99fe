"""Attention under DARec's two masks from one projection: causal over the row, and bidirectional within an item.

Liu et al. 2024 (DARec), app. C. `attend` takes any mask, `attend_under` several at once from one product of queries and
keys; `attend_causally` and `ItemBlocks` compute the same without a mask: the first skips the future, the second attends
within each item and never forms the row's full square, which is faster for long rows (`benchmarks/attention.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from dasearch.data.rows import PAD_SEGMENT
from dasearch.models.stacking import take

SQUARE_TOKENS = (
    256  # longest row whose square of scores is formed; above it the CPU's fused kernels win (benchmarks/attention.py)
)
HALF_TILE = 64  # tokens of a row; up to here CUDA's memory-efficient kernel beats flash's, whose tiles are twice that
SHORT_ROWS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
ALIGNED = 8  # a mask's last axis is stored in multiples of it, as CUDA's fused attention wants


class MaskMode(StrEnum):
    """Whether the attention mask is applied before or after the softmax."""

    ADDITIVE = "additive"  # minus infinity before the softmax
    POST_SOFTMAX = (
        "post_softmax"  # as printed in the paper: the future leaks through the normaliser; for comparison only
    )


class Projected(NamedTuple):
    """Queries (scaled), keys and values, each ``(batch, heads, tokens, head width)``; queries may cover fewer tokens."""

    queries: Tensor
    keys: Tensor
    values: Tensor

    def with_key(self, extra: Keys) -> Projected:
        """The same queries with further keys and values prepended."""
        return Projected(self.queries, _in_front(extra.keys, self.keys), _in_front(extra.values, self.values))


class Keys(NamedTuple):
    """Keys and values without queries, each ``(batch, heads, tokens, head width)``."""

    keys: Tensor
    values: Tensor


def _in_front(extra: Tensor, parts: Tensor) -> Tensor:
    """Concatenation along tokens, in token-major memory layout, which a GPU copies and reads fastest."""
    if not parts.is_cuda:
        return torch.cat([extra, parts], dim=2)
    return torch.cat([extra.transpose(1, 2), parts.transpose(1, 2)], dim=1).transpose(1, 2)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The additive form of a mask: 0 where a query may attend, minus infinity elsewhere.

    Shapes: mask ``(batch, queries, keys)`` bool -> ``(batch, 1, queries, keys)``.
    """
    batch, queries, keys = mask.shape
    stored = torch.full((batch, queries, -keys % ALIGNED + keys), -torch.inf, dtype=dtype, device=mask.device)
    bias = stored[..., :keys]
    bias.masked_fill_(mask, 0.0)
    return bias[:, None]


def attend_under(
    projected: Projected, biases: Sequence[Tensor], mode: MaskMode = MaskMode.ADDITIVE
) -> tuple[Tensor, ...]:
    """Attention under each of several masks, given as ``biases`` made by `additive`.

    On a CPU one product of queries and keys is shared, which for rows of up to `SQUARE_TOKENS` is faster than a fused kernel
    per mask, above all in the backward pass.

    Shapes: each bias ``(batch, 1, queries, keys)`` -> each ``(batch, queries, heads * head width)``.
    """
    queries, keys, values = projected
    if mode is MaskMode.ADDITIVE and queries.is_cuda:
        outputs = [F.scaled_dot_product_attention(*projected, attn_mask=bias, scale=1.0) for bias in biases]
    else:
        scores = queries @ keys.transpose(-1, -2)
        outputs = [_weights(scores, bias, mode) @ values for bias in biases]
    return tuple(out.transpose(1, 2).flatten(2) for out in outputs)


def _weights(scores: Tensor, bias: Tensor, mode: MaskMode) -> Tensor:
    if mode is MaskMode.ADDITIVE:
        return torch.softmax(scores + bias, dim=-1)
    return torch.softmax(scores, dim=-1) * (bias == 0)


def attend(projected: Projected, mask: Tensor, mode: MaskMode = MaskMode.ADDITIVE) -> Tensor:
    """Attention under a boolean mask (True: may attend).

    Shapes: mask ``(batch, queries, keys)`` -> ``(batch, queries, heads * head width)``.
    """
    queries, keys, values = projected
    if mode is MaskMode.ADDITIVE:
        out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask[:, None], scale=1.0)
    else:
        out = (torch.softmax(queries @ keys.transpose(-1, -2), dim=-1) * mask[:, None]) @ values
    return out.transpose(1, 2).flatten(2)


def attend_causally(projected: Projected) -> Tensor:
    """`attend` under the causal mask, for rows padded on the right: a real query never comes after a padded key.

    Shapes: -> ``(batch, tokens, heads * head width)``.
    """
    short = projected.queries.is_cuda and projected.keys.shape[2] <= HALF_TILE
    with sdpa_kernel(SHORT_ROWS) if short else nullcontext():
        out = F.scaled_dot_product_attention(*projected, is_causal=True, scale=1.0)
    return out.transpose(1, 2).flatten(2)


class ItemBlocks:
    """Rows split into their segments, each padded to the longest, so that `attend` equals attention under the context mask.

    Args:
        segments: ``(batch, m)``; a segment's tokens are contiguous, -1 is padding on the right.
        keyed: ``(batch, n)``, the segment that attends to each of n keys; None: one key for all segments.
    """

    def __init__(self, segments: Tensor, keyed: Tensor | None = None) -> None:
        batch, m = segments.shape
        places = torch.arange(m, device=segments.device).expand(batch, m)
        real = segments != PAD_SEGMENT
        first = torch.ones_like(real)
        first[:, 1:] = segments[:, 1:] != segments[:, :-1]
        first &= real
        run = first.cumsum(1) - 1
        within = places - torch.where(first, places, 0).cummax(1).values
        self._count, self._longest = int(run.max()) + 1, int(within[real].max()) + 1
        row = torch.arange(batch, device=segments.device)[:, None]
        slots = (row * self._count + run) * self._longest + within
        self._slot_of_token = torch.where(real, slots, 0)
        self._token_of_slot = segments.new_zeros(batch * self._count * self._longest)
        self._token_of_slot[slots[real]] = (row * m + places)[real]
        filled = torch.zeros_like(self._token_of_slot, dtype=torch.bool)
        filled[slots[real]] = True
        keys = filled.view(-1, 1, 1, self._longest)
        keys[..., 0] = True  # an empty block attends to one key, to avoid NaN
        self._bias = torch.zeros(keys.shape, device=keys.device).masked_fill(~keys, -torch.inf)
        self._key_of_block: Tensor | None = None
        self._key_bias: Tensor | float = 0.0
        if keyed is not None:
            of_block = segments.new_full((batch, self._count), PAD_SEGMENT).masked_scatter_(
                torch.arange(self._count, device=segments.device) <= run.max(1, keepdim=True).values, segments[first]
            )
            match = (of_block[:, :, None] == keyed[:, None, :]).max(2)
            self._key_of_block = (match.indices + row * keyed.shape[1]).flatten()
            seen = match.values.view(-1, 1, 1, 1)
            self._key_bias = torch.zeros(seen.shape, device=keys.device).masked_fill(~seen, -torch.inf)

    def attend(self, projected: Projected, key: Keys | None) -> Tensor:
        """Attention of each item's tokens to each other and to their key among ``key`` ``(batch, heads, n, head width)``.

        Shapes: -> ``(batch, tokens, heads * head width)``.
        """
        heads, width = projected.queries.shape[1], projected.queries.shape[3]
        blocks = Projected(*(self._cut(part) for part in projected))
        bias = self._bias.to(blocks.queries.dtype)
        if key is not None:
            blocks = blocks.with_key(Keys(*(self._key_of(part) for part in key)))
            bias = torch.cat([torch.zeros_like(bias[..., :1]) + self._key_bias, bias], dim=-1)
        out = F.scaled_dot_product_attention(*blocks, attn_mask=bias, scale=1.0)
        flat = out.transpose(1, 2).reshape(-1, heads * width)
        return take(flat, self._slot_of_token)

    def _key_of(self, part: Tensor) -> Tensor:
        """Each block's own key or value: ``(batch, heads, n, head width)`` -> ``(batch * segments, heads, 1, head width)``."""
        if self._key_of_block is None:
            return part.repeat_interleave(self._count, dim=0)
        return _regrouped(part, self._key_of_block, 1)

    def _cut(self, part: Tensor) -> Tensor:
        """Rows as blocks: ``(batch, heads, tokens, head width)`` -> ``(batch * segments, heads, longest, head width)``."""
        return _regrouped(part, self._token_of_slot, self._longest)


def _regrouped(part: Tensor, places: Tensor, size: int) -> Tensor:
    """Gather tokens of all rows by flat indices into groups of ``size``.

    Shapes: part ``(batch, heads, tokens, head width)``, places ``(groups * size,)`` -> ``(groups, heads, size, head width)``.
    """
    heads, width = part.shape[1], part.shape[3]
    flat = part.transpose(1, 2).reshape(-1, heads * width)
    return take(flat, places).view(-1, size, heads, width).transpose(1, 2)
