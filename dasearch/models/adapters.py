"""Serial and parallel bottleneck adapters whose placement is a tensor.

Liu et al. 2024 (DARec), sec. 2.2.5 and 2.3.3; Houlsby et al. 2019; He et al. 2022.
Differs from the paper: ReLU between the projections (``activation="none"`` is the printed form).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from dasearch.layout import ACTIVE, JOINS, READS, UNITS, Choice, ModelKind
from dasearch.models.lora import ALPHA, RANK
from dasearch.models.stacking import Linear, per_row

BOTTLENECK = 64  # DARec fig. 8: best of 16..256 on Pantry
INIT_SD = 0.01  # of the down-projection, as in the code of DARec's reference [8]


class Activation(StrEnum):
    """The nonlinearity between an adapter's two projections."""

    RELU = "relu"
    GELU = "gelu"
    NONE = "none"


class AdapterInit(StrEnum):
    """Initialisation of an adapter's second projection."""

    ZERO = "zero"  # W2 = 0: the adapter starts as "no update"
    NORMAL = "normal"  # W2 with standard deviation 0.01


class ParallelReduce(StrEnum):
    """How a parallel adapter's output is combined with its sublayer's."""

    MEAN = "mean"
    SUM = "sum"


class BottleneckAdapter(nn.Module):
    """Low-rank update ``W2 f(W1 x + b1) + b2``, zero at initialisation.

    Shapes: x ``(..., width)``, units ``()`` or ``(rows, 1, 1)``, the number of bottleneck units in use (None: all)
    -> ``(..., width)``. Unused units get no gradient.

    Examples:
        >>> import torch
        >>> from dasearch.models import BottleneckAdapter
        >>> adapter = BottleneckAdapter(8, bottleneck=4, generator=torch.Generator().manual_seed(0))
        >>> adapter(torch.ones(2, 8)).abs().max().item()
        0.0
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

    def unused(self, choice: Choice) -> dict[str, Tensor]:
        """Masks of the numbers that a choice leaves unused: bool, with the parameters' shapes, by their names."""
        unit = torch.arange(self.down.out_features) >= (choice.width or self.down.out_features)
        if not choice.adapts:
            return {name: torch.ones_like(parameter, dtype=torch.bool) for name, parameter in self.named_parameters()}
        by_name = {"down.weight": unit[:, None].expand(-1, self.down.in_features), "down.bias": unit}
        return {**by_name, "up.weight": unit.expand(self.up.out_features, -1)} if unit.any() else {}

    def forward(self, x: Tensor, units: Tensor | None = None) -> Tensor:
        """The update of ``x``; shapes as of the class."""
        inner = self.down(x)
        if self.activation is Activation.RELU:
            inner = F.relu(inner)
        elif self.activation is Activation.GELU:
            inner = F.gelu(inner)
        if units is not None:
            inner = inner * (torch.arange(inner.shape[-1], device=inner.device) < units)
        update: Tensor = self.up(inner)
        return update


