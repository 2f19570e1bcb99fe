"""Races of samplers on landscapes, through Optuna's ask-and-tell interface.

Every sampler sees the same landscape and the same seed of the noise generator; a race's curve is the best noise-free value among
the layouts evaluated so far, so that one minus it is the regret. A sampler may be asked for a batch of trials before any result
is reported, as in a search that trains them concurrently. Curves are written as they complete, so that an interrupted benchmark
resumes where it stopped.
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
from typing import Any, NamedTuple

import optuna
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler

from dasearch.bayes import PRSampler, curve_mean, quietly
from dasearch.bench.landscapes import BINARY, FAMILIES, SITES, Landscape, read_table

CHECKPOINTS = (10, 12, 20, 30, 60)  # trials at which curves are compared
TABLE, TABLE_TRIALS = "table/", 30
ASK_SIZES = ((36, 30), (36, 200), (90, 30), (90, 200))  # sites, completed trials
ASK_REPEATS = 5
PR = "PRSampler"

Space = Mapping[str, CategoricalDistribution]


def space_of(sizes: Mapping[str, int]) -> Space:
    """Optuna distributions whose choices are the codes 0, 1, ... of each variable."""
    return {name: CategoricalDistribution(range(size)) for name, size in sizes.items()}


class OneFlip(BaseSampler):
    """Local search: a random unevaluated single change of the best layout so far, starting from a random layout."""

    def __init__(self, *, seed: int, space: Space) -> None:
        self._space, self._generator = dict(space), torch.Generator().manual_seed(seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: Any) -> dict[str, BaseDistribution]:
        """The whole space: every parameter is sampled jointly."""
        return dict(self._space)

    def sample_independent(self, study: optuna.Study, trial: Any, param_name: str, param_distribution: Any) -> Any:
        """Never called, since every parameter is sampled jointly."""
        raise NotImplementedError("every parameter is relative")

    def sample_relative(self, study: optuna.Study, trial: Any, search_space: Any) -> dict[str, Any]:
        """A random layout for the first trial, then a single change of the best one."""
        done = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        if not done:
            return dict(zip(self._space, random_codes(self._space, self._generator), strict=True))
        known = [t.params for t in done]
        best = study.best_trial.params
        changes = [(name, by) for name, d in self._space.items() for by in range(1, len(d.choices))]
        for index in torch.randperm(len(changes), generator=self._generator).tolist():
            name, by = changes[index]
            changed = {**best, name: (best[name] + by) % len(self._space[name].choices)}
            if changed not in known:
                return changed
        return changed


def random_codes(space: Space, generator: torch.Generator) -> tuple[int, ...]:
    """Uniform codes drawn one variable at a time, which for two choices equals one ``randint`` over all variables."""
    return tuple(int(torch.randint(len(d.choices), (), generator=generator)) for d in space.values())


Make = Callable[[int, Space], BaseSampler]
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


Key = tuple[str, str, int, int]  # landscape, sampler, seed, batch


def labelled(sampler: str, batch: int) -> str:
    """A sampler's name, with its batch size if that is more than one."""
    return sampler if batch == 1 else f"{sampler}, {batch} at a time"


@dataclass(frozen=True)
class Race:
    """One sampler on one landscape with one seed."""

    landscape: str  # family/sites, family/sites/choices or table/name
    sampler: str
    seed: int
    curve: list[float]  # best noise-free value so far, one per trial
    ask_seconds: float  # median over the last two thirds of the trials
    batch: int = 1  # trials asked for before any result is reported; absent from earlier files

    @property
    def key(self) -> Key:
        """The race's identity: landscape, sampler, seed and batch size."""
        return self.landscape, self.sampler, self.seed, self.batch

    @property
    def label(self) -> str:
        """The sampler's name with its batch size."""
        return labelled(self.sampler, self.batch)


@dataclass(frozen=True)
class Entry:
    """A planned race."""

    landscape: str
    sampler: str
    seed: int
    trials: int
    table: Path | None = None
    batch: int = 1

    @property
    def key(self) -> Key:
        """The identity of the planned race, equal to `Race.key`."""
        return self.landscape, self.sampler, self.seed, self.batch

    def open(self) -> Landscape:
        """The landscape: read from the table, or generated from the seed."""
        if self.table is not None:
            return read_table(self.table, seed=self.seed)
        return planted(self.landscape, torch.Generator().manual_seed(self.seed))


