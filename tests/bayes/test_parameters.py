"""Numbers on a grid, and studies that search them together with categories."""

from __future__ import annotations

import math
from pathlib import Path

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from dasearch.bayes import PRSampler, parameter_of
from dasearch.bayes.parameters import MOST_VALUES

SITES = [f"layer{k:02d}.{site}" for k in range(1, 4) for site in ("causal", "context")]
SPACE: dict[str, BaseDistribution] = {
    **{name: CategoricalDistribution(["serial", "parallel"]) for name in SITES},
    "lr": FloatDistribution(1e-4, 1e-1, log=True),
    "width": IntDistribution(8, 64, log=True),
}


@pytest.mark.parametrize(
    ("distribution", "values"),
    [
        (IntDistribution(1, 4), (1, 2, 3, 4)),
        (IntDistribution(0, 12, step=4), (0, 4, 8, 12)),
        (IntDistribution(1, 4, log=True), (1, 2, 3, 4)),
        (FloatDistribution(0.0, 0.5, step=0.25), (0.0, 0.25, 0.5)),
        (FloatDistribution(0.0, 1.0), tuple(k / 8 for k in range(9))),
        (CategoricalDistribution([None, 3, "a"]), (None, 3, "a")),
    ],
)
def test_values(distribution: BaseDistribution, values: tuple[object, ...]) -> None:
    found = parameter_of(distribution)
    assert found is not None
    assert found.values == pytest.approx(values) if isinstance(values[0], float) else found.values == values
    assert [found.code(value) for value in found.values] == list(range(len(values)))


def test_a_grid_is_even_on_the_parameter_s_own_scale_and_keeps_its_ends() -> None:
    found = parameter_of(SPACE["lr"])
    assert found is not None
    assert (found.values[0], found.values[-1], len(found.values)) == (1e-4, 1e-1, MOST_VALUES)
    steps = [math.log(b / a) for a, b in zip(found.values, found.values[1:], strict=False)]
    assert steps == pytest.approx([math.log(1000) / 8] * 8)
    assert found.positions == pytest.approx(tuple(k / 8 for k in range(9)))
    wide = parameter_of(IntDistribution(0, 1000, step=5))
    assert wide is not None
    assert len(wide.values) == MOST_VALUES
    assert all(value % 5 == 0 for value in wide.values)


def test_a_value_off_the_grid_maps_to_the_nearest_grid_point() -> None:
    found = parameter_of(SPACE["lr"])
    assert found is not None
    assert found.code(1.1e-4) == 0
    assert found.code(3e-3) == found.code(found.values[4]) == 4
    for outside in (1.0, -1.0, "a", None):
        assert found.code(outside) is None


def test_a_single_value_leaves_nothing_to_choose() -> None:
    for single in (CategoricalDistribution(["a"]), FloatDistribution(0.5, 0.5), IntDistribution(3, 3)):
        assert parameter_of(single) is None
        with pytest.raises(ValueError, match="x has a single value"):
            PRSampler(search_space={"x": single})


def value(trial: optuna.Trial) -> float:
    """Parallel context sites help; one learning rate is right, and width is worth a little."""
    sites = [trial.suggest_categorical(name, ["serial", "parallel"]) == "parallel" for name in SITES]
    lr, width = trial.suggest_float("lr", 1e-4, 1e-1, log=True), trial.suggest_int("width", 8, 64, log=True)
    off = math.log10(lr / 4e-3)
    return 0.1 * sum(sites[1::2]) - 0.05 * sum(sites[::2]) - off**2 + 0.02 * math.log2(width)


def study(seed: int, url: str | None = None, **options: object) -> optuna.Study:
    sampler = PRSampler(seed=seed, search_space=SPACE, **options)  # type: ignore[arg-type]
    return optuna.create_study(
        direction="maximize", sampler=sampler, storage=url, study_name="one", load_if_exists=True
    )


def test_numbers_are_searched_together_with_categories() -> None:
    """The best of 25 points is nearer to the top than random search's, and near it."""
    top = 0.3 + 0.02 * 6
    ours, random = 0.0, 0.0
    for seed in range(3):
        found = study(seed)
        found.optimize(value, n_trials=25)
        ours += top - found.best_value
        other = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=seed))
        other.optimize(value, n_trials=25)
        random += top - other.best_value
    assert ours / 3 < 0.06
    assert ours < random / 2


def test_without_a_space_numbers_are_learned_from_trials_too() -> None:
    found = optuna.create_study(direction="maximize", sampler=PRSampler(seed=0))
    found.optimize(value, n_trials=16)
    grid = parameter_of(SPACE["lr"])
    assert grid is not None
    assert all(any(math.isclose(t.params["lr"], v) for v in grid.values) for t in found.trials[1:])
    assert len({tuple(t.params.items()) for t in found.trials}) == 16


def test_the_startup_begins_in_the_middle_of_a_scale() -> None:
    found = study(0, n_startup=2)
    found.optimize(value, n_trials=2)
    assert [found.trials[k].params["lr"] for k in (0, 1)] == pytest.approx([10**-2.5] * 2)
    assert [set(map(found.trials[k].params.get, SITES)) for k in (0, 1)] == [{"serial"}, {"parallel"}]


def test_a_killed_study_resumes_identically(tmp_path: Path) -> None:
    def told(url: str, parts: tuple[int, ...]) -> list[dict[str, object]]:
        for part in parts:
            one = study(1, url)
            one.optimize(value, n_trials=part)
        return [trial.params for trial in one.trials]

    assert told(f"sqlite:///{tmp_path / 'a.db'}", (14,)) == told(f"sqlite:///{tmp_path / 'b.db'}", (5, 9))


def test_fixed_values_are_kept_on_and_off_the_grid() -> None:
    found = study(2)
    found.enqueue_trial({"lr": 0.0123})
    found.optimize(value, n_trials=1)
    assert found.trials[0].params["lr"] == 0.0123
    assert set(found.trials[0].params) == set(SPACE)
