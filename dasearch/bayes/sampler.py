"""Gaussian process and probabilistic reparameterization as an Optuna sampler.

Categorical, integer and float parameters are modelled, numbers on a grid (`parameters`); conditional parameters are sampled
independently at random. Knows nothing of recommenders. Liu et al. 2024 (DARec), alg. 1.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor
from torch.quasirandom import SobolEngine

from dasearch.bayes.acquisition import LogExpectedImprovement
from dasearch.bayes.choices import Choices, among, hold
from dasearch.bayes.claims import claim, claimed
from dasearch.bayes.hypervolume import Cost, HypervolumeImprovement, KnownCost
from dasearch.bayes.parameters import Parameter, parameter_of, parameters_of
from dasearch.bayes.reparameterization import Maximum, ProbabilisticReparameterization
from dasearch.bayes.surrogate import Surrogate
from dasearch.bayes.transfer import Observation, Prior

STARTUP, REPARAMETERIZATION, WARM_START = "startup", "reparameterization", "warm start"
MOST_STARTUP = 10  # two homogeneous layouts and Sobol points
FEWEST_STARTUP, STARTUP_SHARE = 2, 1 / 3  # of the number of parameters: a small space is learned from the first trials
SOBOL_TRIES = 4096  # quasi-random points searched for one that is not yet evaluated or running
MOST_BEFORE = 100  # most observations of another study that the surrogate reads; each makes an ask slower
PROMISING = 4  # evaluated points whose neighbourhoods the maximiser explores
Space = Mapping[str, Parameter]
Probabilities = Mapping[str, list[float]]
Signal = Callable[[FrozenTrial], float]


def final_value(trial: FrozenTrial) -> float:
    """The final objective value of a complete trial."""
    return float(trial.values[0])


def curve_mean(trial: FrozenTrial) -> float:
    """Mean of a trial's intermediate values, less noisy than its best; its final value if it reported none.

    Examples:
        >>> from optuna.trial import create_trial
        >>> from dasearch.bayes import curve_mean
        >>> curve_mean(create_trial(value=0.75, intermediate_values={0: 0.25, 1: 0.75}))
        0.5
    """
    return mean_of_curve(trial.intermediate_values, final_value(trial))


def mean_of_curve(curve: Mapping[int, float], final: float) -> float:
    """The mean of intermediate values by step; ``final`` if there are none.

    Examples:
        >>> from dasearch.bayes import mean_of_curve
        >>> mean_of_curve({0: 0.25, 1: 0.75}, final=0.75), mean_of_curve({}, final=0.75)
        (0.5, 0.75)
    """
    return math.fsum(curve.values()) / len(curve) if curve else final


@dataclass(frozen=True)
class Proposal:
    """A record of why a layout was proposed for a trial.

    ``probabilities``, as of `Maximum`, has an entry for each choice of a parameter but the first; ``mean`` and ``sd`` are the
    surrogate's posterior for the signal that it learns.

    Examples:
        >>> import optuna
        >>> from optuna.distributions import CategoricalDistribution
        >>> from dasearch.bayes import PRSampler, quietly
        >>> space = {name: CategoricalDistribution(["no", "yes"]) for name in ("cached", "sorted")}
        >>> told = []
        >>> with quietly():
        ...     sampler = PRSampler(search_space=space, on_proposal=told.append)
        ...     study = optuna.create_study(direction="maximize", sampler=sampler)
        ...     study.optimize(lambda trial: sum(trial.suggest_categorical(n, ["no", "yes"]) == "yes" for n in space), 3)
        >>> [proposal.source for proposal in told]
        ['startup', 'startup', 'reparameterization']
    """

    trial_number: int
    source: str
    layout: Mapping[str, Any]
    probabilities: Probabilities | None
    acquisition: float | None
    mean: float | None
    sd: float | None
    seconds: float


class PRSampler(BaseSampler):
    """Proposes layouts by log expected improvement under a GP, maximised through probabilistic reparameterization.

    A layout that is complete, pruned, running or waiting is never proposed again, unless the study's trials have further
    parameters. Failed trials are ignored: a machine that died says nothing about its layout, which may be proposed again. Pruned
    trials have no final value, so the surrogate does not read them. Running trials are assumed to reach their posterior mean
    (kriging believer). Workers claim a layout before they evaluate it (`claims`), so that no two evaluate the same.

    Randomness depends only on the seed and on how many trials are complete, pruned or running, not on the sampler's state, so
    that a study that was killed and resumed continues as if it had not been interrupted. The sampler caches only the last fit, so
    that trials asked for concurrently share one; the fit is a function of the history and changes no proposal.

    Another study's results, ``prior``, warm-start this one: the best of its layouts is evaluated first, each of its observations
    replaces one of the default startup trials (two remain), and the surrogate averages over the hypothesis that its values follow
    this study's landscape and the hypothesis that they are unrelated, weighted by the values seen here (`transfer`). They are
    standardised among themselves, so their scale does not matter. They are not trials of this study: they do not count towards
    its budget, and their layouts may be proposed.

    With ``cost`` the study has two directions, and layouts are proposed by log expected hypervolume improvement
    (`hypervolume`): the surrogate predicts the first objective, and the second, which is minimised, is known for every
    layout without a trial. The second values reported by trials are not read.

    Args:
        seed: seed of all randomness.
        n_startup: trials before the surrogate proposes: all first choices, all second choices, then Sobol points. By
            default a third of the number of parameters, between 2 and 10.
        search_space: the parameters; if omitted they are inferred from completed trials, and the first trial is sampled at
            random.
        prior: observations of another study, larger or smaller being better as in this study. Observations that lack a
            parameter or have an unknown choice are dropped, as are values that are not finite; of more than 100, only 100 are
            read, evenly spread over the ranks of their values.
        signal: what the surrogate learns from a complete trial, in the direction of the study: by default its value.
            Use `curve_mean` if trials report a learning curve.
        cost: the exact second objective of a layout; None for a study of one objective.
        on_proposal: callback that receives each `Proposal`.

    Examples:
        >>> import optuna
        >>> from dasearch.bayes import PRSampler, quietly
        >>> def objective(trial):
        ...     method = trial.suggest_categorical("method", ["fast", "exact", "learned"])
        ...     return len(method) + (trial.suggest_categorical("cached", ["no", "yes"]) == "yes")
        >>> with quietly():
        ...     study = optuna.create_study(direction="maximize", sampler=PRSampler(seed=0))
        ...     study.optimize(objective, n_trials=6)  # as many as there are combinations
        >>> study.best_params
        {'method': 'learned', 'cached': 'yes'}
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        n_startup: int | None = None,
        search_space: Mapping[str, BaseDistribution] | None = None,
        prior: Sequence[Observation] = (),
        signal: Signal = final_value,
        cost: Cost | None = None,
        on_proposal: Callable[[Proposal], None] | None = None,
    ) -> None:
        single = [name for name, distribution in (search_space or {}).items() if parameter_of(distribution) is None]
        if single:
            raise ValueError(
                f"{single[0]} has a single value, which leaves nothing to choose; leave it out of search_space"
            )
        if n_startup is not None and n_startup < 1:
            raise ValueError(f"n_startup is {n_startup}; a surrogate needs at least 1 trial")
        self._seed, self._n_startup = seed, n_startup
        self._space = dict(search_space) if search_space is not None else None
        self._prior = tuple(Observation(*observation) for observation in prior)
        self._signal, self._cost = signal, cost
        self._intersection = IntersectionSearchSpace()
        self._on_proposal = on_proposal or (lambda _: None)
        self._fit = _LastFit()

    def reseed_rng(self) -> None:
        """Do nothing: the sampler keeps no random state."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The parameters with more than one value, by name.

        Raises:
            ValueError: if the study's directions do not match the sampler's objectives.
        """
        _require_directions(study, self._cost)
        space = self._space if self._space is not None else self._intersection.calculate(study)
        return {name: space[name] for name in parameters_of(space)} if space else {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A random value, for parameters that the surrogate does not model."""
        seed = _seed_of(self._seed, _known(study, trial), param_name) % 2**32
        return RandomSampler(seed=seed).sample_independent(study, trial, param_name, param_distribution)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next layout, given the study's history and the trial's fixed parameters.

        Raises:
            SpaceExhausted: if every layout that agrees with the trial's fixed parameters was already evaluated or is running.
        """
        space = parameters_of(search_space)
        if not space or set(space) <= set(_fixed(trial, space)):
            return {}
        while True:
            started = time.perf_counter()
            history = _History(study, trial, space, self._signal, self._prior, fit=self._fit)
            maximum, source = self._choose(history)
            codes = dict(zip(space, maximum.codes.tolist(), strict=True))
            layout = {name: space[name].values[int(code)] for name, code in codes.items()} | _fixed(trial, space)
            if history.repeatable or claim(study._storage, study._study_id, trial, codes):
                break
        mean, sd = history.prediction(maximum.codes)
        modelled = source == REPARAMETERIZATION
        probabilities = _named(maximum.probabilities, history.choices, space) if modelled else None
        acquisition = maximum.value if modelled else None
        seconds = time.perf_counter() - started
        self._on_proposal(Proposal(trial.number, source, layout, probabilities, acquisition, mean, sd, seconds))
        return layout

    def _startup_trials(self, history: _History) -> int:
        if self._n_startup is not None:
            return self._n_startup
        return max(FEWEST_STARTUP, startup_trials(history.choices.d) - len(history.before))

    def _choose(self, history: _History) -> tuple[Maximum, str]:
        generator = torch.Generator().manual_seed(_seed_of(self._seed, history.known))
        if history.known < self._startup_trials(history) or not len(history.values):
            return _startup(history, self._seed, generator)
        known = (history.running, history.excluded, history.fixed, generator)
        cost = None if self._cost is None else known_cost(self._cost, history.space, history.choices)
        return propose(history.surrogate, *known, cost=cost), REPARAMETERIZATION


def startup_trials(variables: int) -> int:
    """Default number of evaluations before the surrogate proposes, for a study without a prior.

    Examples:
        >>> from dasearch.bayes import startup_trials
        >>> startup_trials(4), startup_trials(12), startup_trials(90)
        (2, 4, 10)
    """
    return min(MOST_STARTUP, max(FEWEST_STARTUP, int(STARTUP_SHARE * variables)))


def propose(
    surrogate: Surrogate,
    running: Tensor,
    excluded: Tensor,
    fixed: Mapping[int, int] | None = None,
    generator: torch.Generator | None = None,
    *,
    cost: KnownCost | None = None,
) -> Maximum:
    """The next point by log expected improvement, or hypervolume improvement if there is a ``cost``.

    Shapes: running ``(p, d)``, excluded ``(e, d)``.

    Raises:
        SpaceExhausted: if every point is excluded.

    Examples:
        >>> import torch
        >>> from dasearch.bayes import Surrogate, propose
        >>> codes = torch.tensor([[0, 0], [0, 1], [1, 0]])
        >>> surrogate = Surrogate.fit(codes, torch.tensor([0.0, 0.4, 0.5]))
        >>> propose(surrogate, running=codes[:0], excluded=codes).codes.tolist()
        [1.0, 1.0]
    """
    believed = surrogate.fantasize(running)
    generator = generator or torch.Generator().manual_seed(0)
    if cost is not None:
        of_front = HypervolumeImprovement(believed, cost)
        reparameterized = ProbabilisticReparameterization(of_front, surrogate.choices, fixed, generator=generator)
        return reparameterized.maximise(excluded, near=of_front.promising(PROMISING))
    improvement = LogExpectedImprovement(believed)
    reparameterized = ProbabilisticReparameterization(improvement, surrogate.choices, fixed, generator=generator)
    codes, means = believed.codes, improvement.means
    if surrogate.prior is not None:
        codes = torch.cat([codes, surrogate.prior.codes])
        means = torch.cat([means, believed.posterior(surrogate.prior.codes).mean])
    promising = means.topk(min(PROMISING, len(means))).indices
    return reparameterized.maximise(excluded, near=codes[promising])


def propose_batch(
    surrogate: Surrogate,
    q: int,
    running: Tensor,
    excluded: Tensor,
    fixed: Mapping[int, int] | None = None,
    generator: torch.Generator | None = None,
    *,
    cost: KnownCost | None = None,
) -> list[Maximum]:
    """A batch of ``q`` points, proposed sequentially, each conditioned on the previous ones as running.

    Examples:
        >>> import torch
        >>> from dasearch.bayes import Surrogate, propose_batch
        >>> codes = torch.tensor([[0, 0], [0, 1], [1, 0]])
        >>> surrogate = Surrogate.fit(codes, torch.tensor([0.0, 0.4, 0.5]))
        >>> found = propose_batch(surrogate, 2, running=codes[:0], excluded=codes[:2])
        >>> sorted(maximum.codes.tolist() for maximum in found)
        [[1.0, 0.0], [1.0, 1.0]]
    """
    generator = generator or torch.Generator().manual_seed(0)
    batch: list[Maximum] = []
    for _ in range(q):
        batch.append(propose(surrogate, running, excluded, fixed, generator, cost=cost))
        running = torch.cat([running, batch[-1].codes[None]])
        excluded = torch.cat([excluded, batch[-1].codes[None]])
    return batch


def choices_of(space: Space) -> Choices:
    """Parameters as variables of a space, with layers if their names contain them.

    Examples:
        >>> from optuna.distributions import CategoricalDistribution, IntDistribution
        >>> from dasearch.bayes import choices_of, parameters_of
        >>> space = {"optimizer": CategoricalDistribution(["sgd", "adam"]), "layers": IntDistribution(1, 3)}
        >>> choices_of(parameters_of(space)).sizes  # in the order of their names
        (3, 2)
    """
    sizes = {name: len(parameter.values) for name, parameter in space.items()}
    return Choices.named(sizes, {name: parameter.positions for name, parameter in space.items()})


def known_cost(cost: Cost, space: Space, choices: Choices) -> KnownCost:
    """A cost as a function of codes instead of parameters.

    The highest cost is searched by changing one parameter at a time, starting from all first choices: it is the maximum if the
    cost is a sum over parameters, or if more of one never makes another cheaper.

    Examples:
        >>> from optuna.distributions import CategoricalDistribution, IntDistribution
        >>> from dasearch.bayes import choices_of, known_cost, parameters_of
        >>> space = parameters_of({"optimizer": CategoricalDistribution(["sgd", "adam"]), "layers": IntDistribution(1, 3)})
        >>> known_cost(lambda params: 100.0 * params["layers"], space, choices_of(space)).highest
        300.0
    """
    names, able = list(space), [parameter.values for parameter in space.values()]
    cache: dict[tuple[int, ...], float] = {}

    def one(codes: Sequence[int]) -> float:
        key = tuple(codes)
        if key not in cache:
            cache[key] = float(cost({name: own[code] for name, own, code in zip(names, able, key, strict=True)}))
        return cache[key]

    def of(codes: Tensor) -> Tensor:
        return torch.tensor([one(row) for row in codes.long().tolist()], dtype=torch.float64)

    dearest = [0] * choices.d
    for i, size in enumerate(choices.sizes):
        changed = [[*dearest[:i], code, *dearest[i + 1 :]] for code in range(size)]
        dearest = max(changed, key=one)
    return KnownCost(of, one(dearest))


class _LastFit:
    """Fits surrogates and caches the last one, which is reused for the same inputs."""

    def __init__(self) -> None:
        self._last: Surrogate | None = None

    def __call__(self, codes: Tensor, values: Tensor, choices: Choices, prior: Prior | None) -> Surrogate:
        last = self._last
        if last is None or not _fitted_to(last, codes, values, choices, prior):
            self._last = last = Surrogate.fit(codes, values, choices, prior=prior)
        return last


def _fitted_to(surrogate: Surrogate, codes: Tensor, values: Tensor, choices: Choices, prior: Prior | None) -> bool:
    before = surrogate.prior
    if surrogate.choices != choices or (before is None) != (prior is None):
        return False
    pairs = [(surrogate.codes, codes), (surrogate.values, values), *zip(before or (), prior or (), strict=True)]
    return all(torch.equal(known, now) for known, now in pairs)


class _History:
    """A study's trials as tensors. Values are negated if the study minimises, so that larger is better."""

    def __init__(
        self,
        study: Study,
        trial: FrozenTrial,
        space: Space,
        signal: Signal,
        prior: Sequence[Observation],
        *,
        fit: _LastFit,
    ) -> None:
        self.space = space
        self.choices = choices_of(space)
        fixed = _fixed(trial, space)
        codes = {i: space[name].code(fixed[name]) for i, name in enumerate(space) if name in fixed}
        self.fixed = {i: code for i, code in codes.items() if code is not None}
        others = [t for t in _all_trials(study) if t.number != trial.number]
        self.known = _count(others)
        self._sign = 1.0 if study.directions[0] is StudyDirection.MAXIMIZE else -1.0
        layouts = {t.number: layout for t in others if (layout := _codes(t, space)) is not None}
        complete = {t.number: signal(t) for t in others if t.state is TrialState.COMPLETE and t.number in layouts}
        complete = {number: value for number, value in complete.items() if math.isfinite(value)}
        self.codes = self._stack([layouts[number] for number in complete])
        self.values = self._sign * torch.tensor(list(complete.values()), dtype=torch.float64)
        self.running = self._stack([layouts[t.number] for t in others if _runs(t) and t.number in layouts])
        # with further parameters, a layout may be evaluated again with other values of them
        self.repeatable = any(set(t.params) - set(space) for t in others)
        taken = [t.number for t in others if t.state is not TrialState.FAIL and t.number in layouts]
        self.taken = self._stack([layouts[number] for number in taken])
        self.excluded = self._stack([]) if self.repeatable else self.taken
        before = _spread([(c, o.value) for o in prior if (c := _chosen(o.params, space)) and math.isfinite(o.value)])
        self.before = self._stack([codes for codes, _ in before])
        self._before_values = self._sign * torch.tensor([value for _, value in before], dtype=torch.float64)
        self._fit = fit
        self._fitted: Surrogate | None = None

    @property
    def surrogate(self) -> Surrogate:
        if self._fitted is None:
            prior = Prior.standardised(self.before, self._before_values)
            self._fitted = self._fit(self.codes, self.values, self.choices, prior)
        return self._fitted

    def best_before(self) -> Tensor:
        """The other study's layout with the best posterior mean under its own data: ``(1, d)``; ``(0, d)`` without a prior."""
        if not len(self.before):
            return self.before
        means = Surrogate.fit(self.before, self._before_values, self.choices).posterior(self.before).mean
        return self.before[means.argmax()][None]

    def prediction(self, codes: Tensor) -> tuple[float | None, float | None]:
        """Posterior mean and sd at a layout in the study's own units; None before the surrogate is first fitted."""
        if self._fitted is None:
            return None, None
        mean, sd = self._fitted.posterior(codes[None])
        return self._sign * float(mean), float(sd)

    def _stack(self, rows: Sequence[Sequence[float]]) -> Tensor:
        return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(self.space))


