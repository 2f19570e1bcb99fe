"""Hypervolume, Pareto fronts, their knee, and the expected improvement, against brute force and BoTorch."""

from __future__ import annotations

import optuna
import pytest
import torch
from botorch.utils.multi_objective.hypervolume import Hypervolume
from optuna.distributions import CategoricalDistribution
from torch import Tensor

from dasearch.bayes import (
    Choices,
    HypervolumeImprovement,
    KnownCost,
    PRSampler,
    Reference,
    Surrogate,
    known_cost,
    parameters_of,
)
from dasearch.bayes.hypervolume import (
    Steps,
    front,
    hypervolume,
    knee,
    log_expected_hypervolume_improvement,
    spread_over,
)

optuna.logging.set_verbosity(optuna.logging.ERROR)
CHOICES = ("serial", "parallel", "none")
NAMES = [f"layer{layer:02d}.{site}" for layer in (1, 2, 3) for site in ("causal", "context", "recommendation")]
SPACE = {name: CategoricalDistribution(CHOICES) for name in NAMES}
WEIGHTS = dict(zip(NAMES, (4.0, 9.0, 2.0, 4.0, 9.0, 2.0, 1.0, 3.0, 5.0), strict=True))
EFFECTS = {name: 0.1 * (place % 4) - 0.05 for place, name in enumerate(NAMES)}


def points(n: int, seed: int) -> tuple[list[float], list[float]]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(n, generator=generator, dtype=torch.float64)
    costs = torch.randint(1, 9, (n,), generator=generator).double()  # so that some cost the same
    return values.tolist(), costs.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_the_nondominated_points(seed: int) -> None:
    values, costs = points(20, seed)

    def dominated(i: int) -> bool:
        return any(
            values[j] >= values[i] and costs[j] <= costs[i] and (values[j], costs[j]) != (values[i], costs[i])
            for j in range(20)
        )

    found = front(values, costs)
    assert sorted(found) == [i for i in range(20) if not dominated(i)]
    assert [costs[i] for i in found] == sorted(costs[i] for i in found)


def test_of_equal_points_the_first_is_on_the_front() -> None:
    assert front([0.5, 0.5, 0.4], [2.0, 2.0, 3.0]) == [0]


@pytest.mark.parametrize("seed", range(5))
def test_hypervolume_is_that_of_botorch(seed: int) -> None:
    values, costs = points(12, seed)
    reference = Reference(0.2, 7.0)  # some points are outside of it
    theirs = Hypervolume(torch.tensor([0.2, -7.0], dtype=torch.float64))
    both = torch.tensor([[value, -cost] for value, cost in zip(values, costs, strict=True)], dtype=torch.float64)
    on_front = both[front(values, costs)]
    assert hypervolume(values, costs, reference) == pytest.approx(theirs.compute(on_front))
    assert hypervolume([], [], reference) == 0.0


@pytest.mark.parametrize("known", [0, 1, 6])
def test_expected_improvement_is_that_of_drawn_values(known: int) -> None:
    values, costs = points(known, 3)
    reference = Reference(0.1, 8.5)
    steps = Steps.of(torch.tensor(values).double(), torch.tensor(costs).double(), reference)
    before = hypervolume(values, costs, reference)
    generator = torch.Generator().manual_seed(0)
    for mean, sd, cost in ((0.7, 0.2, 2.0), (0.3, 0.4, 5.5), (0.95, 0.1, 8.0), (0.2, 0.3, 0.5)):
        drawn = (mean + sd * torch.randn(4000, generator=generator, dtype=torch.float64)).tolist()
        gains = [hypervolume([*values, one], [*costs, cost], reference) - before for one in drawn]
        numbers = (torch.tensor([number], dtype=torch.float64) for number in (mean, sd, cost))
        found = float(log_expected_hypervolume_improvement(*numbers, steps).exp())
        error = float(torch.tensor(gains).std()) / 4000**0.5
        assert found == pytest.approx(sum(gains) / 4000, abs=4 * error + 1e-9)


def test_improvement_is_minus_infinity_beyond_the_reference_and_finite_far_below_the_front() -> None:
    steps = Steps.of(torch.tensor([0.5]).double(), torch.tensor([2.0]).double(), Reference(0.0, 4.0))
    mean, sd = torch.tensor([0.9, 0.5]).double(), torch.tensor([0.1, 1e-3]).double()
    beyond, hopeless = log_expected_hypervolume_improvement(mean, sd, torch.tensor([4.0, 3.0]).double(), steps).tolist()
    assert beyond == -torch.inf
    below = log_expected_hypervolume_improvement(mean - 5, sd, torch.tensor([1.0, 3.0]).double(), steps)
    assert hopeless > -100
    assert bool(below.isfinite().all())


def test_the_reference_is_beyond_the_worst_values() -> None:
    found = Reference.beyond(torch.tensor([0.2, 0.4]), torch.tensor([10.0, 30.0]))
    assert found == pytest.approx((0.18, 32.0))
    assert Reference.beyond(torch.tensor([0.2]), torch.tensor([0.0])) == pytest.approx((0.18, 0.1))


