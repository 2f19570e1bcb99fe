"""Probabilistic reparameterization of an acquisition function over binary vectors.

Daulton et al. 2022, "Bayesian Optimization over Discrete and Mixed Spaces via Probabilistic Reparameterization"; Liu et
al. 2024 (DARec), sec. 2.3.3 and alg. 1. The expectation of the acquisition under independent Bernoulli bits is smooth in
their parameters theta; its maximiser puts all mass on a best vertex. Use it where gradients over bits are missing; for
spaces of up to `ENUMERATED` free bits the expectation is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from dasearch.bayes.acquisition import Acquisition

TEMPERATURE = 0.1  # tau (Daulton et al., app. D)
LEARNING_RATE = 1 / 40  # of Adam (their released experiments), as are steps and restarts
STEPS = 200
RESTARTS = 20
RAW_POINTS = 1024
SAMPLES = 64  # vertices a step and restart; the leave-one-out baseline needs fewer than their 128
ENUMERATED = 10  # free bits up to which all vertices are summed: 1,024
PATIENCE, FLAT = 30, 1e-6  # stop when the expectation has not risen so much for so many steps


class SpaceExhausted(ValueError):
    """Every vertex is excluded: there is nothing left to propose."""


class Maximum(NamedTuple):
    """A vertex ``(d,)``, the parameters ``(d,)`` that led to it, and its acquisition value."""

    bits: Tensor
    theta: Tensor
    value: float


@dataclass(frozen=True)
class ProbabilisticReparameterization:
    """The expectation ``E[acquisition(z)]``, ``z_i ~ Bernoulli(sigmoid((theta_i - 1/2) / tau))``, theta in [0, 1].

    Args:
        acquisition: ``(m, d)`` bits to ``(m,)`` values.
        dimensions: d.
        fixed: bits held at a value, by position.
    """

    acquisition: Acquisition
    dimensions: int
    fixed: Mapping[int, int]
    temperature: float = TEMPERATURE
    samples: int = SAMPLES
    restarts: int = RESTARTS
    steps: int = STEPS

    @property
    def free(self) -> list[int]:
        return [i for i in range(self.dimensions) if i not in self.fixed]

    @property
    def exact(self) -> bool:
        """Whether expectations are sums over all vertices."""
        return len(self.free) <= ENUMERATED

    def probabilities(self, theta: Tensor) -> Tensor:
        """Of a one, for each bit; shapes ``(..., d)``. Fixed bits are certain."""
        found = torch.sigmoid((theta - 0.5) / self.temperature)
        return self._hold(found)

    def vertices(self) -> Tensor:
        """Every vertex with the fixed bits held, ``(2^free, d)``."""
        free = self.free
        numbers = torch.arange(2 ** len(free))[:, None]
        found = torch.zeros(len(numbers), self.dimensions, dtype=torch.float64)
        found[:, free] = ((numbers >> torch.arange(len(free))) & 1).double()
        return self._hold(found)

    def expected(self, theta: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The expectation and its gradient: exact for few free bits, else Monte Carlo.

        Shapes: theta ``(r, d)`` -> ``(r,)``, ``(r, d)``.
        """
        if self.exact:
            return self.exact_gradient(theta)
        value, gradient, _, _ = self.estimate(theta, generator)
        return value, gradient

    def exact_gradient(self, theta: Tensor, values: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Sum over all vertices; ``values`` are the acquisition's at `vertices`, if known."""
        vertices = self.vertices()
        values = self.acquisition(vertices) if values is None else values
        leaf = theta.detach().clone().requires_grad_(True)
        p = torch.sigmoid((leaf - 0.5) / self.temperature)[:, None, self.free]  # (r, 1, free)
        bits = vertices[None][..., self.free]
        mass = torch.where(bits > 0.5, p, 1 - p).prod(-1)  # (r, vertices)
        expectation = mass @ values
        (gradient,) = torch.autograd.grad(expectation.sum(), leaf)
        return expectation.detach(), gradient

    def estimate(self, theta: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Score-function estimate with a leave-one-out baseline, which is unbiased.

        Shapes: theta ``(r, d)`` -> expectation ``(r,)``, gradient ``(r, d)``, the sampled vertices ``(r, n, d)`` and their
        values ``(r, n)``.
        """
        p = self.probabilities(theta)[:, None]  # (r, 1, d)
        shape = (len(theta), self.samples, self.dimensions)
        z = (torch.rand(shape, generator=generator, dtype=p.dtype) < p).to(p.dtype)
        values = self.acquisition(z.flatten(0, 1)).view(shape[:2])
        others = (values.sum(1, keepdim=True) - values) / (self.samples - 1)
        gradient = ((values - others)[..., None] * (z - p)).mean(1) / self.temperature
        return values.mean(1), gradient, z, values

    def maximise(self, excluded: Tensor, generator: torch.Generator) -> Maximum:
        """The best vertex that is not excluded, by multi-start Adam on theta, sampling, and flips of one bit.

        Shapes: excluded ``(e, d)``.

        Raises:
            SpaceExhausted: if every vertex is excluded.
        """
        theta = self._starts(generator)
        if self.exact:
            return self._maximise_exactly(theta, excluded)
        best: Maximum | None = None
        climb = _Adam(theta)
        for _ in range(self.steps):
            value, gradient, z, values = self.estimate(climb.theta, generator)
            best = self._better(best, climb.theta, z, values, excluded)
            if climb.step(value, gradient):
                break
        if best is None:  # every sampled vertex was excluded
            best = self._any_other(theta, excluded, generator)
        return self._polish(best, excluded)

    def _maximise_exactly(self, theta: Tensor, excluded: Tensor) -> Maximum:
        vertices = self.vertices()
        values = self.acquisition(vertices)
        climb = _Adam(theta)
        for _ in range(self.steps):
            if climb.step(*self.exact_gradient(climb.theta, values)):
                break
        allowed = values.masked_fill(_among(vertices, excluded), -torch.inf)
        if not allowed.isfinite().any():
            raise SpaceExhausted(f"all {len(vertices)} layouts are evaluated or running; enlarge the search space")
        top = int(allowed.argmax())
        expectation, _ = self.exact_gradient(climb.theta, values)
        return Maximum(vertices[top], climb.theta[int(expectation.argmax())], float(allowed[top]))

    def _hold(self, bits: Tensor) -> Tensor:
        if not self.fixed:
            return bits
        held = bits.clone()
        for position, value in self.fixed.items():
            held[..., position] = float(value)
        return held

    def _starts(self, generator: torch.Generator) -> Tensor:
        """The most promising of many quasi-random thetas, by the acquisition at their nearest vertices: ``(restarts, d)``."""
        seed = int(torch.randint(2**31, (), generator=generator))
        raw = SobolEngine(self.dimensions, scramble=True, seed=seed).draw(RAW_POINTS, dtype=torch.float64)
        values = self.acquisition(self._hold(raw.round()))
        return raw[values.topk(min(self.restarts, RAW_POINTS)).indices]

    def _better(
        self, best: Maximum | None, theta: Tensor, z: Tensor, values: Tensor, excluded: Tensor
    ) -> Maximum | None:
        """The best allowed vertex among those sampled and the one known."""
        flat = z.flatten(0, 1)
        allowed = values.flatten().masked_fill(_among(flat, excluded), -torch.inf)
        top = int(allowed.argmax())
        value = float(allowed[top])
        if value == -torch.inf or (best is not None and value <= best.value):
            return best
        return Maximum(flat[top], theta[top // self.samples].clone(), value)

    def _any_other(self, theta: Tensor, excluded: Tensor, generator: torch.Generator) -> Maximum:
        """A random allowed vertex; spaces too large to enumerate always have one."""
        while True:
            drawn = torch.randint(2, (RAW_POINTS, self.dimensions), generator=generator).double()
            drawn = self._hold(drawn)
            allowed = drawn[~_among(drawn, excluded)]
            if len(allowed):
                return Maximum(allowed[0], theta[0], float(self.acquisition(allowed[:1])))

    def _polish(self, best: Maximum, excluded: Tensor) -> Maximum:
        """Steepest ascent by flips of one free bit."""
        free = torch.tensor(self.free)
        while True:
            flipped = best.bits.repeat(len(free), 1)
            flipped[torch.arange(len(free)), free] = 1 - flipped[torch.arange(len(free)), free]
            values = self.acquisition(flipped).masked_fill(_among(flipped, excluded), -torch.inf)
            top = int(values.argmax())
            if float(values[top]) <= best.value:
                return best
            best = Maximum(flipped[top], best.theta, float(values[top]))


class _Adam:
    """Projected ascent on theta in [0, 1]; stops when no restart rises."""

    def __init__(self, theta: Tensor) -> None:
        self.theta = theta.clone()
        self._optimizer = torch.optim.Adam([self.theta], lr=LEARNING_RATE, maximize=True)
        self._best, self._since = -torch.inf, 0

    def step(self, value: Tensor, gradient: Tensor) -> bool:
        """One step; True when the climb is over."""
        self.theta.grad = gradient
        self._optimizer.step()
        self.theta.clamp_(0.0, 1.0)
        top = float(value.max())
        rises = top > self._best + FLAT
        self._best, self._since = max(top, self._best), 0 if rises else self._since + 1
        return self._since >= PATIENCE


def _among(bits: Tensor, excluded: Tensor) -> Tensor:
    """Which rows of ``bits`` ``(m, d)`` stand in ``excluded`` ``(e, d)``: ``(m,)`` bool."""
    if not len(excluded):
        return torch.zeros(len(bits), dtype=torch.bool)
    agreeing = bits @ excluded.T + (1 - bits) @ (1 - excluded).T
    return (agreeing > bits.shape[1] - 0.5).any(1)
