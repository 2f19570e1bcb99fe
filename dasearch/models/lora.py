"""Low-rank updates of the frozen queries and values at an attention site, switched on by a layout's numbers.

Hu et al. 2022 (LoRA), https://arxiv.org/abs/2106.09685, sec. 4.1: ``W0 x + alpha / r B A x`` for the query and the value
projection; B is initialised to zero, A as in the authors' code (uniform, of variance ``1 / 3 width``; the paper only says
Gaussian).
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
    """``B (s A x)``, zero at initialisation.

    Shapes: x ``(..., inputs)``, scale ``(rank,)`` or ``(rows, 1, rank)`` -> ``(..., outputs)``.
    """

    def __init__(self, inputs: int, outputs: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.down, self.up = Linear(inputs, rank, bias=False), Linear(rank, outputs, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        """The update of ``x``, with each rank scaled by ``scale``; shapes as of the class."""
        inner = self.down(x)
        update: Tensor = self.up(inner * scale.to(inner.dtype))
        return update


class LoRA(nn.Module):
    """LoRA at one attention site: updates of the queries and of the values, with the same input.

    Args:
        block: the frozen layer, whose projections determine the sizes.
        width: width of the language model.
        rank: maximum rank of both updates; a choice with its own width uses only that many.
        alpha: scale of the updates times their rank.
        generator: random generator of the initial weights.
    """

    def __init__(self, block: DecoderBlock, width: int, *, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        self.rank, self.alpha = rank, alpha
        self.queries = LowRank(width, block.query_width, rank, generator)
        self.values = LowRank(width, block.value_width, rank, generator)

    def unused(self, choice: Choice) -> dict[str, Tensor]:
        """Masks of the numbers that a choice leaves unused: bool, with the parameters' shapes, by their names."""
        if not choice.lora:
            return {name: torch.ones_like(parameter, dtype=torch.bool) for name, parameter in self.named_parameters()}
        beyond = torch.arange(self.rank) >= (choice.width or self.rank)
        masks = {}
        for name, part in (("queries", self.queries), ("values", self.values)):
            masks[f"{name}.down.weight"] = beyond[:, None].expand(-1, part.down.in_features)
            masks[f"{name}.up.weight"] = beyond.expand(part.up.out_features, -1)
        return masks if beyond.any() else {}

    def scale(self, choice: Tensor) -> Tensor:
        """``alpha / r`` for the r ranks in use, 0 for the others and for choices other than LoRA.

        Shapes: choice ``(k,)`` or ``(k, rows, 1, 1)``, columns as of `dasearch.layout.Layout.tensor` -> ``(..., rank)``.
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
        """The frozen projection with the updates, which are rotated like the queries.

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
    """Add LoRA modules with these ranks, by site, to layers.

    The generator's state is preserved, so that later draws are the same as without LoRA.
    """
    own = generator.clone_state()
    for places, block in layers:
        for site, rank in ranks.items():
            places[site] = LoRA(block, width, rank=rank, alpha=alpha, generator=own)


def unused_updates(lora: nn.ModuleDict, choices: Mapping[str, Choice]) -> dict[str, Tensor]:
    """`LoRA.unused` of a layer's sites, each with its choice, by the parameters' names in the layer."""
    return {
        f"lora.{site}.{name}": mask
        for site, update in lora.items()
        for name, mask in update.unused(choices[site]).items()  # type: ignore[operator]
    }
