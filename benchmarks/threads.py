"""Two threads against one by the size of a step, with passive waiting: where `WORK_OF_A_THREAD` comes from.

Run: python benchmarks/threads.py. A frozen layer with adapters, forward and backward, both sides in turns in this process;
OMP_WAIT_POLICY=ACTIVE or GOMP_SPINCOUNT=N in front measures another way of waiting.
"""

from __future__ import annotations

from dasearch.threads import WAITING, WORK_OF_A_THREAD, fitting, using

# isort: split
import os  # dasearch says how threads wait before torch is there
import time

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTHS = {64: 4, 96: 6, 576: 9}  # heads: tiny-opt as the quickstart and amazon-scientific have it, SmolLM2
ROWS = ((4, 16), (16, 16), (16, 48), (16, 96), (64, 48), (64, 96), (64, 256))  # rows, tokens
LARGEST = 2_000_000
NUMBERS = 2e7  # that a side goes through, so that small steps are repeated more often
LEAST = 8


def weights(width: int) -> tuple[list[Tensor], list[Tensor]]:
    """Of one layer, and of its adapter."""
    generator = torch.Generator().manual_seed(0)

    def matrix(out: int, into: int) -> Tensor:
        return torch.randn(out, into, generator=generator) / into**0.5

    frozen = [matrix(3 * width, width), matrix(width, width), matrix(4 * width, width), matrix(width, 4 * width)]
    return frozen, [matrix(32, width).requires_grad_(), matrix(width, 32).requires_grad_()]


def step(x: Tensor, frozen: list[Tensor], adapter: list[Tensor], heads: int) -> None:
    rows, tokens, width = x.shape
    down, up = adapter
    projected = F.linear(F.layer_norm(x, (width,)), frozen[0]).view(rows, tokens, 3, heads, width // heads)
    attended = F.scaled_dot_product_attention(*projected.permute(2, 0, 3, 1, 4)).transpose(1, 2).reshape(x.shape)
    first = F.linear(attended, frozen[1])
    x = x + first + F.linear(torch.relu(F.linear(first, down)), up)
    second = F.linear(torch.relu(F.linear(F.layer_norm(x, (width,)), frozen[2])), frozen[3])
    x = x + second + F.linear(torch.relu(F.linear(second, down)), up)
    torch.autograd.grad(x.square().mean(), adapter)


def measure(rows: int, tokens: int, width: int, heads: int) -> None:
    frozen, adapter = weights(width)
    x = torch.randn(rows, tokens, width, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(max(LEAST, int(NUMBERS / x.numel()))):
        for threads, seconds in found.items():
            with using(threads):
                step(x, frozen, adapter, heads)  # the team is made anew
                started = time.perf_counter()
                step(x, frozen, adapter, heads)
                seconds.append(time.perf_counter() - started)
    one, two = (sorted(seconds)[len(seconds) // 2] for seconds in found.values())
    least = min(found[2]) / min(found[1])
    size = f"width {width:>4}, {rows:>3} rows of {tokens:>3} tokens, work {x.numel():>9,}"
    chosen = fitting(x.numel(), most=2)
    print(f"{size}: one {1e3 * one:>7.2f} ms, two / one {two / one:.2f} (of the quickest {least:.2f}); chosen {chosen}")


def main() -> None:
    print(f"{WAITING}; {WORK_OF_A_THREAD:,} a thread; load average {os.getloadavg()[0]:.1f}")
    for width, heads in WIDTHS.items():
        for rows, tokens in ROWS:
            if rows * tokens * width <= LARGEST:
                measure(rows, tokens, width, heads)


if __name__ == "__main__":
    main()