def sized(sites: int, choices: int) -> str:
    """The name of a size: ``36`` for sites with two choices, ``36/3`` with three."""
    return str(sites) if choices == BINARY else f"{sites}/{choices}"


def choices_of(name: str) -> int:
    """The number of choices per site of a planted landscape, from its name."""
    _, _, *choices = name.split("/")
    return int(choices[0]) if choices else BINARY


def planted(name: str, generator: torch.Generator) -> Landscape:
    """The landscape named by ``family/sites`` or ``family/sites/choices``."""
    family, sites, *_ = name.split("/")
    return FAMILIES[family](int(sites) // SITES, generator, choices_of(name))


def race(entry: Entry) -> Race:
    """Run one race."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    landscape = entry.open()
    space = space_of(landscape.sizes)
    with quietly():  # some samplers have experimental options
        study = optuna.create_study(direction="maximize", sampler=SAMPLERS[entry.sampler](entry.seed, space))
    noise = torch.Generator().manual_seed(entry.seed + 10_000)
    trials = min(entry.trials, math.prod(landscape.sizes.values()))
    curve, asks = play(study, landscape, trials, noise, batch=entry.batch)
    return Race(
        entry.landscape,
        entry.sampler,
        entry.seed,
        [round(v, 5) for v in curve],
        statistics.median(asks[len(asks) // 3 :]),
        entry.batch,
    )


class Asked(NamedTuple):
    """A trial, its layout, and the seconds that the proposal took."""

    trial: optuna.Trial
    codes: tuple[int, ...]
    seconds: float


def ask(study: optuna.Study, space: Space) -> Asked:
    """The next trial with a choice for every variable."""
    started = time.perf_counter()
    trial = study.ask()
    codes = tuple(d.choices.index(trial.suggest_categorical(name, d.choices)) for name, d in space.items())
    return Asked(trial, codes, time.perf_counter() - started)


def play(
    study: optuna.Study, landscape: Landscape, trials: int, noise: torch.Generator, *, batch: int = 1
) -> tuple[list[float], list[float]]:
    """The best noise-free value so far and the seconds of the ask, one of each per trial.

    ``batch`` trials are asked for, then evaluated and reported in that order; the last batch may be smaller.
    """
    space = space_of(landscape.sizes)
    curve: list[float] = []
    asks: list[float] = []
    while len(curve) < trials:
        for trial, codes, seconds in [ask(study, space) for _ in range(min(batch, trials - len(curve)))]:
            *epochs, value = landscape.observe(codes, noise)
            for number, epoch in enumerate(epochs):
                trial.report(epoch, number)
            study.tell(trial, value)
            curve.append(max([landscape.truth(codes), *curve[-1:]]))
            asks.append(seconds)
    return curve, asks


def planned(
    families: Iterable[str],
    sites: Iterable[int],
    tables: Iterable[Path],
    samplers: Sequence[str],
    *,
    seeds: int,
    trials: int,
    batches: Sequence[int] = (1,),
    choices: Iterable[int] = (BINARY,),
) -> list[Entry]:
    """Every race to run, seeds outermost, so that a truncated benchmark has compared everything equally often."""
    sizes = [sized(*size) for size in itertools.product(sites, choices)]
    drawn = [(f"{family}/{size}", trials, None) for family, size in itertools.product(families, sizes)]
    real = [(f"{TABLE}{path.stem}", min(trials, TABLE_TRIALS), path) for path in tables]
    return [
        Entry(landscape, sampler, seed, count, path, batch)
        for seed in range(seeds)
        for landscape, count, path in [*drawn, *real]
        for sampler in samplers
        for batch in batches
    ]


def run(
    entries: Sequence[Entry], path: Path, *, map_races: Callable[..., Iterable[Race]] = map
) -> Iterator[tuple[int, Race]]:
    """Run the races that the file at ``path`` does not contain yet; yields the number remaining, and the race."""
    done = {race.key for race in read_races(path)} if path.is_file() else set()
    left = [entry for entry in entries if entry.key not in done]
    for index, finished in enumerate(map_races(race, left), start=1):
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(finished)) + "\n")
        yield len(left) - index, finished


def read_races(path: Path) -> list[Race]:
    """Read races from a JSON Lines file."""
    return [Race(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


@dataclass(frozen=True)
class Score:
    """A sampler at a number of trials: mean best value, PRSampler's lead over it, and the cost of its batch size.

    The lead is that of PRSampler with the same batch size; the cost is the lead of the same sampler with batch size one: the
    regret that the batch adds. Both are paired by landscape and seed.
    """

    landscape: str
    sampler: str
    batch: int
    trials: int
    mean: float
    lead: float
    lead_error: float
    cost: float
    cost_error: float
    seeds: int

    @property
    def label(self) -> str:
        """The sampler's name with its batch size."""
        return labelled(self.sampler, self.batch)


def scores(races: Sequence[Race]) -> list[Score]:
    """Scores per landscape, and pooled over planted landscapes with the same number of choices."""
    groups = _groups(list(dict.fromkeys(race.landscape for race in races)))
    results = []
    for (group, members), (sampler, batch), trials in itertools.product(
        groups.items(), dict.fromkeys((r.sampler, r.batch) for r in races), CHECKPOINTS
    ):
        of = [r for r in races if r.landscape in members]
        compared = ((sampler, batch), (PR, batch), (sampler, 1))
        values, ours, alone = (reached(of, name, size, trials) for name, size in compared)
        if pairs := [pair for pair in values if pair in ours and pair in alone]:
            mean = statistics.fmean(values[pair] for pair in pairs)
            lead = mean_and_error([ours[pair] - values[pair] for pair in pairs])
            cost = mean_and_error([alone[pair] - values[pair] for pair in pairs])
            results.append(Score(group, sampler, batch, trials, mean, *lead, *cost, len(pairs)))
    return results


def _groups(landscapes: Sequence[str]) -> dict[str, list[str]]:
    groups = {name: [name] for name in landscapes}
    for name in landscapes:
        if not name.startswith(TABLE):
            choices = choices_of(name)
            pooled = "planted, pooled" if choices == BINARY else f"planted of {choices} choices, pooled"
            groups.setdefault(pooled, []).append(name)
    return groups


def reached(races: Iterable[Race], sampler: str, batch: int, trials: int) -> dict[tuple[str, int], float]:
    """The best value of each race with at least ``trials`` trials, by landscape and seed."""
    return {
        (r.landscape, r.seed): r.curve[trials - 1]
        for r in races
        if (r.sampler, r.batch) == (sampler, batch) and len(r.curve) >= trials
    }


def mean_and_error(differences: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error; the latter is NaN for a single difference."""
    n = len(differences)
    return statistics.fmean(differences), statistics.stdev(differences) / math.sqrt(n) if n > 1 else math.nan


def ask_seconds(
    samplers: Sequence[str], batches: Sequence[int] = (1,), choices: Sequence[int] = (BINARY,)
) -> dict[str, dict[str, float]]:
    """Median seconds of an ask, ``{sites/trials: {sampler: seconds}}``, all in this process on the same trials.

    For a batch, the total seconds of its asks divided by their number.
    """
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    raced = list(itertools.product(samplers, batches))
    return {
        f"{size}/{trials}": {labelled(name, batch): _ask(name, size, trials, batch) for name, batch in raced}
        for size, trials in ((sized(sites, count), trials) for count in choices for sites, trials in ASK_SIZES)
    }


def _ask(sampler: str, size: str, done: int, batch: int) -> float:
    generator = torch.Generator().manual_seed(0)
    landscape = planted(f"independent/{size}", generator)
    space = space_of(landscape.sizes)
    with quietly():
        study = optuna.create_study(direction="maximize", sampler=SAMPLERS[sampler](0, space))

    def tell(drawn: tuple[int, ...]) -> None:
        params, value = dict(zip(space, drawn, strict=True)), landscape.observe(drawn, generator)[-1]
        study.add_trial(optuna.trial.create_trial(params=params, distributions=dict(space), value=value))

    for _ in range(done):
        tell(random_codes(space, generator))
    seconds = []
    for _ in range(ASK_REPEATS + 1):
        asked = [ask(study, space) for _ in range(batch)]
        seconds.append(statistics.fmean(one.seconds for one in asked))
        for trial, drawn, _ in asked:
            study.tell(trial, landscape.observe(drawn, generator)[-1])
    return statistics.median(seconds[1:])  # the first warms up
