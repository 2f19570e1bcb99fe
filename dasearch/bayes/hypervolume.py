"""Two objectives: a metric predicted by the surrogate, maximised, and a cost known exactly, minimised.

The hypervolume is the area between a Pareto front and a reference point: it grows where a point has a better value than every
point that costs no more. Costs are exact, so the expectation over the value alone is a sum of expected improvements, one for
each step of the front (`log_expected_hypervolume_improvement`), and its logarithm is exact too: BoTorch's
`qLogExpectedHypervolumeImprovement` would sample the value, smooth the minimum over objectives, and model the cost.

Emmerich et al. 2011 (expected hypervolume improvement); Ament et al. 2023 (in logarithms); the reference point follows
BoTorch's `infer_reference_point`: a tenth of the range beyond the worst.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from botorch.acquisition import AcquisitionFunction
from torch import Tensor

from dasearch.bayes.acquisition import log_expected_improvement
from dasearch.bayes.surrogate import Surrogate

BEYOND = 0.1  # of the range: distance of the reference point beyond the worst value and the highest cost
SLIVER = 1e-6  # share of the reference's distance, kept for points costlier than the assumed maximum: finite logarithm
Cost = Callable[[Mapping[str, Any]], float]  # from the parameters of a trial


class Reference(NamedTuple):
    """The reference point of the hypervolume: a value below and a cost above those of all points that count.

    Examples:
        >>> import torch
        >>> from dasearch.bayes import Reference
        >>> Reference.beyond(torch.tensor([0.0, 5.0]), torch.tensor([10.0, 20.0]))
        Reference(value=-0.5, cost=21.0)
    """

    value: float
    cost: float

    @classmethod
    def beyond(cls, values: Tensor, costs: Tensor) -> Reference:
        """A tenth of the range beyond the lowest value and the highest cost; a tenth of their magnitude if the range is zero."""
        value, cost = (BEYOND * _extent(numbers) for numbers in (values, costs))
        return cls(float(values.min()) - value, float(costs.max()) + cost)


def _extent(numbers: Tensor) -> float:
    spread = float(numbers.max() - numbers.min())
    return spread or float(numbers.abs().max()) or 1.0


def front(values: Sequence[float], costs: Sequence[float]) -> list[int]:
    """Indices of the Pareto-optimal points, cheapest first; of equal points only the first.

    A point dominates another that is neither better nor cheaper, unless both are equal.

    Examples:
        >>> from dasearch.bayes import front
        >>> front([1.0, 0.5, 3.0], [1.0, 2.0, 4.0])
        [0, 2]
    """
    order = sorted(range(len(values)), key=lambda i: (costs[i], -values[i], i))
    optimal: list[int] = []
    for i in order:
        if not optimal or values[i] > values[optimal[-1]]:
            optimal.append(i)
    return optimal


def hypervolume(values: Sequence[float], costs: Sequence[float], reference: Reference) -> float:
    """The area that the points dominate within the reference point; points outside it do not count.

    Examples:
        >>> from dasearch.bayes import Reference, hypervolume
        >>> hypervolume([1.0, 3.0], [1.0, 2.0], Reference(value=0.0, cost=3.0))  # 1 * 2 + 2 * 1
        4.0
    """
    inside = [i for i in range(len(values)) if values[i] > reference.value and costs[i] < reference.cost]
    values, costs = [values[i] for i in inside], [costs[i] for i in inside]
    area, level = 0.0, reference.value
    for i in front(values, costs):
        area += (values[i] - level) * (reference.cost - costs[i])
        level = values[i]
    return area


def knee(values: Sequence[float], costs: Sequence[float]) -> int:
    """The index of the front's point farthest above the chord between its ends, with both objectives scaled to its range.

    Das 1999. If no point lies above the chord (as on a front of one or two points), the end with the best value.

    Raises:
        ValueError: if there are no points.

    Examples:
        >>> from dasearch.bayes import knee
        >>> knee([0.0, 0.9, 1.0], [0.0, 1.0, 10.0])
        1
    """
    on_front = front(values, costs)
    if not on_front:
        raise ValueError("there is no knee of no point; evaluate one first")
    cheap, best = on_front[0], on_front[-1]
    rise, run = values[best] - values[cheap], costs[best] - costs[cheap]

    def above(i: int) -> float:
        return (values[i] - values[cheap]) / rise - (costs[i] - costs[cheap]) / run

    inner = [i for i in on_front[1:-1] if above(i) > 0]
    return max(inner, key=above, default=best)


def spread_over(values: Sequence[float], costs: Sequence[float], k: int) -> list[int]:
    """Indices of ``k`` representative points: the knee, then greedily the largest hypervolume gain, the front first.

    Examples:
        >>> from dasearch.bayes import spread_over
        >>> spread_over([0.0, 0.9, 1.0, 0.5], [0.0, 1.0, 10.0, 5.0], k=3)
        [1, 0, 2]
    """
    reference = Reference.beyond(*(torch.tensor(numbers, dtype=torch.float64) for numbers in (values, costs)))
    selected: list[int] = []
    for layer in _fronts(values, costs):
        left = list(layer)
        if not selected and left:
            selected.append(knee(values, costs))
            left.remove(selected[0])
        while left and len(selected) < k:

            def together(i: int) -> float:
                chosen = [*selected, i]
                return hypervolume([values[j] for j in chosen], [costs[j] for j in chosen], reference)

            selected.append(max(left, key=together))
            left.remove(selected[-1])
        if len(selected) >= k:
            break
    return selected[:k]


def _fronts(values: Sequence[float], costs: Sequence[float]) -> Iterator[list[int]]:
    """The Pareto front, then the front of the remaining points, and so on (non-dominated sorting)."""
    left = list(range(len(values)))
    while left:
        layer = [left[i] for i in front([values[j] for j in left], [costs[j] for j in left])]
        yield layer
        left = [j for j in left if j not in layer]


class Steps(NamedTuple):
    """A front as a staircase over costs: between ``start`` and ``end`` a value must exceed ``level`` to add area.

    Shapes: ``(k,)`` each; costs ascend from minus infinity, and the last step ends at the reference's cost.
    """

    level: Tensor
    start: Tensor
    end: Tensor

    @classmethod
    def of(cls, values: Tensor, costs: Tensor, reference: Reference) -> Steps:
        """The staircase of points with these values ``(n,)`` and costs ``(n,)``."""
        inside = (values > reference.value) & (costs < reference.cost)
        values, costs = values[inside], costs[inside]
        on_front = front(values.tolist(), costs.tolist())
        level = torch.cat([values.new_tensor([reference.value]), values[on_front]])
        edges = torch.cat([costs[on_front], costs.new_tensor([reference.cost])])
        return cls(level, torch.cat([costs.new_tensor([-torch.inf]), edges[:-1]]), edges)


def log_expected_hypervolume_improvement(mean: Tensor, sd: Tensor, cost: Tensor, steps: Steps) -> Tensor:
    """``log E[hypervolume that a point adds]`` for a normally distributed value and a known cost.

    Over each step of the front, a point of value f and cost c adds the step's width right of c times the amount by which f
    exceeds the step's level. Minus infinity if the cost is not below the reference's.

    Shapes: mean, sd ``(..., m)``, cost ``(m,)``, steps of k -> ``(..., m)``.
    """
    width = steps.end - torch.maximum(steps.start, cost[:, None])  # (m, k)
    log_width = width.clamp(min=0).log()  # minus infinity for steps left of the cost
    improvement = log_expected_improvement(mean[..., None], sd[..., None], steps.level)
    return torch.logsumexp(log_width + improvement, -1)


@dataclass(frozen=True, eq=False)
class KnownCost:
    """An exact cost: ``of`` maps codes ``(m, d)`` to ``(m,)`` float64; ``highest`` is the space's maximum, as far as known.

    Examples:
        >>> import torch
        >>> from dasearch.bayes import KnownCost
        >>> cost = KnownCost(lambda codes: codes.sum(1), highest=2.0)
        >>> cost.of(torch.tensor([[0.0, 1.0], [1.0, 1.0]])).tolist()
        [1.0, 2.0]
    """

    of: Callable[[Tensor], Tensor]
    highest: float


class HypervolumeImprovement(AcquisitionFunction):  # type: ignore[misc]  # BoTorch is not typed for mypy
    """Log expected hypervolume improvement under a mixture of Gaussian processes, with BoTorch's interface.

    The incumbent front is that of the posterior means of evaluated and running points, like the incumbent of
    `LogExpectedImprovement`. The reference point is a tenth of the range below the lowest of these means and a tenth beyond the
    highest cost.

    Args:
        surrogate: the fitted surrogate, conditioned on running points (`Surrogate.fantasize`).

    Examples:
        >>> import torch
        >>> from dasearch.bayes import HypervolumeImprovement, KnownCost, Surrogate
        >>> codes = torch.tensor([[0, 0], [0, 1], [1, 0]])
        >>> surrogate = Surrogate.fit(codes, torch.tensor([0.0, 0.4, 0.5]))
        >>> cost = KnownCost(lambda codes: codes[:, 0].double(), highest=1.0)
        >>> improvement = HypervolumeImprovement(surrogate, cost)
        >>> improvement(torch.tensor([[[0, 0]], [[1, 1]]])).argmax().item()
        1
    """

    def __init__(self, surrogate: Surrogate, cost: KnownCost) -> None:
        super().__init__(model=surrogate)
        self.cost = cost
        self.means = surrogate.posterior(surrogate.codes).mean
        self.costs = cost.of(surrogate.codes)
        reach = torch.cat([self.costs, self.costs.new_tensor([cost.highest])])
        self.reference = Reference.beyond(self.means, reach)
        self._dearest = self.reference.cost - SLIVER * (self.reference.cost - float(reach.min()))
        self.steps = Steps.of(self.means, self.costs, self.reference)

    def promising(self, k: int) -> Tensor:
        """The ``k`` known points that represent the front best, ``(k or fewer, d)``."""
        chosen = spread_over(self.means.tolist(), self.costs.tolist(), k)
        points: Tensor = self.model.codes[chosen]
        return points

    def forward(self, X: Tensor) -> Tensor:
        """Evaluate the acquisition. Shapes: codes ``(m, 1, d)`` -> ``(m,)``."""
        codes = X.squeeze(-2)
        mean, sd = self.model.member_posteriors(codes)
        cost = self.cost.of(codes).clamp(max=self._dearest)
        improvement = log_expected_hypervolume_improvement(mean, sd, cost, self.steps)
        return torch.logsumexp(self.model.weights.log()[:, None] + improvement, 0)
