"""Small spaces, landscapes and acquisitions that several tests use."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from botorch.acquisition import AcquisitionFunction
from torch import Tensor

from dasearch.bayes import Choices


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layered(layers: int, sites: int = 3, size: int = 2) -> Choices:
    return Choices.named({f"layer{k + 1:02d}.site{s}": size for k in range(layers) for s in range(sites)})


def every(choices: Choices) -> Tensor:
    """All points, ``(count, d)``."""
    return torch.tensor(list(itertools.product(*(range(size) for size in choices.sizes))), dtype=torch.float64)


class Function(AcquisitionFunction):
    """A plain function of codes ``(m, d)`` as an acquisition."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__(model=None)
        self.function = function

    def forward(self, X: Tensor) -> Tensor:
        return self.function(X.squeeze(-2))


class Landscape:
    """Random effects of choices and of pairs of choices."""

    def __init__(self, choices: Choices, seed: int = 0) -> None:
        count = sum(choices.sizes)
        self.offsets = torch.tensor([0, *choices.sizes[:-1]]).cumsum(0)
        self.single = torch.randn(count, generator=seeded(seed), dtype=torch.float64)
        self.pairs = torch.randn(count, count, generator=seeded(seed + 1), dtype=torch.float64).triu(1)

    def __call__(self, codes: Tensor) -> Tensor:
        one_hot = torch.zeros(len(codes), len(self.single), dtype=torch.float64)
        one_hot.scatter_(1, codes.long() + self.offsets, 1.0)
        return one_hot @ self.single + ((one_hot @ self.pairs) * one_hot).sum(-1)
