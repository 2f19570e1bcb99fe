"""Races of samplers on landscapes, each trial through Optuna's own ask and tell.

Every sampler sees the same landscape and the same noise generator's seed; a race's curve is the best noise-free value among
the layouts evaluated so far, so that one less it is the regret. A sampler may be asked for several trials before any of them
is told, as a search does that trains them side by side. Curves are written as they come, so that an interrupted bench goes on
where it stopped.
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
ASK_SIZES = ((36, 30), (36, 200), (90, 30), (90, 200))  # sites, trials already told
ASK_REPEATS = 5
PR = "PRSampler"

Space = Mapping[str, CategoricalDistribution]


def space_of(sizes: Mapping[str, int]) -> Space:
    """Every variable's choices are its codes, 0 and up."""
    return {name: CategoricalDistribution(range(size)) for name, size in sizes.items()}


class OneFlip(BaseSampler):
    """Local search: a random single change of the best layout so far that is not known; a random one to begin with."""

    def __init__(self, *, seed: int, space: Space) -> None:
        self._space, self._generator = dict(space), torch.Generator().manual_seed(seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: Any) -> dict[str, BaseDistribution]:
        return dict(self._space)

    def sample_independent(self, study: optuna.Study, trial: Any, param_name: str, param_distribution: Any) -> Any:
        raise NotImplementedError("every parameter is relative")

    def sample_relative(self, study: optuna.Study, trial: Any, search_space: Any) -> dict[str, Any]:
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
    """One after another, so that two choices everywhere give what ``randint`` gives for all at once."""
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
    """A sampler's name and how many trials it is asked for at a time, where that is more than one."""
    return sampler if batch == 1 else f"{sampler}, {batch} at a time"


@dataclass(frozen=True)
class Race:
    """One sampler on one landscape with one seed."""

    landscape: str  # family/sites, family/sites/choices or table/name
    sampler: str
    seed: int
    curve: list[float]  # best noise-free value so far, a number a trial
    ask_seconds: float  # median, the first third left out
    batch: int = 1  # trials asked for before they are told; earlier files do not say it

    @property
    def key(self) -> Key:
        return self.landscape, self.sampler, self.seed, self.batch

    @property
    def label(self) -> str:
        return labelled(self.sampler, self.batch)


@dataclass(frozen=True)
class Entry:
    """A race to be run."""

    landscape: str
    sampler: str
    seed: int
    trials: int
    table: Path | None = None
    batch: int = 1

    @property
    def key(self) -> Key:
        return self.landscape, self.sampler, self.seed, self.batch

    def open(self) -> Landscape:
        if self.table is not None:
            return read_table(self.table, seed=self.seed)
        return planted(self.landscape, torch.Generator().manual_seed(self.seed))


def sized(sites: int, choices: int) -> str:
    """``36`` for sites of two choices, ``36/3`` for three."""
    return str(sites) if choices == BINARY else f"{sites}/{choices}"


def choices_of(name: str) -> int:
    """Of every site of a planted landscape."""
    _, _, *choices = name.split("/")
    return int(choices[0]) if choices else BINARY


def planted(name: str, generator: torch.Generator) -> Landscape:
    """The landscape that ``family/sites`` or ``family/sites/choices`` names."""
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
    """A trial, its layout, and the seconds until it was known."""

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
    """The best noise-free value so far, and the seconds of the ask, a number a trial.

    ``batch`` trials are asked for, then observed and told in that order; the last batch is smaller where they do not divide.
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
    """Every race, seeds outermost: a bench that is cut short has compared everything equally often."""
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
    """Run what the file at ``path`` does not hold yet; yields how many are left, and the race."""
    done = {found.key for found in read_races(path)} if path.is_file() else set()
    left = [entry for entry in entries if entry.key not in done]
    for index, finished in enumerate(map_races(race, left), start=1):
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(finished)) + "\n")
        yield len(left) - index, finished


def read_races(path: Path) -> list[Race]:
    """Races that were written a line each as JSON."""
    return [Race(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


@dataclass(frozen=True)
class Score:
    """A sampler at a number of trials: mean best value, PRSampler's lead over it, and what its batch costs.

    The lead is over PRSampler asked for as many at a time, the cost the same sampler's lead when it is asked for one at a
    time: the regret that the batch adds. Both are paired by landscape and seed.
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
        return labelled(self.sampler, self.batch)


def scores(races: Sequence[Race]) -> list[Score]:
    """By landscape, and pooled over planted ones of as many choices."""
    groups = _groups(list(dict.fromkeys(found.landscape for found in races)))
    found = []
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
            found.append(Score(group, sampler, batch, trials, mean, *lead, *cost, len(pairs)))
    return found


def _groups(landscapes: Sequence[str]) -> dict[str, list[str]]:
    groups = {name: [name] for name in landscapes}
    for name in landscapes:
        if not name.startswith(TABLE):
            choices = choices_of(name)
            pooled = "planted, pooled" if choices == BINARY else f"planted of {choices} choices, pooled"
            groups.setdefault(pooled, []).append(name)
    return groups


def reached(races: Iterable[Race], sampler: str, batch: int, trials: int) -> dict[tuple[str, int], float]:
    """The best value of each race that went so far, by landscape and seed."""
    return {
        (r.landscape, r.seed): r.curve[trials - 1]
        for r in races
        if (r.sampler, r.batch) == (sampler, batch) and len(r.curve) >= trials
    }


def mean_and_error(differences: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error; of one difference the latter is not a number."""
    n = len(differences)
    return statistics.fmean(differences), statistics.stdev(differences) / math.sqrt(n) if n > 1 else math.nan


def ask_seconds(
    samplers: Sequence[str], batches: Sequence[int] = (1,), choices: Sequence[int] = (BINARY,)
) -> dict[str, dict[str, float]]:
    """Median seconds of an ask, ``{sites/trials: {sampler: seconds}}``, all in this process on the same trials.

    Of a batch, the seconds of all its asks over their number.
    """
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    raced = list(itertools.product(samplers, batches))
    return {
        f"{size}/{told}": {labelled(name, batch): _ask(name, size, told, batch) for name, batch in raced}
        for size, told in ((sized(sites, count), told) for count in choices for sites, told in ASK_SIZES)
    }


def _ask(sampler: str, size: str, told: int, batch: int) -> float:
    generator = torch.Generator().manual_seed(0)
    landscape = planted(f"independent/{size}", generator)
    space = space_of(landscape.sizes)
    with quietly():
        study = optuna.create_study(direction="maximize", sampler=SAMPLERS[sampler](0, space))

    def tell(drawn: tuple[int, ...]) -> None:
        params, value = dict(zip(space, drawn, strict=True)), landscape.observe(drawn, generator)[-1]
        study.add_trial(optuna.trial.create_trial(params=params, distributions=dict(space), value=value))

    for _ in range(told):
        tell(random_codes(space, generator))
    seconds = []
    for _ in range(ASK_REPEATS + 1):
        asked = [ask(study, space) for _ in range(batch)]
        seconds.append(statistics.fmean(one.seconds for one in asked))
        for trial, drawn, _ in asked:
            study.tell(trial, landscape.observe(drawn, generator)[-1])
    return statistics.median(seconds[1:])  # the first warms up