def _require_directions(study: Study, cost: Cost | None) -> None:
    if cost is None and len(study.directions) > 1:
        raise ValueError(
            f"the study has {len(study.directions)} objectives; PRSampler proposes for one, or with cost=FUNCTION for one and "
            "a cost that is known beforehand"
        )
    if cost is not None and (len(study.directions) != 2 or study.directions[1] is not StudyDirection.MINIMIZE):
        raise ValueError(
            "with a cost the study needs two directions, the second of them minimize, as in "
            'optuna.create_study(directions=["maximize", "minimize"])'
        )


def _all_trials(study: Study) -> list[FrozenTrial]:
    """All trials as currently stored; Optuna's study object caches an older view during a trial."""
    return study._storage.get_all_trials(study._study_id, deepcopy=False)


def _known(study: Study, trial: FrozenTrial) -> int:
    return _count([t for t in _all_trials(study) if t.number != trial.number])


def _count(trials: Sequence[FrozenTrial]) -> int:
    return sum(t.state in (TrialState.COMPLETE, TrialState.PRUNED) or _runs(t) for t in trials)


def _runs(trial: FrozenTrial) -> bool:
    return trial.state is TrialState.RUNNING


def _codes(trial: FrozenTrial, space: Space) -> list[float] | None:
    """The codes of a trial's evaluated, enqueued or claimed layout; None if it is incomplete or outside this space."""
    params: dict[str, Any] = dict(trial.params)
    if not trial.state.is_finished():
        params = {**_fixed(trial, space), **params}
    if set(space) <= set(params):
        return _chosen(params, space)
    claims = claimed(trial) if _runs(trial) else None
    return [float(claims[name]) for name in space] if claims and set(claims) == set(space) else None


