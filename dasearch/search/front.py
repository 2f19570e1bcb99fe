"""Searches with a cost beside the metric: selection of the layouts to confirm, and of the winner among them.

Costs are exact (`dasearch.models.cost`); metrics come from fresh seeds, as in `confirmation`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dasearch.bayes import front, knee, spread_over
from dasearch.config import Pick, SearchSettings
from dasearch.layout import Layout
from dasearch.models.cost import Cost, SiteCosts
from dasearch.search.confirmation import ConfirmedLayout, cheapest, posterior_means, recommended
from dasearch.search.domain import Domain, Point


def by_front(domain: Domain, signals: Mapping[Point, float], costs: SiteCosts, k: int) -> list[Layout]:
    """Select k evaluated layouts on the front of posterior mean and cost: the knee, then the largest hypervolume gains."""
    means = posterior_means(domain, signals)
    layouts = list(means)
    return [layouts[i] for i in spread_over(list(means.values()), [costs.of(layout) for layout in layouts], k)]


@dataclass(frozen=True)
class Selection:
    """Selection of one confirmed layout in a study with a cost.

    Attributes:
        worth: `search.worth`, for `Pick.CHEAPEST`.
    """

    cost: Cost
    costs: SiteCosts
    pick: Pick
    worth: float

    @classmethod
    def of(cls, search: SearchSettings, costs: Mapping[Cost, SiteCosts]) -> Selection | None:
        """The selection of a study's settings; None without a cost, or before costs are counted."""
        if search.cost is None or search.cost not in costs:
            return None
        return cls(search.cost, costs[search.cost], search.pick or Pick.KNEE, search.worth)

    def front(self, found: Sequence[ConfirmedLayout]) -> list[ConfirmedLayout]:
        """Confirmed layouts that are not dominated in mean and cost, the cheapest first."""
        return [found[i] for i in front(*self._both(found))]

    def __call__(self, found: Sequence[ConfirmedLayout]) -> ConfirmedLayout:
        """The winning layout.

        - knee: of the confirmed front, as of `dasearch.bayes.knee`;
        - best: `recommended`, as without a cost;
        - cheapest-within-noise: as of `confirmation.cheapest`, or all-serial where there is none.

        Args:
            found: as `standings` gives them; at least one.
        """
        if self.pick is Pick.KNEE:
            return found[knee(*self._both(found))]
        if self.pick is Pick.BEST:
            return recommended(found)
        serial = next((standing for standing in found if standing.gain is None), found[0])
        costs = {standing.layout: self.costs.of(standing.layout) for standing in found}
        return cheapest(found, costs, self.worth) or serial

    def _both(self, found: Sequence[ConfirmedLayout]) -> tuple[list[float], list[float]]:
        return [s.score.mean for s in found], [float(self.costs.of(s.layout)) for s in found]
