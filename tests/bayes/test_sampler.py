"""The sampler in Optuna's own studies; SPEC 6, check 26."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
import torch
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from dasearch.bayes import Proposal, PRSampler, SpaceExhausted

optuna.logging.set_verbosity(optuna.logging.ERROR)
CHOICES = ("serial", "parallel")
NAMES = [f"layer{layer:02d}.{site}" for layer in range(1, 5) for site in ("causal", "context", "recommendation")]
SPACE = {name: CategoricalDistribution(CHOICES) for name in NAMES}


def study(seed: int = 0, *, storage: str | None = None, **options: object) -> optuna.Study:
    sampler = PRSampler(seed=seed, **{"search_space": SPACE, **options})  # type: ignore[arg-type]
    return optuna.create_study(
        direction="maximize", sampler=sampler, storage=storage, study_name="s", load_if_exists=storage is not None
    )


def layout(trial: optuna.Trial | optuna.trial.FrozenTrial) -> str:
    return "".join(trial.params[name][0] for name in NAMES)


class Planted:
    """An optimum planted in a landscape of single and paired effects, with a little noise."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.linear = torch.randn(12, generator=generator, dtype=torch.float64)
        self.pairs = 0.5 * torch.randn(12, 12, generator=generator, dtype=torch.float64).triu(1)
        self.noise = torch.Generator().manual_seed(seed + 1)
        every = torch.tensor([[k >> i & 1 for i in range(12)] for k in range(4096)], dtype=torch.float64)
        self.best = float(self.value(every).max())

    def value(self, bits: torch.Tensor) -> torch.Tensor:
        return bits @ self.linear + ((bits @ self.pairs) * bits).sum(-1)

    def __call__(self, trial: optuna.Trial) -> float:
        bits = torch.tensor(
            [[float(trial.suggest_categorical(n, CHOICES) == "parallel") for n in NAMES]], dtype=torch.float64
        )
        return float(self.value(bits)) + 0.1 * float(torch.randn((), generator=self.noise))


def test_check_26_beats_random_search_at_equal_budget() -> None:
    share = {"pr": 0.0, "random": 0.0}
    for seed in range(5):
        for name in share:
            found = study(seed) if name == "pr" else study(seed, n_startup=1000)
            planted = Planted(seed)
            found.optimize(planted, n_trials=30)
            share[name] += found.best_value / planted.best / 5
    assert share["pr"] > 0.9
    assert share["pr"] > share["random"] + 0.1


def test_check_26_a_killed_study_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    def run(planted: Planted, one: optuna.Study, n: int) -> None:
        one.optimize(planted, n_trials=n)

    whole = study(3)
    whole.optimize(_noiseless, n_trials=15)
    url = f"sqlite:///{tmp_path / 's.db'}"
    first = study(3, storage=url)
    first.optimize(_noiseless, n_trials=12)
    lost = first.ask()
    _noiseless(lost)  # the layout is drawn, and the process dies
    again = study(3, storage=url)
    again.tell(lost.number, state=TrialState.FAIL)
    optuna.storages.RetryHeartbeatStaleTrialCallback()(again, again.trials[lost.number])
    again.optimize(_noiseless, n_trials=3)
    finished = [t for t in again.trials if t.state is TrialState.COMPLETE]
    assert [layout(t) for t in finished] == [layout(t) for t in whole.trials]


def _noiseless(trial: optuna.Trial) -> float:
    return sum((i % 5 - 2) * (trial.suggest_categorical(n, CHOICES) == "parallel") for i, n in enumerate(NAMES))


def test_startup_design_and_what_is_told() -> None:
    told: list[Proposal] = []
    found = study(on_proposal=told.append)
    found.optimize(_noiseless, n_trials=12)
    layouts = [layout(t) for t in found.trials]
    assert layouts[:5] == ["s" * 12, "p" * 12, "pss" * 4, "sps" * 4, "ssp" * 4]
    assert len(set(layouts)) == 12
    assert [p.source for p in told] == ["startup"] * 10 + ["reparameterization"] * 2
    last = told[-1]
    assert last.trial_number == 11
    assert dict(last.layout) == found.trials[-1].params
    assert set(last.theta) == set(NAMES)
    assert last.sd > 0
    assert last.mean == pytest.approx(0, abs=30)


