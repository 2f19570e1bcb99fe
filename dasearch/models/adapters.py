"""Serial and parallel bottleneck adapters whose placement is a tensor.

Liu et al. 2024 (DARec), sec. 2.2.5 and 2.3.3; Houlsby et al. 2019; He et al. 2022.
Differs from the paper: ReLU between the projections (``activation="none"`` is the printed form).
"""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dasearch.models.stacking import Linear, per_row

BOTTLENECK = 64  # DARec fig. 8: best of 16..256 on Pantry
INIT_SD = 0.01  # of the down-projection, as in the code of DARec's reference [8]


class Activation(StrEnum):
    RELU = "relu"
    GELU = "gelu"
    NONE = "none"


class AdapterInit(StrEnum):
    ZERO = "zero"  # W2 = 0: the adapter starts as "no update"
    NORMAL = "normal"  # W2 with standard deviation 0.01


class ParallelReduce(StrEnum):
    MEAN = "mean"
    SUM = "sum"


class BottleneckAdapter(nn.Module):
    """Low-rank update ``W2 f(W1 x + b1) + b2``, zero at the start.

    Shapes: x ``(..., width)`` -> ``(..., width)``.
    """

    def __init__(
        self,
        width: int,
        *,
        bottleneck: int = BOTTLENECK,
        activation: Activation = Activation.RELU,
        init: AdapterInit = AdapterInit.ZERO,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.down = Linear(width, bottleneck)
        self.up = Linear(bottleneck, width)
        self._initialise(init, generator)

    def _initialise(self, init: AdapterInit, generator: torch.Generator) -> None:
        nn.init.normal_(self.down.weight, std=INIT_SD, generator=generator)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.bias)
        if init is AdapterInit.ZERO:
            nn.init.zeros_(self.up.weight)
        else:
            nn.init.normal_(self.up.weight, std=INIT_SD, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.down(x)
        if self.activation is Activation.RELU:
            inner = F.relu(inner)
        elif self.activation is Activation.GELU:
            inner = F.gelu(inner)
        update: Tensor = self.up(inner)
        return update


def place(
    sublayer_out: Tensor,
    sublayer_in: Tensor,
    adapter: nn.Module,
    parallel: Tensor,
    *,
    reduce: ParallelReduce = ParallelReduce.MEAN,
    residual: bool = True,
) -> Tensor:
    """Serial where ``parallel`` is 0, parallel where it is 1, without branching.

    Serial is ``SA + B(SA)``, parallel ``(SA + h + B(h)) / 2`` with ``h`` the sublayer's input (DARec sec. 2.3.3).
    ``reduce="sum", residual=False`` is the parallel adapter of He et al. 2022, ``SA + B(h)``. With x what the adapter
    reads, all of them are ``a (SA + B(x)) + c h``.

    Shapes: sublayer_out, sublayer_in ``(rows, tokens, width)``, parallel ``()`` or ``(rows, 1, 1)``
    -> ``(rows, tokens, width)``.
    """
    kind = (
        sublayer_out.dtype
    )  # a trainer's autocast may project in bfloat16 and norm in float32, which lerp does not mix
    sublayer_in, parallel = sublayer_in.to(kind), parallel.to(kind)
    updated = sublayer_out + adapter(torch.lerp(sublayer_out, sublayer_in, parallel))
    if reduce is ParallelReduce.MEAN:
        half = parallel / 2
        return torch.lerp(updated, sublayer_in, half) if residual else updated * (1 - half)
    return torch.addcmul(updated, parallel, sublayer_in) if residual else updated


class MaskRouter(nn.Module):
    """Composes the causal and the context branch by token: ``beta = softmax([q; p] W + b)`` (DARec sec. 2.3.3, Router).

    Starts at one half each. Shapes: q, p ``(rows, tokens, width)`` -> ``(rows, tokens, width)``.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = Linear(2 * width, 2)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def share(self, q: Tensor, p: Tensor) -> Tensor:
        """The weight of q, ``(rows, tokens, 1)``; that of p is the rest.

        A softmax over two is the sigmoid of their difference: one sum over the branches, which need not stand side by side.
        """
        weight = (self.gate.weight[..., 0, :] - self.gate.weight[..., 1, :]).to(q.dtype)
        bias = (self.gate.bias[..., 0] - self.gate.bias[..., 1]).to(q.dtype)
        if weight.dim() == 2:  # of several candidates
            weight, bias = per_row(weight, len(q))[:, None], per_row(bias, len(q))[:, None, None]
        of_q, of_p = weight.chunk(2, dim=-1)
        return torch.sigmoid((q * of_q + p * of_p).sum(-1, keepdim=True) + bias)

    def forward(self, q: Tensor, p: Tensor) -> Tensor:
        return torch.lerp(p, q, self.share(q, p))
