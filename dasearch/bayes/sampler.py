"""Gaussian process and probabilistic reparameterization as an Optuna sampler.

For studies whose parameters are categorical with two choices; any other parameter is drawn independently at random.
Knows nothing of recommenders. Liu et al. 2024 (DARec), alg. 1.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor
from torch.quasirandom import SobolEngine

from dasearch.bayes.acquisition import improvement_over
from dasearch.bayes.reparameterization import ProbabilisticReparameterization, SpaceExhausted
from dasearch.bayes.surrogate import Surrogate

STARTUP, REPARAMETERIZATION = "startup", "reparameterization"
LAYERED_NAME = re.compile(r"^layer\d+\.(?P<site>.+)$")
SOBOL_TRIES = 4096  # quasi-random points looked through for one that is not known yet
Space = Mapping[str, CategoricalDistribution]


@dataclass(frozen=True)
class Proposal:
    """Why a trial got its layout."""

    trial_number: int
    source: str
    layout: Mapping[str, Any]
    theta: Mapping[str, float] | None
    acquisition: float | None
    mean: float | None
    sd: float | None
    seconds: float


class PRSampler(BaseSampler):
    """Proposes layouts by log expected improvement under a GP, maximised through probabilistic reparameterization.

    A layout that is complete, pruned, running or waiting is never proposed again, unless the study has parameters
    besides. Failed trials count for nothing: a machine that died says nothing about its layout, which may be proposed
    again. Pruned ones have no final value, so the surrogate does not read them. Randomness depends on the seed and on how
    many trials are complete, pruned or running, so that a study that was killed and resumed, or is run by several
    workers, follows from its seed.

    Args:
        seed: of all randomness.
        n_startup: trials before the surrogate proposes: all first choices, all second choices, each site alone where
            names are layered (``layer03.context``), then Sobol points.
        search_space: all two-choice parameters; without it they are learned from completed trials, and the first trial
            is drawn at random.
        on_proposal: told each proposal.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        n_startup: int = 10,
        search_space: Mapping[str, CategoricalDistribution] | None = None,
        on_proposal: Callable[[Proposal], None] | None = None,
    ) -> None:
        wide = [n for n, d in (search_space or {}).items() if not _is_binary(d)]
        if wide:
            raise ValueError(
                f"{wide[0]} does not have two choices; leave it out of search_space and it is drawn at random"
            )
        if n_startup < 1:
            raise ValueError(f"n_startup is {n_startup}; a surrogate needs at least 1 trial")
        self._seed, self._n_startup = seed, n_startup
        self._space = dict(search_space) if search_space is not None else None
        self._intersection = IntersectionSearchSpace()
        self._independent = RandomSampler(seed=seed)
        self._on_proposal = on_proposal or (lambda _: None)

    def reseed_rng(self) -> None:
        """Relative sampling needs none; independent draws differ between workers."""
        self._independent.reseed_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The two-choice parameters, by name."""
        self._raise_error_if_multi_objective(study)
        found = self._space if self._space is not None else self._intersection.calculate(study)
        return {name: found[name] for name in sorted(found) if _is_binary(found[name])} if found else {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A random value, for whatever the surrogate does not model."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next layout, given what is known and what the trial has fixed.

        Raises:
            SpaceExhausted: if every layout is known.
        """
        space: Space = {n: d for n, d in search_space.items() if isinstance(d, CategoricalDistribution)}
        if not space or set(space) <= set(trial.params):
            return {}
        started = time.perf_counter()
        history = _History(study, trial, space)
        generator = torch.Generator().manual_seed(_seed_of(self._seed, history.known))
        if history.known < self._n_startup or not len(history.values):
            bits, theta, value = _startup(history, generator), None, None
        else:
            bits, theta, value = self._propose(history, generator)
        layout = _decode(bits, space)
        mean, sd = history.prediction(bits)
        named = None if theta is None else dict(zip(space, theta.tolist(), strict=True))
        source = STARTUP if theta is None else REPARAMETERIZATION
        seconds = time.perf_counter() - started
        self._on_proposal(Proposal(trial.number, source, layout, named, value, mean, sd, seconds))
        return layout

    def _propose(self, history: _History, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
        surrogate = history.surrogate()
        acquisition = improvement_over(surrogate, history.running)
        reparameterized = ProbabilisticReparameterization(acquisition, len(history.space), history.fixed)
        maximum = reparameterized.maximise(history.excluded, generator)
        return maximum.bits, maximum.theta, maximum.value


class _History:
    """A study as tensors. Values are negated where the study minimises, so that more is better."""

    def __init__(self, study: Study, trial: FrozenTrial, space: Space) -> None:
        self.space = space
        fixed = {**trial.params, **trial.system_attrs.get("fixed_params", {})}
        self.fixed = {i: _bit(space[n], fixed[n]) for i, n in enumerate(space) if n in fixed}
        others = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number]
        counted = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        self.known = sum(t.state in counted for t in others)
        sign = 1.0 if study.direction is StudyDirection.MAXIMIZE else -1.0
        complete = [
            t for t in others if t.state is TrialState.COMPLETE and math.isfinite(t.values[0]) and self._whole(t)
        ]
        self.bits = self._stack(complete)
        self.values = sign * torch.tensor([t.values[0] for t in complete], dtype=torch.float64)
        self.running = self._stack([t for t in others if t.state is TrialState.RUNNING and self._whole(t)])
        known = [t for t in others if t.state is not TrialState.FAIL and self._whole(t)]
        if any(set(_params(t)) - set(space) for t in known):
            known = []  # other parameters differ between trials of one layout, so it may come again
        self.excluded = self._stack(known)
        self._sign = sign
        self._fitted: Surrogate | None = None

    def surrogate(self) -> Surrogate:
        if self._fitted is None:
            self._fitted = Surrogate.fit(self.bits, self.values)
        return self._fitted

    def prediction(self, bits: Tensor) -> tuple[float | None, float | None]:
        """Posterior mean and sd at a layout in the study's own units; None before the surrogate is first fitted."""
        if self._fitted is None:
            return None, None
        mean, sd = self._fitted.posterior(bits[None])
        return self._sign * float(mean), float(sd)

    def _whole(self, trial: FrozenTrial) -> bool:
        return set(self.space) <= set(_params(trial))

    def _stack(self, trials: Sequence[FrozenTrial]) -> Tensor:
        rows = [[_bit(d, _params(t)[n]) for n, d in self.space.items()] for t in trials]
        return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(self.space))