def test_same_seed_same_layouts() -> None:
    runs = []
    for seed in (5, 5, 6):
        one = study(seed)
        one.optimize(_noiseless, n_trials=13)
        runs.append([layout(t) for t in one.trials])
    assert runs[0] == runs[1] != runs[2]


def test_minimising_mirrors_maximising() -> None:
    up = study(1)
    up.optimize(_noiseless, n_trials=14)
    down = optuna.create_study(direction="minimize", sampler=PRSampler(seed=1, search_space=SPACE))
    down.optimize(lambda trial: -_noiseless(trial), n_trials=14)
    assert [layout(t) for t in up.trials] == [layout(t) for t in down.trials]


def test_never_the_same_twice_and_the_end_of_a_small_space() -> None:
    small = {name: SPACE[name] for name in NAMES[:3]}
    found = study(search_space=small, n_startup=4)

    def value(trial: optuna.Trial) -> float:
        return float(sum(trial.suggest_categorical(n, CHOICES) == "parallel" for n in small))

    found.optimize(value, n_trials=8)
    assert len({tuple(t.params.values()) for t in found.trials}) == 8
    with pytest.raises(SpaceExhausted, match="all 8 layouts"):
        value(found.ask())


def test_running_trials_get_different_layouts() -> None:
    found = study(2, n_startup=4)
    found.optimize(_noiseless, n_trials=6)
    running = [found.ask() for _ in range(4)]
    for trial in running:
        _noiseless(trial)
    layouts = [layout(t) for t in found.trials]
    assert len(set(layouts)) == 10


def test_failed_may_return_pruned_may_not() -> None:
    found = study(n_startup=2)
    for state in (TrialState.PRUNED, TrialState.FAIL):
        trial = found.ask()
        _noiseless(trial)
        found.tell(trial, state=state)
    trial = found.ask()
    _noiseless(trial)
    layouts = [layout(t) for t in found.trials]
    assert layouts[0] == "s" * 12  # pruned
    assert layouts[1] == layouts[2] == "p" * 12  # failed, and proposed again


def test_enqueued_choices_are_kept_and_the_rest_follows() -> None:
    found = study(4, n_startup=3)
    found.optimize(_noiseless, n_trials=5)
    best = {n: "parallel" if i % 5 > 2 else "serial" for i, n in enumerate(NAMES)}
    held = {NAMES[0]: "parallel", NAMES[7]: "parallel"}
    found.enqueue_trial(held)
    found.optimize(_noiseless, n_trials=1)
    assert {n: found.trials[-1].params[n] for n in held} == held
    found.enqueue_trial(best)
    assert found.ask().number == 6


def test_a_waiting_layout_is_not_proposed() -> None:
    found = study()
    found.enqueue_trial(dict.fromkeys(NAMES, "serial"))
    found.enqueue_trial(dict.fromkeys(NAMES, "parallel"))
    found.optimize(_noiseless, n_trials=3)
    assert [layout(t) for t in found.trials] == ["s" * 12, "p" * 12, "pss" * 4]


def test_infinite_values_are_ignored() -> None:
    found = study(n_startup=2)
    found.optimize(lambda trial: float("inf") if trial.number == 1 else _noiseless(trial), n_trials=4)
    assert len({layout(t) for t in found.trials if t.params}) >= 3


def test_other_parameters_are_drawn_independently() -> None:
    found = optuna.create_study(direction="maximize", sampler=PRSampler(seed=0, n_startup=3))

    def mixed(trial: optuna.Trial) -> float:
        bit = trial.suggest_categorical("bit", [False, True])
        x = trial.suggest_float("x", 0, 1)
        c = trial.suggest_categorical("c", ["a", "b", "c"])
        return x + bit + (c == "b")

    found.optimize(mixed, n_trials=8)
    assert all(set(t.params) == {"bit", "x", "c"} for t in found.trials)


def test_wrong_use() -> None:
    with pytest.raises(ValueError, match="c does not have two choices"):
        PRSampler(search_space={"c": CategoricalDistribution(["a", "b", "c"])})
    with pytest.raises(ValueError, match="n_startup is 0"):
        PRSampler(n_startup=0)
    several = optuna.create_study(directions=["maximize", "minimize"], sampler=PRSampler(search_space=SPACE))
    with pytest.raises(ValueError, match="multi-objective"):
        several.ask().suggest_categorical(NAMES[0], CHOICES)
