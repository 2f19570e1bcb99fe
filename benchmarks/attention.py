"""Context-branch attention: within each item against the masked square of the whole row.

Run: python benchmarks/attention.py. Both sides run in this process, forward and backward, on the same numbers; the ratio
of their median seconds is printed for a short and a long row.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from dasearch.models.attention import ItemBlocks, Keys, Projected, attend
from dasearch.models.masks import context_mask

HEADS, HEAD_WIDTH, REPEATS = 12, 64, 9
ROWS = {"10 items of 7 tokens": (16, 10, 7), "50 items of 31 tokens": (2, 50, 31)}  # rows, items, tokens an item


def median_seconds(run: Callable[[], Tensor], leaves: list[Tensor]) -> float:
    """Of forward and backward."""
    found = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        torch.autograd.grad(run().square().sum(), leaves)
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def main() -> None:
    for name, (rows, items, tokens) in ROWS.items():
        segments = torch.arange(items).repeat_interleave(tokens).expand(rows, -1).contiguous()
        generator = torch.Generator().manual_seed(0)
        shape = (rows, HEADS, items * tokens, HEAD_WIDTH)
        leaves = [torch.randn(shape, generator=generator).requires_grad_() for _ in range(3)]
        parts = Projected(*leaves)
        key = Keys(*(torch.randn(rows, HEADS, 1, HEAD_WIDTH, generator=generator) for _ in range(2)))
        whole, blocks = context_mask(segments), ItemBlocks(segments)
        torch.testing.assert_close(blocks.attend(parts, key), attend(parts.with_key(key), whole))
        dense = median_seconds(partial(attend, parts.with_key(key), whole), leaves)
        cut = median_seconds(partial(blocks.attend, parts, key), leaves)
        print(f"{name}: whole row {1e3 * dense:.1f} ms, within items {1e3 * cut:.1f} ms, ratio {dense / cut:.1f}")


if __name__ == "__main__":
    main()
