"""Probabilistic reparameterization of an acquisition function over categorical choices.

Daulton et al. 2022, "Bayesian Optimization over Discrete and Mixed Spaces via Probabilistic Reparameterization"; Liu et
al. 2024 (DARec), sec. 2.3.3 and alg. 1. The expectation of the acquisition under independent choices is smooth in their
parameters theta; its maximiser puts all mass on a best vertex. Use it for discrete spaces, where the acquisition has no
gradient over choices; for spaces of up to `ENUMERATED` vertices the expectation is exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from botorch.acquisition import AcquisitionFunction
from torch import Tensor
from torch.quasirandom import SobolEngine

from dasearch.bayes.choices import Choices, among, hold

TEMPERATURE = 0.1  # tau (Daulton et al., app. D)
LEARNING_RATE = 1 / 10  # of Adam; four times that of their released experiments, and a twelfth of their 200 steps:
STEPS = 16  # starts are promising vertices, and single changes polish the result of the ascent
RESTARTS = 4
RAW_POINTS = 256
SAMPLES = 24  # vertices per step and restart; the leave-one-out baseline needs fewer than their 128
ENUMERATED = 1024  # largest number of vertices over which the expectation is summed exactly
PATIENCE, FLAT = 4, 1e-6  # stop after PATIENCE steps in which the expectation rose by less than FLAT
START = 0.2  # distance of a start's parameters from 1/2: each of its vertex's choices has probability .88
NEIGHBOURHOOD = 0.15  # share of choices resampled around a promising point
NEIGHBOURS = 48  # points around each promising point


class SpaceExhausted(ValueError):
    """Every vertex is excluded: there is nothing left to propose.

    Examples:
        >>> import torch
        >>> from dasearch.bayes import Surrogate, propose
        >>> every = torch.tensor([[0], [1]])
        >>> propose(Surrogate.fit(every, torch.tensor([0.0, 1.0])), running=every[:0], excluded=every)
        Traceback (most recent call last):
            ...
        dasearch.bayes.reparameterization.SpaceExhausted: all 2 layouts are evaluated or running; enlarge the search space
    """


class Maximum(NamedTuple):
    """A vertex ``(d,)`` with its acquisition value, and the probabilities at the end of the ascent.

    ``probabilities``, ``(D,)``, are those of every choice but the first, from the restart under which the vertex is most likely.
    The vertex need not be the most likely one there: a rarer sample, or single changes afterwards, may have a higher value.

    Examples:
        >>> import torch
        >>> from dasearch.bayes import Surrogate, propose
        >>> codes = torch.tensor([[0, 0], [0, 1], [1, 0]])
        >>> surrogate = Surrogate.fit(codes, torch.tensor([0.0, 0.4, 0.5]))
        >>> maximum = propose(surrogate, running=codes[:0], excluded=codes)
        >>> maximum.codes.tolist()
        [1.0, 1.0]
        >>> bool((maximum.probabilities > 0.5).all())  # of second choices
        True
    """

    codes: Tensor
    probabilities: Tensor
    value: float


def probabilities_of(theta: Sequence[float], temperature: float = TEMPERATURE) -> list[float]:
    """Probabilities of one variable's choices but the first, from their parameters; a sigmoid for two choices.

    Examples:
        >>> from dasearch.bayes import probabilities_of
        >>> probabilities_of([0.5])
        [0.5]
        >>> [round(p, 3) for p in probabilities_of([0.9, 0.5])]  # of three choices
        [0.965, 0.018]
    """
    first = 0.5 / temperature
    logits = [value / temperature for value in theta]
    top = max(first, *logits)
    weights = [math.exp(logit - top) for logit in logits]
    total = math.exp(first - top) + sum(weights)
    return [weight / total for weight in weights]


class ProbabilisticReparameterization(AcquisitionFunction):  # type: ignore[misc]  # BoTorch is not typed for mypy
    """The expectation ``E[acquisition(z)]`` over independent ``z_i``, as a BoTorch acquisition of theta.

    ``p(z_i = k)`` is proportional to ``exp((theta_ik - 1/2) / tau)`` for k above 0 and to 1 for k = 0; with two choices that
    is ``sigmoid((theta_i - 1/2) / tau)``. There is a parameter in [0, 1] for every choice but the first: D in all.

    Args:
        acquisition: any BoTorch acquisition of one point; called with codes ``(m, 1, d)``.
        choices: the space.
        fixed: codes of variables that are held constant, by variable.
        generator: random generator for Monte Carlo samples and starting points.

    Examples:
        >>> import torch
        >>> from dasearch.bayes import LogExpectedImprovement, ProbabilisticReparameterization, Surrogate
        >>> codes = torch.tensor([[0, 0], [0, 1], [1, 0]])
        >>> surrogate = Surrogate.fit(codes, torch.tensor([0.0, 0.4, 0.5]))
        >>> generator = torch.Generator().manual_seed(0)
        >>> climb = ProbabilisticReparameterization(LogExpectedImprovement(surrogate), surrogate.choices, generator=generator)
        >>> climb.maximise(excluded=codes).codes.tolist()
        [1.0, 1.0]
    """

    def __init__(
        self,
        acquisition: AcquisitionFunction,
        choices: Choices,
        fixed: Mapping[int, int] | None = None,
        *,
        generator: torch.Generator,
        temperature: float = TEMPERATURE,
        samples: int = SAMPLES,
        restarts: int = RESTARTS,
        steps: int = STEPS,
    ) -> None:
        super().__init__(model=acquisition.model)
        self.acquisition, self.choices, self.fixed = acquisition, choices, dict(fixed or {})
        self.generator = generator
        self.temperature, self.samples, self.restarts, self.steps = temperature, samples, restarts, steps
        self.free = [i for i in range(choices.d) if i not in self.fixed]
        self.fixed_mask = torch.tensor([i in self.fixed for i, _ in choices.columns])  # (D,)
        self.count = math.prod(choices.sizes[i] for i in self.free)

    @property
    def exact(self) -> bool:
        """Whether expectations are exact sums over all vertices rather than Monte Carlo estimates."""
        return self.count <= ENUMERATED

    def forward(self, X: Tensor) -> Tensor:
        """The expectation, differentiable in theta; shapes: ``(b, 1, D)`` -> ``(b,)``."""
        theta = X.squeeze(-2)
        value, gradient = self.exact_gradient(theta) if self.exact else self.estimate(theta)[:2]
        return value + (gradient * (theta - theta.detach())).sum(-1)

    def values(self, codes: Tensor) -> Tensor:
        """The acquisition's values at vertices. Shapes: ``(m, d)`` -> ``(m,)``."""
        with torch.no_grad():
            values: Tensor = self.acquisition(codes[:, None])
        return values

    def probabilities(self, theta: Tensor) -> Tensor:
        """Choice probabilities: 1 for fixed choices, 0 for nonexistent ones.

        Shapes: theta ``(r, D)`` -> ``(r, d, most choices)``.
        """
        logits = theta.new_full((len(theta), self.choices.d, max(self.choices.sizes)), -torch.inf)
        logits[:, :, 0] = 0.0
        scaled = (theta.detach() - 0.5) / self.temperature
        logits[:, self.choices.column_variable, self.choices.column_choice] = scaled
        for variable, code in self.fixed.items():
            logits[:, variable] = -torch.inf
            logits[:, variable, code] = 0.0
        return logits.softmax(-1)

    @cached_property
    def vertices(self) -> Tensor:
        """Every vertex that agrees with the fixed choices, ``(count, d)``."""
        return self._numbered(self.count)

    def _numbered(self, n: int) -> Tensor:
        """The first n vertices in counting order, the first free variable varying fastest: ``(n, d)``."""
        codes = torch.zeros(n, self.choices.d, dtype=torch.float64)
        left = torch.arange(n)
        for i in self.free:
            codes[:, i] = (left % self.choices.sizes[i]).double()
            left = left // self.choices.sizes[i]
        return hold(codes, self.fixed)

    def exact_gradient(self, theta: Tensor, values: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Exact expectation and gradient, summed over all vertices; shapes as in `estimate`.

        ``values`` are the acquisition's values at `vertices`, if already computed.
        """
        vertices = self.vertices
        values = self.values(vertices) if values is None else values
        p = self.probabilities(theta)
        at = torch.arange(self.choices.d)
        mass = p[:, at, vertices.long()].prod(-1)  # (r, vertices)
        score = self._score(vertices[None], p)  # (r, vertices, D)
        return mass @ values, torch.einsum("rv,v,rvk->rk", mass, values, score)

    def estimate(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Score-function estimate with a leave-one-out baseline, which is unbiased.

        Shapes: theta ``(r, D)`` -> expectation ``(r,)``, gradient ``(r, D)``, the sampled vertices ``(r, s, d)`` and their
        values ``(r, s)``.
        """
        p = self.probabilities(theta)
        drawn = torch.rand(len(theta), self.samples, self.choices.d, 1, generator=self.generator, dtype=torch.float64)
        z = (drawn > p.cumsum(-1)[:, None, :, :-1]).sum(-1).double()
        z = z.minimum(torch.tensor(self.choices.sizes, dtype=z.dtype) - 1)  # a draw beyond the rounded sum
        values = self.values(z.flatten(0, 1)).view(z.shape[:2])
        others = (values.sum(1, keepdim=True) - values) / (self.samples - 1)
        gradient = torch.einsum("rs,rsk->rk", values - others, self._score(z, p)) / self.samples
        return values.mean(1), gradient, z, values

    def maximise(self, excluded: Tensor, near: Tensor | None = None) -> Maximum:
        """The best vertex that is not excluded, by multi-start Adam on theta, sampling, and local search by single changes.

        Shapes: excluded ``(e, d)``, near ``(k, d)``: promising points, whose neighbourhoods provide further starting points.

        Raises:
            SpaceExhausted: if every vertex is excluded.
        """
        excluded = self._inside(excluded)
        if len(excluded) >= self.count:
            raise SpaceExhausted(f"all {self.count} layouts are evaluated or running; enlarge the search space")
        if self.exact:
            return self._maximise_exactly(excluded)
        raw = self._raw(near)
        values = self.values(raw)
        starts = values.topk(self.restarts).indices
        climb = _Adam(self._around(raw[starts]))
        seen = [(raw[starts, None], values[starts, None])]
        for _ in range(self.steps):
            value, gradient, z, values = self.estimate(climb.theta)
            seen.append((z, values))
            if climb.step(value, gradient):
                break
        z, values = (torch.cat(parts, 1) for parts in zip(*seen, strict=True))
        values = values.masked_fill(among(z.flatten(0, 1), excluded).view(values.shape), -torch.inf)
        if not values.isfinite().any():
            z = self._any_other(excluded)[None, None]
            values = self.values(z[0])[None]
        top, restart = values.argmax(1), torch.arange(len(values))
        return self._found(*self._polish(z[restart, top], values[restart, top], excluded), climb.theta)

    def _maximise_exactly(self, excluded: Tensor) -> Maximum:
        vertices = self.vertices
        values = self.values(vertices)
        climb = _Adam(self._around(vertices[values.topk(min(self.restarts, len(values))).indices]))
        for _ in range(self.steps):
            if climb.step(*self.exact_gradient(climb.theta, values)):
                break
        allowed = values.masked_fill(among(vertices, excluded), -torch.inf)
        top = int(allowed.argmax())
        return self._found(vertices[top], allowed[top], climb.theta)

    def _found(self, codes: Tensor, value: Tensor, ends: Tensor) -> Maximum:
        """A `Maximum` for a vertex ``(d,)``, with the probabilities of the restart in ``ends`` ``(r, D)`` that favours it."""
        p = self.probabilities(ends)
        likely = p[:, torch.arange(self.choices.d), codes.long()].log().sum(-1)
        nearest = p[likely.argmax()]
        return Maximum(codes, nearest[self.choices.column_variable, self.choices.column_choice], float(value))

    def _score(self, z: Tensor, p: Tensor) -> Tensor:
        """Gradient of ``log p(z)`` with respect to theta. Shapes: ``(r or 1, s, d)``, ``(r, d, most)`` -> ``(r, s, D)``."""
        variable, choice = self.choices.column_variable, self.choices.column_choice
        score = ((z[..., variable] == choice).double() - p[:, None, variable, choice]) / self.temperature
        gradient: Tensor = score.masked_fill(self.fixed_mask, 0.0)
        return gradient

    def _inside(self, excluded: Tensor) -> Tensor:
        """The distinct excluded vertices that agree with the fixed choices."""
        held = torch.tensor([[float(code) for code in self.fixed.values()]], dtype=torch.float64)
        inside = excluded[(excluded[:, list(self.fixed)] == held).all(1)] if self.fixed else excluded
        distinct: Tensor = inside.unique(dim=0)
        return distinct

    def _raw(self, near: Tensor | None) -> Tensor:
        """Starting points: quasi-random vertices, and random ones around promising points: ``(raw, d)``."""
        seed = int(torch.randint(2**31, (), generator=self.generator))
        engine = SobolEngine(self.choices.d, scramble=True, seed=seed)
        starts = [self.choices.from_unit(engine.draw(RAW_POINTS, dtype=torch.float64))]
        if near is not None and len(near):
            around = near.double().repeat_interleave(NEIGHBOURS, 0)
            anew = self.choices.uniform(len(around), self.generator)
            changed = torch.rand(around.shape, generator=self.generator) < NEIGHBOURHOOD
            starts.append(torch.where(changed, anew, around))
        return hold(torch.cat(starts), self.fixed)

    def _around(self, codes: Tensor) -> Tensor:
        """Parameters that make a vertex likely: ``(r, D)``."""
        chosen = codes[:, self.choices.column_variable] == self.choices.column_choice
        return torch.where(chosen, 0.5 + START, 0.5 - START).double()

    def _any_other(self, excluded: Tensor) -> Tensor:
        """A random vertex that is not excluded, or the first in counting order if all random draws are excluded: ``(d,)``."""
        drawn = hold(self.choices.uniform(RAW_POINTS, self.generator), self.fixed)
        numbered = self._numbered(len(excluded) + 1)  # at least one of these is not excluded
        candidates = torch.cat([drawn, numbered])
        return candidates[~among(candidates, excluded)][0]

    def _polish(self, codes: Tensor, values: Tensor, excluded: Tensor) -> tuple[Tensor, Tensor]:
        """The best result of steepest ascents by single changes. Shapes: ``(r, d)``, ``(r,)`` -> ``(d,)``, ``()``."""
        changes = [(i, k) for i in self.free for k in range(self.choices.sizes[i])]
        variable, code = (torch.tensor([change[side] for change in changes]) for side in (0, 1))
        codes, values, rising = codes.clone(), values.clone(), torch.arange(len(codes))
        while len(rising):
            at = codes[rising]
            changed = at[:, None].repeat(1, len(changes), 1)
            changed[:, torch.arange(len(changes)), variable] = code.double()
            flat = changed[at[:, variable] != code]  # equally many per row
            neighbours = self.values(flat).masked_fill(among(flat, excluded), -torch.inf).view(len(at), -1)
            top = neighbours.max(1)
            better = top.values > values[rising]
            rising, neighbours = rising[better], flat.view(*neighbours.shape, -1)[better, top.indices[better]]
            codes[rising], values[rising] = neighbours, top.values[better]
        best = values.argmax()
        return codes[best], values[best]


class _Adam:
    """Projected gradient ascent on theta in [0, 1]; stops when no restart improves."""

    def __init__(self, theta: Tensor) -> None:
        self.theta = theta.clone()
        self._optimizer = torch.optim.Adam([self.theta], lr=LEARNING_RATE, maximize=True)
        self._best, self._since = -torch.inf, 0

    def step(self, value: Tensor, gradient: Tensor) -> bool:
        """Take one step; True once the ascent has converged."""
        self.theta.grad = gradient
        self._optimizer.step()
        self.theta.clamp_(0.0, 1.0)
        top = float(value.max())
        rises = top > self._best + FLAT
        self._best, self._since = max(top, self._best), 0 if rises else self._since + 1
        return self._since >= PATIENCE
