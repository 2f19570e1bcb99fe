"""Costs of a layout that are known without training it.

Costs are counted on an untrained model and are exact: a sum over sites, plus, once, modules that all layers share as soon as one
of them needs them (the projections of collaborative keys, needed by the first context branch). All adapted layers are identical,
so a choice costs the same in each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from dasearch.layout import NONE, Choice, Layout
from dasearch.models.base import RecommenderModel
from dasearch.search_space import SearchSpace

Count = Callable[[Layout], int]


class Cost(StrEnum):
    """A cost that can be an objective in addition to a metric."""

    PARAMETERS = "parameters"  # `RecommenderModel.count_trained`
    MADDS = "madds"  # `RecommenderModel.multiply_adds`

    @property
    def words(self) -> str:
        """The name in reports."""
        return {Cost.PARAMETERS: "trained parameters", Cost.MADDS: "extra multiply-adds a token"}[self]


@dataclass(frozen=True)
class SiteCosts:
    """One cost, decomposed over the sites of a search space's layouts.

    Attributes:
        base: cost of the layout without any adapter.
        choices: cost of a choice at a site of one layer, by site and choice name; sites in the order of a layout's letters.
        once: by site, the cost added once if the site is active in any layer.
    """

    base: int
    choices: Mapping[str, Mapping[str, int]]
    once: Mapping[str, int]

    def of(self, layout: Layout) -> int:
        """The cost of a layout in the space."""
        total = self.base
        for site, column in zip(self.choices, zip(*layout.groups, strict=True), strict=True):
            total += sum(self.choices[site][choice.name] for choice in column)
            total += self.once.get(site, 0) * any(choice.active for choice in column)
        return total

    @classmethod
    def counted(cls, count: Count, layers: int, choices: Mapping[str, Sequence[Choice]]) -> SiteCosts:
        """The decomposition, inferred from ``count`` on layouts with one or two active sites among these adapted layers."""
        base, own, once = count(_with(layers, len(choices), {})), {}, {}
        for column, (site, able) in enumerate(choices.items()):
            own[site] = dict.fromkeys((choice.name for choice in able), 0)
            for choice in able:
                alone = count(_with(layers, len(choices), {(0, column): choice})) - base
                again = alone
                if layers > 1:
                    both = count(_with(layers, len(choices), {(0, column): choice, (1, column): choice}))
                    again = both - base - alone
                own[site][choice.name] = again
                if alone != again:
                    once[site] = alone - again
        return cls(base, own, once)

    def record(self) -> dict[str, Any]:
        """The decomposition as JSON values."""
        return asdict(self)


def _with(layers: int, sites: int, at: Mapping[tuple[int, int], Choice]) -> Layout:
    """A layout with adapters only at the given places, by layer and site."""
    return Layout(tuple(tuple(at.get((layer, site), NONE) for site in range(sites)) for layer in range(layers)))


def layout_costs(model: RecommenderModel, space: SearchSpace, *, item_tokens: int) -> dict[Cost, SiteCosts]:
    """Every cost of a space's layouts, counted on a model; ``item_tokens`` as of `RecommenderModel.multiply_adds`."""
    choices = {site: space.file.of_site(site) for site in space.sites}
    counts: dict[Cost, Count] = {
        Cost.PARAMETERS: model.count_trained,
        Cost.MADDS: lambda layout: model.multiply_adds(layout, item_tokens=item_tokens),
    }
    return {cost: SiteCosts.counted(count, space.layers, choices) for cost, count in counts.items()}


def cost_of_choices(space: SearchSpace, costs: SiteCosts) -> Callable[[Mapping[str, str]], int]:
    """A function from the choices of free sites to the cost, without building the layout: a search calls it thousands of times.

    Other parameters of a trial cost nothing.
    """
    constant, once = costs.base, set[str]()
    own: dict[str, dict[str, int]] = {name: {} for name in space.free}
    shared: dict[str, dict[str, frozenset[str]]] = {name: {} for name in space.free}
    for name in space.names:
        site, leader = name.partition(".")[2], space.tied_to[name]
        held = space.fixed.get(name) or space.fixed.get(leader)
        for choice in space.choices[name]:
            price, brought = costs.choices[site][choice.name], {site} & set(costs.once) if choice.active else set()
            if held is None:
                own[leader][choice.name] = own[leader].get(choice.name, 0) + price
                shared[leader][choice.name] = shared[leader].get(choice.name, frozenset()) | brought
            elif held == choice.name:
                constant, once = constant + price, once | brought

    def of(chosen: Mapping[str, str]) -> int:
        at_sites = [(name, choice) for name, choice in chosen.items() if name in own]
        brought = once.union(*(shared[name][choice] for name, choice in at_sites))
        return constant + sum(own[name][choice] for name, choice in at_sites) + sum(costs.once[s] for s in brought)

    return of
