"""Races of samplers on landscapes, each trial through Optuna's own ask and tell.

Every sampler sees the same landscape and the same noise generator's seed; a race's curve is the best noise-free value among
the layouts evaluated so far. Curves are written as they come, so that an interrupted bench goes on where it stopped.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler

from dasearch.bayes import PRSampler, curve_mean
from dasearch.bench.landscapes import FAMILIES, SITES, Landscape, read_table

CHOICES = ("serial", "parallel")
CHECKPOINTS = (10, 12, 20, 30, 60)  # trials at which curves are compared
TABLE, TABLE_TRIALS = "table/", 30
ASK_SIZES = ((36, 30), (36, 200), (90, 30), (90, 200))  # bits, trials already told
ASK_REPEATS = 5
PR = "PRSampler"


class OneFlip(BaseSampler):
    """Local search: a random single change of the best layout so far that is not known; a random one to begin with."""

    def __init__(self, *, seed: int, space: Mapping[str, CategoricalDistribution]) -> None:
        self._space, self._generator = dict(space), torch.Generator().manual_seed(seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: Any) -> dict[str, BaseDistribution]:
        return dict(self._space)

    def sample_independent(self, study: optuna.Study, trial: Any, param_name: str, param_distribution: Any) -> Any:
        raise NotImplementedError("every parameter is relative")

    def sample_relative(self, study: optuna.Study, trial: Any, search_space: Any) -> dict[str, Any]:
        done = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        if not done:
            bits = torch.randint(2, (len(self._space),), generator=self._generator).tolist()
            return dict(zip(self._space, (CHOICES[bit] for bit in bits), strict=True))
        known = [t.params for t in done]
        best = study.best_trial.params
        for index in torch.randperm(len(self._space), generator=self._generator).tolist():
            name = list(self._space)[index]
            flipped = {**best, name: CHOICES[1 - CHOICES.index(best[name])]}
            if flipped not in known:
                return flipped
        return flipped


Make = Callable[[int, Mapping[str, CategoricalDistribution]], BaseSampler]
SAMPLERS: dict[str, Make] = {
    PR: lambda seed, space: PRSampler(seed=seed, search_space=space, signal=curve_mean),
    "PRSampler of values": lambda seed, space: PRSampler(seed=seed, search_space=space),
    "random": lambda seed, space: optuna.samplers.RandomSampler(seed=seed),
    "TPE": lambda seed, space: optuna.samplers.TPESampler(seed=seed),
    "TPE multivariate": lambda seed, space: optuna.samplers.TPESampler(seed=seed, multivariate=True),
    "GPSampler": lambda seed, space: optuna.samplers.GPSampler(seed=seed),
    "1-flip": lambda seed, space: OneFlip(seed=seed, space=space),
    "genetic": lambda seed, space: optuna.samplers.NSGAIISampler(seed=seed, population_size=10),
}


@dataclass(frozen=True)
class Race:
    """One sampler on one landscape with one seed."""

    landscape: str  # family/bits or table/name
    sampler: str
    seed: int
    curve: list[float]  # best noise-free value so far, a number a trial
    ask_seconds: float  # median, the first third left out

    @property
    def key(self) -> tuple[str, str, int]:
        return self.landscape, self.sampler, self.seed


@dataclass(frozen=True)
class Entry:
    """A race to be run."""

    landscape: str
    sampler: str
    seed: int
    trials: int
    table: Path | None = None

    def open(self) -> Landscape:
        if self.table is not None:
            return read_table(self.table, seed=self.seed)
        kind, what = self.landscape.split("/", 1)
        return FAMILIES[kind](int(what) // SITES, torch.Generator().manual_seed(self.seed))


def race(entry: Entry) -> Race:
    """Run one race."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    landscape = entry.open()
    space = {name: CategoricalDistribution(CHOICES) for name in landscape.names}
    study = optuna.create_study(direction="maximize", sampler=SAMPLERS[entry.sampler](entry.seed, space))
    noise = torch.Generator().manual_seed(entry.seed + 10_000)
    curve, asks = play(study, landscape, min(entry.trials, 2 ** len(space)), noise)
    return Race(
        entry.landscape,
        entry.sampler,
        entry.seed,
        [round(v, 5) for v in curve],
        statistics.median(asks[len(asks) // 3 :]),
    )


def play(
    study: optuna.Study, landscape: Landscape, trials: int, noise: torch.Generator
) -> tuple[list[float], list[float]]:
    """The best noise-free value so far, and the seconds of the ask, a number a trial."""
    curve: list[float] = []
    asks: list[float] = []
    for _ in range(trials):
        started = time.perf_counter()
        trial = study.ask()
        bits = tuple(CHOICES.index(trial.suggest_categorical(name, CHOICES)) for name in landscape.names)
        asks.append(time.perf_counter() - started)
        *epochs, value = landscape.observe(bits, noise)
        for number, epoch in enumerate(epochs):
            trial.report(epoch, number)
        study.tell(trial, value)
        curve.append(max([landscape.truth(bits), *curve[-1:]]))
    return curve, asks


def planned(
    families: Iterable[str],
    sizes: Iterable[int],
    tables: Iterable[Path],
    samplers: Sequence[str],
    *,
    seeds: int,
    trials: int,
) -> list[Entry]:
    """Every race, seeds outermost: a bench that is cut short has compared everything equally often."""
    planted = [(f"{family}/{size}", trials, None) for family, size in itertools.product(families, sizes)]
    real = [(f"{TABLE}{path.stem}", min(trials, TABLE_TRIALS), path) for path in tables]
    return [
        Entry(landscape, sampler, seed, count, path)
        for seed in range(seeds)
        for landscape, count, path in [*planted, *real]
        for sampler in samplers
    ]


def run(
    entries: Sequence[Entry], path: Path, *, map_races: Callable[..., Iterable[Race]] = map
) -> Iterator[tuple[int, Race]]:
    """Run what the file at ``path`` does not hold yet; yields how many are left, and the race."""
    done = {found.key for found in read_races(path)} if path.is_file() else set()
    left = [entry for entry in entries if (entry.landscape, entry.sampler, entry.seed) not in done]
    for index, finished in enumerate(map_races(race, left), start=1):
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(finished)) + "\n")
        yield len(left) - index, finished