def _chosen(params: Mapping[str, Any], space: Space) -> list[float] | None:
    """A choice of every parameter as codes; None if one is missing or outside this space."""
    codes = [parameter.code(params[name]) if name in params else None for name, parameter in space.items()]
    return None if None in codes else [float(code) for code in codes if code is not None]


def _spread(before: list[tuple[list[float], float]]) -> list[tuple[list[float], float]]:
    """At most `MOST_BEFORE` layouts with their values, from the worst to the best."""
    ranked = sorted(before, key=lambda pair: pair[1])
    places = torch.linspace(0, len(ranked) - 1, min(len(ranked), MOST_BEFORE), dtype=torch.float64)
    return [ranked[place] for place in places.round().long().tolist()]


def _fixed(trial: FrozenTrial, space: Space) -> dict[str, Any]:
    """Enqueued and already suggested parameters of this space; unknown names and choices are dropped."""
    given = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
    return {name: value for name, value in given.items() if name in space and space[name].code(value) is not None}


def _startup(history: _History, seed: int, generator: torch.Generator) -> tuple[Maximum, str]:
    """The first untaken point of the other study's best layout and the initial design, or else a proposal without data."""
    best = history.best_before()
    design = hold(torch.cat([best, _design(history.choices, seed)]), history.fixed)
    fresh = ~among(design, history.taken)
    if fresh.any():
        first = int(fresh.int().argmax())
        return Maximum(design[first], torch.zeros(0), 0.0), WARM_START if first < len(best) else STARTUP
    nothing_known = Surrogate.fit(torch.zeros(1, history.choices.d), torch.zeros(1), history.choices)
    return propose(nothing_known, history.running, history.excluded, history.fixed, generator), STARTUP