class AdapterSettings(BaseModel):
    """The adapter settings shared by all models with bottleneck adapters.

    Examples:
        >>> from dasearch import Choice
        >>> from dasearch.models import AdapterSettings
        >>> AdapterSettings(kind="darec", bottleneck=4).too_wide(Choice("wide", "w", width=16))
        "has 16 units and the model's adapters 4; set model.bottleneck=16"
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: ModelKind
    bottleneck: int = Field(BOTTLENECK, ge=1, description="width between an adapter's two projections (fig. 8)")
    activation: Activation = Field(Activation.RELU, description="between them; none is the printed form")
    adapter_init: AdapterInit = Field(
        AdapterInit.ZERO, description="of the up-projection: no update at first, or sd 0.01"
    )
    parallel_reduce: ParallelReduce = Field(
        ParallelReduce.MEAN, description="how a parallel adapter joins its sublayer"
    )
    parallel_residual: bool = Field(True, description="whether a parallel adapter adds its own input")
    lora_rank: int = Field(RANK, ge=1, description="rank of the updates where a search space has LoRA")
    lora_alpha: float = Field(ALPHA, gt=0, description="their scale times their rank")

    @property
    def layout_facts(self) -> dict[str, Any]:
        """Fields of ``layout.json`` that are specific to this kind of model."""
        return {
            "bottleneck": self.bottleneck,
            "activation": self.activation.value,
            "parallel_residual": self.parallel_residual,
            "lora_rank": self.lora_rank,
            "lora_alpha": self.lora_alpha,
        }

    def most(self, choice: Choice) -> int:
        """The default width of a choice without its own: bottleneck units, or the rank of a LoRA choice."""
        return self.lora_rank if choice.lora else self.bottleneck

    def too_wide(self, choice: Choice) -> str | None:
        """The rest of an error message for a choice wider than the model; None if it fits."""
        if choice.width is None or choice.width <= self.most(choice):
            return None
        if choice.lora:
            return f"has rank {choice.width} and the model's LoRA {self.lora_rank}; set model.lora_rank={choice.width}"
        return (
            f"has {choice.width} units and the model's adapters {self.bottleneck}; set model.bottleneck={choice.width}"
        )

    def place(self, out: Tensor, seen: Tensor, adapter: nn.Module, choice: Tensor) -> Tensor:
        """Apply the function `place` with these settings for parallel adapters."""
        return place(out, seen, adapter, choice, reduce=self.parallel_reduce, residual=self.parallel_residual)

    def adapter(self, width: int, generator: torch.Generator, units: int | None = None) -> BottleneckAdapter:
        """A new adapter with ``units`` bottleneck units (None: the settings' bottleneck)."""
        return BottleneckAdapter(
            width,
            bottleneck=units or self.bottleneck,
            activation=self.activation,
            init=self.adapter_init,
            generator=generator,
        )


def unused_numbers(layer: nn.Module, names: Sequence[str], choices: Sequence[Choice]) -> dict[str, Tensor]:
    """`BottleneckAdapter.unused` of a layer's adapters, each with its choice, by the parameters' names in the layer."""
    return {
        f"{name}.{key}": mask
        for name, choice in zip(names, choices, strict=True)
        for key, mask in layer.get_submodule(name).unused(choice).items()  # type: ignore[operator]
    }


def place(
    sublayer_out: Tensor,
    sublayer_in: Tensor,
    adapter: nn.Module,
    choice: Tensor,
    *,
    reduce: ParallelReduce = ParallelReduce.MEAN,
    residual: bool = True,
) -> Tensor:
    """Apply an adapter at the placement given by the choice's numbers, without branching on them.

    Serial is ``SA + B(SA)``, parallel ``(SA + h + B(h)) / 2`` with ``h`` the sublayer's input (DARec sec. 2.3.3), or as modified
    by ``reduce`` and ``residual``; none is ``SA``. The parallel adapter of He et al. 2022, ``SA + B(h)``, reads h and is added
    like a serial one. With x the adapter's input and g 0 or 1, all of them are ``a (SA + g B(x)) + c h``.

    Shapes: sublayer_out, sublayer_in ``(rows, tokens, width)``, choice ``(k,)`` or ``(k, rows, 1, 1)`` of
    `dasearch.layout.READS`, ``ACTIVE``, ``JOINS``, and ``UNITS`` if k is at least 4 -> ``(rows, tokens, width)``.
    """
    kind = (
        sublayer_out.dtype
    )  # a trainer's autocast may project in bfloat16 and norm in float32, which lerp does not mix
    sublayer_in, numbers = sublayer_in.to(kind), choice.to(kind)
    read = torch.lerp(sublayer_out, sublayer_in, numbers[READS])
    update = adapter(read, choice[UNITS]) if len(choice) > UNITS else adapter(read)
    updated, joins = torch.addcmul(sublayer_out, numbers[ACTIVE], update.to(kind)), numbers[JOINS]
    if reduce is ParallelReduce.MEAN:
        half = joins / 2
        return torch.lerp(updated, sublayer_in, half) if residual else updated * (1 - half)
    return torch.addcmul(updated, joins, sublayer_in) if residual else updated


class MaskRouter(nn.Module):
    """Mixes the causal and the context branch per token: ``beta = softmax([q; p] W + b)`` (DARec sec. 2.3.3, Router).

    Shapes: q, p ``(rows, tokens, width)`` -> ``(rows, tokens, width)``.

    Args:
        start: initial weight of q, between 0 and 1.
    """

    def __init__(self, width: int, start: float = 0.5) -> None:
        super().__init__()
        self.gate = Linear(2 * width, 2)
        nn.init.zeros_(self.gate.weight)
        half = math.log(start / (1 - start)) / 2
        self.gate.bias.data = torch.tensor([half, -half])

    def share(self, q: Tensor, p: Tensor) -> Tensor:
        """The weight of q, ``(rows, tokens, 1)``; the weight of p is one minus it.

        A softmax over two is the sigmoid of their difference: one sum over the branches, without concatenating them.
        """
        weight = (self.gate.weight[..., 0, :] - self.gate.weight[..., 1, :]).to(q.dtype)
        bias = (self.gate.bias[..., 0] - self.gate.bias[..., 1]).to(q.dtype)
        if weight.dim() == 2:  # of several candidates
            weight, bias = per_row(weight, len(q))[:, None], per_row(bias, len(q))[:, None, None]
        of_q, of_p = weight.chunk(2, dim=-1)
        return torch.sigmoid((q * of_q + p * of_p).sum(-1, keepdim=True) + bias)

    def forward(self, q: Tensor, p: Tensor, active: Tensor | None = None) -> Tensor:
        """The mixture of q and p; rows whose ``active``, ``()`` or ``(rows, 1, 1)``, is 0 return q. None: all are active."""
        share = self.share(q, p)
        if active is not None:
            share = torch.lerp(torch.ones_like(share), share, active.to(share.dtype))
        return torch.lerp(p, q, share)
