"""The sampler in Optuna studies; SPEC 6, check 26."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import torch
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from dasearch.bayes import Observation, Prior, Proposal, PRSampler, SpaceExhausted, Surrogate
from dasearch.bayes.claims import KEY, claim

optuna.logging.set_verbosity(optuna.logging.ERROR)
CHOICES = ("serial", "parallel")
NAMES = [f"layer{layer:02d}.{site}" for layer in range(1, 5) for site in ("causal", "context", "recommendation")]
SPACE = {name: CategoricalDistribution(CHOICES) for name in NAMES}


def study(seed: int = 0, *, storage: str | None = None, **options: object) -> optuna.Study:
    sampler = PRSampler(seed=seed, **{"search_space": SPACE, "n_startup": 10, **options})  # type: ignore[arg-type]
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


def test_check_26_a_killed_study_resumes_identically(tmp_path: Path) -> None:
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


def _asked(found: optuna.Study) -> tuple[optuna.Trial, float]:
    """A trial with its layout, and the value to report for it."""
    trial = found.ask()
    return trial, _noiseless(trial)


def _tell_all(found: optuna.Study, asked: list[tuple[optuna.Trial, float]]) -> None:
    for trial, value in asked:
        found.tell(trial, value)


def test_startup_design_and_proposal_records() -> None:
    told: list[Proposal] = []
    found = study(on_proposal=told.append)
    found.optimize(_noiseless, n_trials=12)
    layouts = [layout(t) for t in found.trials]
    assert layouts[:2] == ["s" * 12, "p" * 12]
    assert len(set(layouts)) == 12
    assert [p.source for p in told] == ["startup"] * 10 + ["reparameterization"] * 2
    last = told[-1]
    assert last.trial_number == 11
    assert dict(last.layout) == found.trials[-1].params
    assert set(last.probabilities) == set(NAMES)
    assert all(0.006 < p < 0.994 for (p,) in last.probabilities.values())
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
    down = optuna.create_study(direction="minimize", sampler=PRSampler(seed=1, n_startup=10, search_space=SPACE))
    down.optimize(lambda trial: -_noiseless(trial), n_trials=14)
    assert [layout(t) for t in up.trials] == [layout(t) for t in down.trials]


def test_layouts_are_never_repeated_and_a_small_space_is_exhausted() -> None:
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


def test_asks_without_a_tell_between_them_share_a_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the proposals equal those of a sampler without a cache."""
    fits: list[int] = []
    original = Surrogate.fit.__func__  # type: ignore[attr-defined]

    def counted(cls: type[Surrogate], codes: torch.Tensor, *args: object, **options: object) -> Surrogate:
        fits.append(len(codes))
        return original(cls, codes, *args, **options)  # type: ignore[no-any-return]

    monkeypatch.setattr(Surrogate, "fit", classmethod(counted))
    together, forgetful = study(2, n_startup=4), study(2, n_startup=4)
    for batch in (4, 4, 1, 1):
        _tell_all(together, [_asked(together) for _ in range(batch)])
    assert fits == [4, 8, 9]
    for batch in (4, 4, 1, 1):
        asked = []
        for _ in range(batch):
            forgetful.sampler = PRSampler(seed=2, search_space=SPACE, n_startup=4)
            asked.append(_asked(forgetful))
        _tell_all(forgetful, asked)
    assert fits[3:] == [4, 4, 4, 4, 8, 9]
    assert [layout(t) for t in together.trials] == [layout(t) for t in forgetful.trials]


def test_a_fit_is_not_shared_by_studies_that_differ() -> None:
    """One sampler, asked in turn by studies with other values, another direction and another sign of the prior."""
    prior = observations(rising, 8)
    sampler = PRSampler(seed=1, search_space=SPACE, prior=prior)
    signs = {"maximize": 1, "minimize": -1}
    shared = {d: optuna.create_study(direction=d, sampler=sampler) for d in signs}
    alone = {
        d: optuna.create_study(direction=d, sampler=PRSampler(seed=1, search_space=SPACE, prior=prior)) for d in signs
    }
    for _ in range(6):
        for found in (*shared.values(), *alone.values()):
            found.optimize(_noiseless, n_trials=1)
    for direction in signs:
        assert [layout(t) for t in shared[direction].trials] == [layout(t) for t in alone[direction].trials]


# Of `study(7)` over `_noiseless`, one trial at a time, as the sampler proposed them before it shared fits (torch 2.13).
ONE_AT_A_TIME = """
ssssssssssss pppppppppppp ppspppppssps sspsssssppsp
spspsspsppsp pspsppspssps pppspppsppss ssspssspsspp
sppsssppsspp psspppssppss ssspssssppsp psspspssppsp
sssppsssppss sssppsssppps sssppsspppss sssppsppppss
"""