def _design(choices: Choices, seed: int) -> Tensor:
    """All first choices, all second choices, then Sobol points, the same on each call: ``(SOBOL_TRIES + 2, d)``.

    In the first two, ordered variables have their middle value: for a learning rate, neither the lowest nor the next.

    The other homogeneous layouts, with a single site at its second choice, are left to the surrogate: as startup trials they
    brought no gain where layers share effects and kept the search near them elsewhere (benchmarks/README.md).
    """
    homogeneous = torch.tensor([[0.0], [1.0]], dtype=torch.float64).repeat(1, choices.d)
    for variable, positions in enumerate(choices.positions or ()):
        if positions is not None:
            homogeneous[:, variable] = len(positions) // 2
    engine = SobolEngine(choices.d, scramble=True, seed=_seed_of(seed, "design") % 2**31)
    return torch.cat([homogeneous, choices.from_unit(engine.draw(SOBOL_TRIES, dtype=torch.float64))])


def _seed_of(*parts: object) -> int:
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _named(values: Tensor, choices: Choices, space: Space) -> dict[str, list[float]]:
    names = list(space)
    by_name: dict[str, list[float]] = {name: [] for name in names}
    for (variable, _), value in zip(choices.columns, values.tolist(), strict=True):
        by_name[names[variable]].append(value)
    return by_name