def test_the_knee_is_farthest_above_the_chord() -> None:
    values, costs = [0.0, 0.5, 0.8, 0.9, 1.0, 0.3], [0.0, 4.0, 5.0, 8.0, 10.0, 9.0]
    heights = [value - cost / 10 for value, cost in zip(values, costs, strict=True)]
    assert knee(values, costs) == heights.index(max(heights)) == 2
    assert knee([10 * value for value in values], costs) == 2  # units do not matter
    assert knee([0.0, 0.1, 1.0], [0.0, 5.0, 10.0]) == 2  # below the chord: the best value
    assert knee([0.1, 0.4], [1.0, 2.0]) == 1
    with pytest.raises(ValueError, match="no point"):
        knee([], [])


def test_representative_points_are_the_knee_then_the_largest_gains() -> None:
    values, costs = [0.0, 0.5, 0.8, 0.9, 1.0, 0.3], [0.0, 4.0, 5.0, 8.0, 10.0, 9.0]
    found = spread_over(values, costs, 6)
    assert found[0] == 2
    assert sorted(found[:5]) == front(values, costs)  # and what it dominates last
    assert found[5] == 5
    assert spread_over(values, costs, 2) == found[:2]


def cost(params: dict[str, str]) -> float:
    return sum(WEIGHTS[name] for name, choice in params.items() if choice != "none")


def value(params: dict[str, str]) -> float:
    return sum(
        EFFECTS[name] * (1.5 if choice == "parallel" else 1.0) for name, choice in params.items() if choice != "none"
    )


def test_the_highest_cost_of_an_additive_one_is_found() -> None:
    space = dict(sorted(SPACE.items()))
    choices = Choices.named(dict.fromkeys(space, 3))
    known = known_cost(lambda params: -cost(params), parameters_of(SPACE), choices)
    assert known.highest == 0.0  # all none
    codes = torch.tensor([[0.0] * 9, [2.0] * 9, [1.0] * 8 + [2.0]], dtype=torch.float64)
    assert known.of(codes).tolist() == [-39.0, 0.0, -34.0]


def test_the_acquisition_averages_over_members() -> None:
    generator = torch.Generator().manual_seed(1)
    choices = Choices((3,) * 4)
    codes = choices.uniform(12, generator)
    surrogate = Surrogate.fit(codes, codes.sum(1) + torch.randn(12, generator=generator, dtype=torch.float64), choices)

    def of(rows: Tensor) -> Tensor:
        return (rows > 0).double().sum(1)

    found = HypervolumeImprovement(surrogate, KnownCost(of, 4.0))
    asked = choices.uniform(5, generator)
    means, sds = surrogate.member_posteriors(asked)
    alone = [
        log_expected_hypervolume_improvement(mean, sd, of(asked), found.steps).exp()
        for mean, sd in zip(means, sds, strict=True)
    ]
    expected = sum(weight * one for weight, one in zip(surrogate.weights, alone, strict=True))
    torch.testing.assert_close(found(asked[:, None]).exp(), expected)
    assert found.reference.cost == pytest.approx(
        4.4 if 0.0 in found.costs else 4.0 + 0.1 * (4 - float(found.costs.min()))
    )


def searched(seed: int, trials: int, storage: str | None = None, **options: object) -> optuna.Study:
    sampler = PRSampler(seed=seed, search_space=SPACE, cost=cost, **options)  # type: ignore[arg-type]
    study = optuna.create_study(
        directions=["maximize", "minimize"], sampler=sampler, storage=storage, study_name="two", load_if_exists=True
    )
    study.optimize(_told, n_trials=trials)
    return study


def _told(trial: optuna.Trial) -> tuple[float, float]:
    params = {name: trial.suggest_categorical(name, CHOICES) for name in NAMES}
    return value(params), cost(params)


def area(study: optuna.Study) -> float:
    told = [trial.values for trial in study.trials]
    return hypervolume([values[0] for values in told], [values[1] for values in told], Reference(-1.0, 40.0))


def test_two_objectives_are_searched_better_than_at_random() -> None:
    ours = sum(area(searched(seed, 24)) for seed in range(3))
    random = sum(area(searched(seed, 24, n_startup=1000)) for seed in range(3))
    most = hypervolume(*_all_values(), Reference(-1.0, 40.0))
    assert ours / 3 > 0.97 * most
    assert ours > 1.05 * random


def _all_values() -> tuple[list[float], list[float]]:
    found = [dict.fromkeys(NAMES, "none")]
    for name in NAMES:
        found = [{**params, name: choice} for params in found for choice in ("parallel", "serial", "none")]
    return [value(params) for params in found], [cost(params) for params in found]


def test_a_killed_study_of_two_objectives_resumes_identically(tmp_path) -> None:  # type: ignore[no-untyped-def]
    whole = searched(2, 10)
    url = f"sqlite:///{tmp_path / 'two.db'}"
    searched(2, 6, url)
    again = searched(2, 4, url)
    assert [trial.params for trial in again.trials] == [trial.params for trial in whole.trials]
    best = {trial.number for trial in again.best_trials}
    told = [trial.values for trial in again.trials]
    assert set(front([v for v, _ in told], [c for _, c in told])) <= best


def test_directions_must_match_the_sampler() -> None:
    both = optuna.create_study(directions=["maximize", "minimize"], sampler=PRSampler(search_space=SPACE))
    with pytest.raises(ValueError, match="2 objectives; PRSampler proposes for one, or with cost=FUNCTION"):
        both.optimize(_told, n_trials=1)
    upwards = optuna.create_study(directions=["maximize"] * 2, sampler=PRSampler(search_space=SPACE, cost=cost))
    with pytest.raises(ValueError, match="two directions, the second of them minimize"):
        upwards.optimize(_told, n_trials=1)