def test_sequential_proposals_are_unchanged() -> None:
    found = study(7)
    found.optimize(_noiseless, n_trials=16)
    assert [layout(t) for t in found.trials] == ONE_AT_A_TIME.split()


@pytest.mark.parametrize("q", [4, 8])
def test_a_batch_of_proposals_is_distinct_and_new(q: int) -> None:
    found = study(3, n_startup=4)
    for _ in range(3):
        _tell_all(found, [_asked(found) for _ in range(q)])
    assert len({layout(t) for t in found.trials}) == 3 * q


def test_failed_layouts_may_be_proposed_again_pruned_ones_not() -> None:
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


def test_enqueued_choices_are_kept_and_the_rest_is_proposed() -> None:
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
    layouts = [layout(t) for t in found.trials]
    assert layouts[:2] == ["s" * 12, "p" * 12]
    assert layouts[2] not in layouts[:2]


def test_infinite_values_are_ignored() -> None:
    found = study(n_startup=2)
    found.optimize(lambda trial: float("inf") if trial.number == 1 else _noiseless(trial), n_trials=4)
    assert len({layout(t) for t in found.trials if t.params}) >= 3


def test_a_plain_study_with_mixed_parameters() -> None:
    """Choices and numbers on their grids are modelled together."""
    found = optuna.create_study(direction="maximize", sampler=PRSampler(seed=0))

    def mixed(trial: optuna.Trial) -> float:
        bits = sum(trial.suggest_categorical(f"bit{i}", [False, True]) for i in range(6))
        c = trial.suggest_categorical("c", ["a", "b", "c", None])
        x = trial.suggest_float("x", 0, 1)
        n = trial.suggest_int("n", 1, 3)
        return bits + 2 * (c == "b") + 0.1 * x + 0.01 * n

    found.optimize(mixed, n_trials=25)
    assert found.best_value > 8
    assert {t.params["x"] for t in found.trials[1:]} <= {
        k / 8 for k in range(9)
    }  # the space was unknown for the first trial
    assert {t.params["n"] for t in found.trials} == {1, 2, 3}


def test_the_initial_design_does_not_repeat_where_layouts_may() -> None:
    found = study(0, n_startup=6, search_space=dict(list(SPACE.items())[:3]))
    found.optimize(lambda t: _first(t) + t.suggest_float("x", 0, 1), n_trials=6)
    assert len({tuple(t.params[n] for n in NAMES[:3]) for t in found.trials}) == 6


def test_three_choices_are_searched() -> None:
    space = {f"layer{k:02d}.site": CategoricalDistribution(["a", "b", "c"]) for k in range(1, 9)}
    found = optuna.create_study(direction="minimize", sampler=PRSampler(seed=1, search_space=space))

    def distance(trial: optuna.Trial) -> float:
        wanted = ["a", "b", "b", "c", "c", "c", "a", "b"]
        return float(
            sum(trial.suggest_categorical(n, ["a", "b", "c"]) != w for n, w in zip(space, wanted, strict=True))
        )

    found.optimize(distance, n_trials=30)
    assert found.best_value <= 1  # of 6561 layouts 17 are that near


def test_independent_draws_follow_the_seed_after_a_restart(tmp_path: Path) -> None:
    def draws(url: str | None, split: int) -> list[float]:
        for part in (split, 8 - split):
            one = study(2, storage=url, search_space=dict(list(SPACE.items())[:3]))
            one.optimize(lambda t: _first(t) + t.suggest_float("x", 0, 1), n_trials=part)
        return [t.params["x"] for t in one.trials]

    whole = draws(f"sqlite:///{tmp_path / 'a.db'}", 8)
    assert draws(f"sqlite:///{tmp_path / 'b.db'}", 5) == whole
    assert len(set(whole)) == 8


def _first(trial: optuna.Trial) -> float:
    return float(sum(trial.suggest_categorical(n, CHOICES) == "parallel" for n in NAMES[:3]))


def test_unknown_names_and_choices_in_an_enqueued_trial_are_ignored() -> None:
    found = study(3, n_startup=3)
    found.enqueue_trial({"layer99.typo": "parallel", NAMES[0]: "parallel"})
    found.optimize(_noiseless, n_trials=12)
    assert found.trials[0].params[NAMES[0]] == "parallel"
    assert len({layout(t) for t in found.trials}) == 12


def test_an_enqueued_layout_may_come_again() -> None:
    found = study(3, n_startup=3)
    found.optimize(_noiseless, n_trials=4)
    found.enqueue_trial(found.trials[2].params)
    found.optimize(_noiseless, n_trials=2)
    assert layout(found.trials[4]) == layout(found.trials[2])
    assert len({layout(t) for t in found.trials}) == 5