def _params(trial: FrozenTrial) -> dict[str, Any]:
    """A trial's parameters, with those it will take once it starts."""
    fixed: dict[str, Any] = trial.system_attrs.get("fixed_params", {})
    return {**fixed, **trial.params}


def _startup(history: _History, generator: torch.Generator) -> Tensor:
    """The first layout of the initial design that is not known yet."""
    excluded = {tuple(row) for row in history.excluded.int().tolist()}
    for bits in _design(history.space, generator):
        for position, value in history.fixed.items():
            bits[position] = float(value)
        if tuple(bits.int().tolist()) not in excluded:
            return bits
    free = len(history.space) - len(history.fixed)
    if 2**free <= len(excluded):
        raise SpaceExhausted(f"all {2**free} layouts are evaluated or running; enlarge the search space")
    constant = ProbabilisticReparameterization(
        lambda bits: bits.new_zeros(len(bits)), len(history.space), history.fixed
    )
    return constant.maximise(history.excluded, generator).bits


def _design(space: Space, generator: torch.Generator) -> Iterator[Tensor]:
    """All zeros, all ones, each site alone, then Sobol points."""
    count = len(space)
    yield torch.zeros(count, dtype=torch.float64)
    yield torch.ones(count, dtype=torch.float64)
    sites = [match["site"] if (match := LAYERED_NAME.match(name)) else None for name in space]
    if None not in sites:
        for site in dict.fromkeys(sites):
            yield torch.tensor([float(other == site) for other in sites], dtype=torch.float64)
    seed = int(torch.randint(2**31, (), generator=generator))
    yield from SobolEngine(count, scramble=True, seed=seed).draw(SOBOL_TRIES, dtype=torch.float64).round()


def _seed_of(seed: int, known: int) -> int:
    digest = hashlib.sha256(f"{seed}/{known}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _is_binary(distribution: BaseDistribution) -> bool:
    return isinstance(distribution, CategoricalDistribution) and len(distribution.choices) == 2


def _bit(distribution: CategoricalDistribution, choice: Any) -> int:
    return int(distribution.to_internal_repr(choice))


def _decode(bits: Tensor, space: Space) -> dict[str, Any]:
    return {name: d.choices[int(bit)] for (name, d), bit in zip(space.items(), bits.tolist(), strict=True)}