def read_races(path: Path) -> list[Race]:
    return [Race(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


@dataclass(frozen=True)
class Score:
    """A sampler at a number of trials: mean best value, and PRSampler's lead over it, paired by landscape and seed."""

    landscape: str
    sampler: str
    trials: int
    mean: float
    lead: float
    lead_error: float
    seeds: int


def scores(races: Sequence[Race]) -> list[Score]:
    """By landscape, and pooled over planted ones."""
    curves = {found.key: found.curve for found in races}
    landscapes = list(dict.fromkeys(found.landscape for found in races))
    groups = {name: [name] for name in landscapes}
    groups["planted, pooled"] = [name for name in landscapes if not name.startswith(TABLE)]
    found = []
    for (group, members), sampler, trials in itertools.product(
        groups.items(), dict.fromkeys(r.sampler for r in races), CHECKPOINTS
    ):
        pairs = [
            (curves[landscape, PR, seed][trials - 1], curve[trials - 1])
            for (landscape, other, seed), curve in curves.items()
            if other == sampler and landscape in members and len(curve) >= trials and (landscape, PR, seed) in curves
        ]
        if pairs:
            leads = [ours - theirs for ours, theirs in pairs]
            error = statistics.stdev(leads) / math.sqrt(len(leads)) if len(leads) > 1 else math.nan
            mean = statistics.fmean(theirs for _, theirs in pairs)
            found.append(Score(group, sampler, trials, mean, statistics.fmean(leads), error, len(pairs)))
    return found


def ask_seconds(samplers: Sequence[str]) -> dict[str, dict[str, float]]:
    """Median seconds of an ask, ``{bits/trials: {sampler: seconds}}``, all in this process on the same trials."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return {f"{bits}/{told}": {name: _ask(name, bits, told) for name in samplers} for bits, told in ASK_SIZES}


def _ask(sampler: str, bits: int, told: int) -> float:
    generator = torch.Generator().manual_seed(0)
    landscape = FAMILIES["independent"](bits // SITES, generator)
    space: dict[str, BaseDistribution] = {name: CategoricalDistribution(CHOICES) for name in landscape.names}
    study = optuna.create_study(direction="maximize", sampler=SAMPLERS[sampler](0, space))  # type: ignore[arg-type]

    def tell(drawn: tuple[int, ...]) -> None:
        params = dict(zip(space, (CHOICES[bit] for bit in drawn), strict=True))
        value = landscape.observe(drawn, generator)[-1]
        study.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=value))

    for _ in range(told):
        tell(tuple(torch.randint(2, (bits,), generator=generator).tolist()))
    seconds = []
    for _ in range(ASK_REPEATS + 1):
        started = time.perf_counter()
        trial = study.ask()
        drawn = tuple(CHOICES.index(trial.suggest_categorical(name, CHOICES)) for name in space)
        seconds.append(time.perf_counter() - started)
        study.tell(trial, landscape.observe(drawn, generator)[-1])
    return statistics.median(seconds[1:])  # the first warms up
