"""RA-Rec: two towers over one frozen language model, each reading ID vectors and instruction tokens in every layer.

SPEC 4. A user's row is the hard prompt with the history, an item's row its text; the prefix of a layer is
``[c || p]``, instruction tokens and the projected ID vector; the score is the dot product of the two pooled last states.
Sites of a layer: ``user`` and ``item`` (serial: the prefix inside the frozen softmax, parallel: beside it) and
``instruction`` (serial: instruction tokens are read, parallel: they are not).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dasearch.data import ItemRows, Rows, SequenceBatch
from dasearch.layout import READS, ModelKind
from dasearch.models.base import ParameterGroup, Scorer, layer_gates, log_frequency, stacked
from dasearch.models.prefix import Injection, PrefixModel, PrefixSettings, Refine

USER, ITEM, INSTRUCTION = range(3)
ITEM_BATCH = 256  # item rows of one forward pass when all are scored


class ItemBias(StrEnum):
    """Initialisation of a trained bias per item; none: there is no such bias."""

    NONE = "none"
    LOG_FREQUENCY = "log-frequency"


class RARecSettings(PrefixSettings):
    """Interpretations of the source that a study can choose between, and the sizes of the model."""

    kind: Literal[ModelKind.RA_REC] = Field(description="RA-Rec's study")
    instruction: bool = Field(True, description="learned instruction tokens; without them only the ID vector is read")
    item_bias: ItemBias = Field(
        ItemBias.NONE, description="a trained offset an item (not in the source), from log training frequency"
    )

    @property
    def groups(self) -> tuple[ParameterGroup, ...]:
        """The parameter groups trained by the full model."""
        head = () if self.item_bias is ItemBias.NONE else (ParameterGroup.HEAD,)
        return ParameterGroup.ADAPTERS, *head


class Tower(nn.Module):
    """One side: its prefixes, and their placement under a layout.

    Args:
        prefixes: a `Prefix` for each adapted layer.
        settings: the model's settings.
        site: index of the layout's site that places this side's prefix.
    """

    def __init__(self, prefixes: nn.ModuleList, settings: RARecSettings, *, site: int) -> None:
        super().__init__()
        self.prefixes, self.settings, self.site = prefixes, settings, site

    def layer_prefixes(self, ids: Tensor) -> list[Tensor]:
        """``[c || p]`` of every adapted layer, each ``(batch, tokens, width)``; ids ``(batch, vectors, id width)``."""
        return [prefix(ids, ids.new_zeros(())) for prefix in self.prefixes]

    def injections(self, prefixes: list[Tensor], layers: tuple[int, ...], layout: Tensor) -> dict[int, Injection]:
        """The prefixes that the layers read under the layout, by layer index."""
        if not prefixes:
            return {}
        instructions = self.settings.prefix if self.settings.instruction else 0
        gates = layer_gates(layout, len(prefixes[0]))
        counted = torch.arange(prefixes[0].shape[1], device=layout.device) >= instructions
        return {
            layer: Injection(
                tokens,
                counted | (gates[k, INSTRUCTION, READS] < 0.5).reshape(-1, 1).expand(len(tokens), 1),
                gates[k, self.site, READS],
            )
            for k, (layer, tokens) in enumerate(zip(layers, prefixes, strict=False))
        }


class RARec(PrefixModel):
    """Rows in, states of users and items out; the layout is an argument.

    Arguments are those of `dasearch.models.prefix.PrefixModel`.

    Examples:
        >>> import torch
        >>> from dasearch import Layout
        >>> from dasearch.models import RARec
        >>> from dasearch.models.examples import tiny_backbone, tiny_encoder
        >>> from dasearch.models.ra_rec import RARecSettings
        >>> generator = torch.Generator().manual_seed(0)
        >>> settings = RARecSettings(kind="ra-rec", prefix=2)
        >>> model = RARec(tiny_backbone(), settings, encoder=tiny_encoder(3, 5), n_items=5, generator=generator)
        >>> model.layout_tensor(Layout.parse("SPS-PPS")).shape
        torch.Size([2, 3, 3])
    """

    kind = ModelKind.RA_REC
    groups = {  # noqa: RUF012 (a class variable of the base)
        ParameterGroup.ADAPTERS: ("user_tower", "item_tower"),
        ParameterGroup.HEAD: ("item_bias",),
    }
    settings: RARecSettings

    def build_modules(self, generator: torch.Generator) -> None:
        """Both towers, and the items' biases."""
        settings = self.settings
        refine = Refine.CONCAT if settings.instruction else Refine.NONE
        self.user_tower = Tower(self.build_prefixes(refine, generator), settings, site=USER)
        self.item_tower = Tower(self.build_prefixes(refine, generator), settings, site=ITEM)
        self.item_bias = nn.Parameter(torch.zeros(self.n_items), requires_grad=settings.item_bias is not ItemBias.NONE)

    def user_prefixes(self, batch: SequenceBatch) -> list[Tensor]:
        """Prefixes of the user tower's adapted layers."""
        return self.user_tower.layer_prefixes(self.user_ids(batch))

    def item_prefixes(self, items: Tensor) -> list[Tensor]:
        """Prefixes of the item tower's adapted layers; items ``(k,)``."""
        return self.item_tower.layer_prefixes(self.item_ids(items))

    def tower_states(self, tower: Tower, rows: Rows, prefixes: list[Tensor], layout: Tensor) -> Tensor:
        """Pooled last states of one side's rows: ``(batch, width)``."""
        return self.pooled_states(rows, tower.injections(prefixes, self.replaced, layout))

    def states(self, batch: SequenceBatch, layout: Tensor) -> Tensor:
        """The user tower's pooled states; see `RecommenderModel.states`."""
        return self.tower_states(self.user_tower, batch.rows, self.user_prefixes(batch), layout)

    def item_states(self, rows: Rows, items: Tensor, layout: Tensor) -> Tensor:
        """The item tower's pooled states. Shapes: rows of items ``(k,)`` -> ``(k, width)``."""
        return self.tower_states(self.item_tower, rows, self.item_prefixes(items), layout)

    def product(self, users: Tensor, items: Tensor, biases: Tensor) -> Tensor:
        """``h_u . h_i / sqrt(width) + b_i``; the scale, which the source does not print, keeps products of normed states small.

        Shapes: users ``(batch, width)``, items ``(k, width)``, biases ``(k,)`` -> ``(batch, k)``; all with a leading K for
        several candidates.
        """
        scores: Tensor = users @ items.mT / self.backbone.width**0.5 + biases[..., None, :]
        return scores

    def catalogue_states(self, item_rows: ItemRows, layout: Tensor) -> Tensor:
        """States of all items: ``(items, width)``; for K candidates ``(K, items, width)``."""
        k = stacked(layout)
        chunks = []
        for items in torch.arange(self.n_items).split(ITEM_BATCH):
            rows = Rows.together([item_rows.select(items)] * (k or 1)).to(layout.device)
            states = self.item_states(rows, items.repeat(k or 1).to(layout.device), layout)
            chunks.append(states if k is None else states.view(k, len(items), -1))
        return torch.cat(chunks, dim=-2)

    def scorer(self, item_rows: ItemRows, layout: Tensor) -> Scorer:
        """Dot products with the states of all items, which are computed here."""
        states = self.catalogue_states(item_rows, layout)
        if states.dim() == 2:
            return lambda users: self.product(users, states, self.item_bias)
        biases = self.item_bias.expand(len(states), -1)
        return lambda users: self.product(users.view(len(states), -1, users.shape[-1]), states, biases).flatten(0, 1)

    @torch.no_grad()
    def start_bias(self, item_counts: Tensor) -> None:
        """Initialise the items' biases. Shape: item_counts ``(items,)`` of training events."""
        if self.settings.item_bias is ItemBias.LOG_FREQUENCY:
            self.item_bias.copy_(log_frequency(item_counts))
