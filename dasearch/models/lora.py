"""Low-rank updates of the frozen queries and values at an attention site, switched on by a layout's numbers.

Hu et al. 2022 (LoRA), https://arxiv.org/abs/2106.09685, sec. 4.1: ``W0 x + alpha / r B A x`` for the query and the value
projection; B starts at zero, A as in the authors' code (uniform, of variance ``1 / 3 width``; the paper says Gaussian alone).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from dasearch.layout import LORA, UNITS, Choice
from dasearch.models.attention import Projected
from dasearch.models.backbone import DecoderBlock, Positions
from dasearch.models.stacking import Linear, gather_tokens

RANK = 8
ALPHA = 16.0


class LowRank(nn.Module):
    """``B (s A x)``, zero at the start.

    Shapes: x ``(..., inputs)``, scale ``(rank,)`` or ``(rows, 1, rank)`` -> ``(..., outputs)``.
    """

    def __init__(self, inputs: int, outputs: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.down, self.up = Linear(inputs, rank, bias=False), Linear(rank, outputs, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        inner = self.down(x)
        update: Tensor = self.up(inner * scale.to(inner.dtype))
        return update


class LoRA(nn.Module):
    """What LoRA trains at one attention site: the queries' update and the values', of the same input.

    Args:
        block: the frozen layer, whose projections have the sizes.
        rank: of both, at most; a choice's own width counts so many of it.
        alpha: the updates' scale times their rank.
    """

    def __init__(self, block: DecoderBlock, width: int, *, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        self.rank, self.alpha = rank, alpha
        self.queries = LowRank(width, block.query_width, rank, generator)
        self.values = LowRank(width, block.value_width, rank, generator)

    def unused(self, choice: Choice) -> dict[str, Tensor]:
        """Which numbers a choice leaves unused, bool of the parameters' shapes, by their names."""
        if not choice.lora:
            return {name: torch.ones_like(parameter, dtype=torch.bool) for name, parameter in self.named_parameters()}
        beyond = torch.arange(self.rank) >= (choice.width or self.rank)
        found = {}
        for name, part in (("queries", self.queries), ("values", self.values)):
            found[f"{name}.down.weight"] = beyond[:, None].expand(-1, part.down.in_features)
            found[f"{name}.up.weight"] = beyond.expand(part.up.out_features, -1)
        return found if beyond.any() else {}

    def scale(self, choice: Tensor) -> Tensor:
        """``alpha / r`` for the r units that count, 0 for the others and where the choice is not LoRA.

        Shapes: choice ``(k,)`` or ``(k, rows, 1, 1)``, as `dasearch.layout.Layout.tensor` numbers them -> ``(..., rank)``.
        """
        units = choice[UNITS].clamp(max=self.rank)
        counted = torch.arange(self.rank, device=units.device) < units
        return choice[LORA] * self.alpha / units * counted

    def forward(
        self,
        block: DecoderBlock,
        projected: Projected,
        normed: Tensor,
        positions: Positions,
        choice: Tensor,
        at: Tensor | None = None,
    ) -> Projected:
        """The frozen projection with the updates, which rotary positions turn as they turn the queries.

        Shapes: normed ``(batch, tokens, width)``, choice as of `scale`, at ``(batch, n)``, the tokens whose queries are
        ``projected`` (None: all).
        """
        scale = self.scale(choice)
        chosen, places = (normed, positions) if at is None else (gather_tokens(normed, at), positions.at(at))
        queries = projected.queries + block.queries(self.queries(chosen, scale), places)
        return Projected(queries, projected.keys, projected.values + block.values(self.values(normed, scale)))


def add_lora(
    layers: Iterable[tuple[nn.ModuleDict, DecoderBlock]],
    width: int,
    ranks: Mapping[str, int],
    alpha: float,
    generator: torch.Generator,
) -> None:
    """LoRA of these ranks, by site, on the projections of layers.

    The generator is left as it is, so that what is drawn after it is drawn as without LoRA.
    """
    own = generator.clone_state()
    for places, block in layers:
        for site, rank in ranks.items():
            places[site] = LoRA(block, width, rank=rank, alpha=alpha, generator=own)


def unused_updates(lora: nn.ModuleDict, choices: Mapping[str, Choice]) -> dict[str, Tensor]:
    """`LoRA.unused` of a layer's sites, each under its choice, by the parameters' names in the layer."""
    return {
        f"lora.{site}.{name}": mask
        for site, update in lora.items()
        for name, mask in update.unused(choices[site]).items()  # type: ignore[operator]
    }