def test_only_the_fixed_part_of_the_space_is_exhausted() -> None:
    small = {name: SPACE[name] for name in NAMES[:3]}
    found = study(search_space=small, n_startup=2)
    held = {NAMES[0]: "serial", NAMES[1]: "serial"}
    for _ in range(2):
        found.enqueue_trial(held)
    found.optimize(_first, n_trials=2)
    found.enqueue_trial(held)
    with pytest.raises(SpaceExhausted, match="all 2 layouts"):
        _first(found.ask())
    found.optimize(_first, n_trials=6)
    assert len({tuple(t.params.values()) for t in found.trials if t.state is TrialState.COMPLETE}) == 8


def test_threads_take_different_layouts() -> None:
    found = study(5, n_startup=4)
    found.optimize(_noiseless, n_trials=16, n_jobs=4)
    assert len({layout(t) for t in found.trials}) == 16


def _work(url: str) -> None:
    study(5, storage=url, n_startup=4).optimize(_noiseless, n_trials=3)


def test_four_processes_take_different_layouts(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 's.db'}?timeout=60"
    study(5, storage=url)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["dasearch.bayes.sampler", "botorch.fit"])  # imported once for all four
    workers = [processes.Process(target=_work, args=(url,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    trials = study(5, storage=url).trials
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 12
    assert len({layout(t) for t in trials}) == 12


class Rival:
    """A storage in which another worker claims a layout just after we have, as seen by `claim`."""

    def __init__(self, number: int, final: bool) -> None:
        self.study = optuna.create_study()
        self.trials = [self.study.ask(), self.study.ask()]
        self.own, self.other = self.trials[1 - number], self.trials[number]
        self.storage, self.study_id = self.study._storage, self.study._study_id
        self.write(final)

    def write(self, final: bool, layout: dict[str, float] | None = None) -> None:
        record = {"layout": layout or {"a": 1.0}, "final": final}
        self.storage.set_trial_system_attr(self.other._trial_id, KEY, record)

    def claim(self) -> bool:
        return claim(self.storage, self.study_id, self.storage.get_trial(self.own._trial_id), {"a": 1.0})


def test_of_two_claims_one_yields(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Rival(0, final=False).claim()  # the other asked first
    assert not Rival(1, final=True).claim()  # the other asked later and had not seen us
    withdrawing, settling = Rival(1, final=False), Rival(1, final=False)
    monkeypatch.setattr(time, "sleep", lambda _: withdrawing.write(final=False, layout={"a": 0.0}))
    assert withdrawing.claim()
    monkeypatch.setattr(time, "sleep", lambda _: settling.write(final=True))
    assert not settling.claim()
    silent = Rival(1, final=False)
    monkeypatch.setattr(time, "sleep", lambda _: monkeypatch.setattr(time, "monotonic", lambda: float("inf")))
    assert silent.claim()
    failed = Rival(0, final=True)
    failed.study.tell(failed.other, state=TrialState.FAIL)
    assert failed.claim()


def test_initial_design_follows_the_size() -> None:
    for count, expected in ((6, 2), (12, 4)):
        told: list[Proposal] = []
        one = study(search_space={n: SPACE[n] for n in NAMES[:count]}, n_startup=None, on_proposal=told.append)
        one.optimize(lambda t, n=count: float(sum(t.suggest_categorical(x, CHOICES) == "serial" for x in NAMES[:n])), 6)
        assert [p.source for p in told].count("startup") == expected


def observations(value: Callable[[torch.Tensor], torch.Tensor], n: int, seed: int = 0) -> list[Observation]:
    """Observations of another study: random layouts and their values."""
    bits = torch.randint(2, (n, 12), generator=torch.Generator().manual_seed(seed)).double()
    params = [dict(zip(NAMES, (CHOICES[int(b)] for b in row), strict=True)) for row in bits]
    return [Observation(*pair) for pair in zip(params, value(bits).tolist(), strict=True)]


def rising(bits: torch.Tensor) -> torch.Tensor:
    """`_noiseless` of bits."""
    return bits @ torch.tensor([i % 5 - 2.0 for i in range(12)], dtype=torch.float64)


def test_a_prior_is_evaluated_first_and_shortens_the_startup() -> None:
    told: list[Proposal] = []
    prior = observations(rising, 20)
    warm = study(n_startup=None, prior=prior, on_proposal=told.append)
    warm.optimize(_noiseless, n_trials=5)
    assert [p.source for p in told] == ["warm start", "startup"] + ["reparameterization"] * 3
    assert warm.trials[0].value == max(o.value for o in prior)
    assert layout(warm.trials[1]) == "s" * 12
    assert len({layout(t) for t in warm.trials}) == 5
    assert len(warm.trials) == 5  # the prior does not count as trials
    few: list[Proposal] = []
    study(n_startup=None, prior=prior[:1], on_proposal=few.append).optimize(_noiseless, n_trials=5)
    assert [p.source for p in few] == ["warm start"] + ["startup"] * 2 + ["reparameterization"] * 2  # 4 less 1


def test_a_related_prior_helps_and_an_opposite_one_is_overruled() -> None:
    share = {"cold": 0.0, "related": 0.0, "opposite": 0.0}
    late = 0.0
    for seed in range(3):
        planted = Planted(seed)
        for name, sign in (("cold", 0), ("related", 1), ("opposite", -1)):
            prior = observations(lambda bits, s=sign, of=planted: s * of.value(bits), 20) if sign else []
            found = study(seed, n_startup=None, prior=prior)
            found.optimize(Planted(seed), n_trials=6)
            share[name] += found.best_value / planted.best / 3
            if name == "opposite":
                found.optimize(Planted(seed), n_trials=19)
                late += found.best_value / planted.best / 3
    assert share["related"] > max(0.85, share["cold"] + 0.1)
    assert late > 0.9


def test_a_killed_warm_started_study_resumes_identically(tmp_path: Path) -> None:
    prior = observations(rising, 8)
    whole = study(3, n_startup=None, prior=prior)
    whole.optimize(_noiseless, n_trials=9)
    url = f"sqlite:///{tmp_path / 's.db'}"
    for count in (1, 4, 4):
        study(3, n_startup=None, prior=prior, storage=url).optimize(_noiseless, n_trials=count)
    assert [layout(t) for t in study(3, storage=url).trials] == [layout(t) for t in whole.trials]


def test_a_prior_mirrors_with_the_direction() -> None:
    up = study(1, n_startup=None, prior=observations(rising, 8))
    up.optimize(_noiseless, n_trials=6)
    prior = observations(lambda bits: -rising(bits), 8)
    down = optuna.create_study(direction="minimize", sampler=PRSampler(seed=1, search_space=SPACE, prior=prior))
    down.optimize(lambda trial: -_noiseless(trial), n_trials=6)
    assert [layout(t) for t in up.trials] == [layout(t) for t in down.trials]


def test_incompatible_observations_are_dropped() -> None:
    cold = study(2)
    cold.optimize(_noiseless, n_trials=12)
    fitting = observations(rising, 1)[0]
    prior = [
        fitting._replace(value=float("nan")),
        Observation({n: c for n, c in fitting.params.items() if n != NAMES[3]}, 1.0),
        Observation({**fitting.params, NAMES[0]: "sideways"}, 2.0),
    ]
    odd = study(2, prior=prior)
    odd.optimize(_noiseless, n_trials=12)
    assert [layout(t) for t in odd.trials] == [layout(t) for t in cold.trials]


def test_of_many_observations_the_best_and_the_worst_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[torch.Tensor] = []
    original = Prior.standardised
    monkeypatch.setattr(Prior, "standardised", lambda codes, values: (read.append(values), original(codes, values))[1])
    prior = observations(rising, 300)
    study(n_startup=1, prior=prior).optimize(_noiseless, n_trials=2)
    values = [o.value for o in prior]
    assert len(read[0]) == 100
    assert (float(read[0].min()), float(read[0].max())) == (min(values), max(values))
    assert float(read[0].mean()) == pytest.approx(sum(values) / 300, abs=0.1)


def test_an_enqueued_choice_is_kept_with_a_prior() -> None:
    prior = observations(rising, 8)
    best = max(prior, key=lambda o: o.value)
    other = {NAMES[4]: "serial" if best.params[NAMES[4]] == "parallel" else "parallel"}
    found = study(prior=prior)
    found.enqueue_trial(other)
    found.optimize(_noiseless, n_trials=2)
    assert found.trials[0].params == {**best.params, **other}
    assert found.trials[1].params == best.params


def test_wrong_use() -> None:
    with pytest.raises(ValueError, match="c has a single value"):
        PRSampler(search_space={"c": CategoricalDistribution(["a"])})
    with pytest.raises(ValueError, match="n_startup is 0"):
        PRSampler(n_startup=0)
    several = optuna.create_study(directions=["maximize", "minimize"], sampler=PRSampler(search_space=SPACE))
    with pytest.raises(ValueError, match="2 objectives"):
        several.ask().suggest_categorical(NAMES[0], CHOICES)
