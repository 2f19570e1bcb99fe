"""How much of the front of a metric and a cost do samplers find? On tables of real trainings and planted landscapes, one process.

Run: python benchmarks/pareto.py [--table FILE.jsonl ...] [--layers N ...] [--seeds 20] [--trials 30] [--metric MRR] [--cost
parameters] [--sampler NAME ...] [--out RACES.jsonl].

A table is one that `train_table.py` made of a space whose layouts differ in their cost, such as darec-none; costs are counted on
a model of its study's sizes, but for the head and other parts that no layout changes. A trial is seen as one of the seeds trained
its layout, drawn anew for each race, what a seed adds to all layouts taken off; the truth is the mean over seeds.

A planted landscape has layers of three sites that are serial, parallel or none. An adapter is worth something, less where others
stand in its layer; a site costs what was drawn for it, and the context site of any layer brings a shared cost along. Noise is a
fifth of the landscape's spread over random layouts. All layouts are enumerated, so the true front is known.

Printed: after how many trials what share of the true front's hypervolume the true values of the evaluated layouts have, with
standard errors over seeds, and PRSampler's lead over each other sampler, paired by seed. The reference point lies a tenth of the
front's range beyond its ends. PRSampler is told the cost as a function; the others see it as the second value of each trial.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import optuna
import torch
from optuna.distributions import CategoricalDistribution
from optuna.samplers import BaseSampler
from torch import Tensor
from transformers import OPTModel

from dasearch.bayes import PRSampler, Reference, curve_mean, front, hypervolume, quietly
from dasearch.bench.landscapes import read_table
from dasearch.config import METRICS
from dasearch.models.backbone import FrozenBackbone
from dasearch.models.cost import Cost, SiteCosts, cost_of_choices, layout_costs
from dasearch.models.tiny_opt import config_of
from dasearch.search.study import Study
from dasearch.search_space import SearchSpace
from dasearch.training.preparation import untrained_model

CHECKPOINTS = (10, 20, 30, 60)
NOISE = 0.2  # of the landscape's spread over random layouts
PLANTED = ("serial", "parallel", "none")
SITES = ("causal", "context", "recommendation")
PR = "PRSampler"
Params = Mapping[str, str]
Costing = Callable[[Params], float]


@dataclass(frozen=True)
class Landscape:
    """Layouts of a small space with their true values and costs.

    Attributes:
        choices: of each site, by name.
        truth: ``(layouts,)``, in the order of `itertools.product` over the choices.
        observe: a layout's place and a race's generator -> its learning curve, if there is one, and its noisy value.
    """

    title: str
    choices: Mapping[str, Sequence[str]]
    truth: Tensor
    cost: Costing
    observe: Callable[[int, torch.Generator], list[float]]

    def place(self, params: Params) -> int:
        """Of a layout among all."""
        found = 0
        for name, own in self.choices.items():
            found = found * len(own) + own.index(params[name])
        return found

    @cached_property
    def costs(self) -> list[float]:
        every = itertools.product(*self.choices.values())
        return [float(self.cost(dict(zip(self.choices, chosen, strict=True)))) for chosen in every]

    @cached_property
    def reference(self) -> Reference:
        on_front = front(self.truth.tolist(), self.costs)
        costs = torch.tensor(self.costs, dtype=torch.float64)
        return Reference.beyond(self.truth[on_front], costs[on_front])

    def share(self, places: Sequence[int]) -> float:
        """Of the true front's hypervolume, what some layouts have."""
        return self._area(places) / self._whole

    @cached_property
    def _whole(self) -> float:
        return self._area(range(len(self.costs)))

    def _area(self, places: Sequence[int]) -> float:
        return hypervolume([float(self.truth[i]) for i in places], [self.costs[i] for i in places], self.reference)


def planted(layers: int, seed: int) -> Landscape:
    """A landscape drawn anew for a seed."""
    generator = torch.Generator().manual_seed(seed)
    names = [f"layer{layer + 1:02d}.{site}" for layer in range(layers) for site in SITES]

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    single = drawn(len(names), 1).abs() + 0.4 * drawn(len(names), len(PLANTED))
    single[:, PLANTED.index("none")] = 0.0
    crowded = 0.3 * drawn(layers).abs()
    price = {name: float(value) for name, value in zip(names, 1 + 2 * drawn(len(names)).abs(), strict=True)}
    shared = float(1 + drawn(1).abs())
    codes = torch.tensor(list(itertools.product(range(len(PLANTED)), repeat=len(names))))
    there = (codes != PLANTED.index("none")).view(-1, layers, len(SITES)).sum(2)
    truth = single[torch.arange(len(names)), codes].sum(1) - (crowded * there * (there - 1) / 2).sum(1)
    noise = NOISE * float(truth.std())

    def cost(params: Params) -> float:
        active = [name for name, choice in params.items() if choice != "none"]
        return sum(price[name] for name in active) + shared * any(name.endswith("context") for name in active)

    def observe(place: int, own: torch.Generator) -> list[float]:
        return [float(truth[place]) + noise * float(torch.randn((), generator=own, dtype=torch.float64))]

    return Landscape(f"planted/{layers} layers", dict.fromkeys(names, PLANTED), truth, cost, observe)


def table(path: Path, seed: int, *, metric: str, cost: Cost) -> Landscape:
    """A table of real trainings; the seeds that its rows are seen of are drawn for a seed."""
    read = read_table(path, seed=seed)
    space, costs = counted(read.header["study"], tuple(read.header["changes"]), cost)
    named = {choice.letter: choice.name for choice in space.file.alphabet}
    choices = {name: [named[letter] for letter in own] for name, own in read.letters.items()}

    def observe(place: int, _: torch.Generator) -> list[float]:
        return read.seen(read.layouts[place], metric)

    return Landscape(
        f"table/{path.stem}", choices, read.outputs[metric].mean(1), cost_of_choices(space, costs), observe
    )


def counted(study: str, changes: Sequence[str], cost: Cost) -> tuple[SearchSpace, SiteCosts]:
    """The space of a table's study, and what its layouts cost on a tiny-opt of its sizes, of one user and one item."""
    loaded = Study.load(study, changes)
    settings, space = loaded.settings, loaded.space()
    config = config_of(settings.backbone.tiny.vocabulary, settings.backbone.tiny.settings())
    config.num_hidden_layers = space.backbone_layers
    model = untrained_model(
        settings,
        FrozenBackbone(OPTModel(config)),
        space.file.structure,
        n_users=1,
        n_items=1,
        generator=torch.Generator().manual_seed(0),
    )
    return space, layout_costs(model, space, item_tokens=settings.data.item_tokens)[cost]


Make = Callable[[int, Mapping[str, CategoricalDistribution], Costing], BaseSampler]
SAMPLERS: dict[str, Make] = {
    PR: lambda seed, space, cost: PRSampler(seed=seed, search_space=space, cost=cost, signal=curve_mean),
    "PRSampler of values": lambda seed, space, cost: PRSampler(seed=seed, search_space=space, cost=cost),
    "random": lambda seed, space, cost: optuna.samplers.RandomSampler(seed=seed),
    "NSGA-II": lambda seed, space, cost: optuna.samplers.NSGAIISampler(seed=seed, population_size=10),
    "TPE": lambda seed, space, cost: optuna.samplers.TPESampler(seed=seed),
    "TPE multivariate": lambda seed, space, cost: optuna.samplers.TPESampler(seed=seed, multivariate=True),
    "GPSampler": lambda seed, space, cost: optuna.samplers.GPSampler(seed=seed),
}


def race(landscape: Landscape, sampler: str, seed: int, trials: int) -> list[float]:
    """The share of the front's hypervolume so far, a number a trial."""
    space = {name: CategoricalDistribution(list(own)) for name, own in landscape.choices.items() if len(own) > 1}
    with quietly():
        made = SAMPLERS[sampler](seed, space, landscape.cost)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=made)
    noise = torch.Generator().manual_seed(seed + 10_000)
    found: list[int] = []
    shares: list[float] = []
    for _ in range(trials):
        trial = study.ask()
        params = {name: trial.suggest_categorical(name, list(own)) for name, own in landscape.choices.items()}
        found.append(landscape.place(params))
        *curve, value = landscape.observe(found[-1], noise)
        for number, epoch in enumerate(curve):  # not by `Trial.report`, which refuses two objectives
            study._storage.set_trial_intermediate_value(trial._trial_id, number, epoch)
        study.tell(trial, [value, landscape.costs[found[-1]]])
        shares.append(landscape.share(found))
    return shares


def show(title: str, races: Mapping[str, Sequence[Sequence[float]]], trials: int) -> None:
    """Shares and leads with standard errors."""
    print(f"\n{title}, {len(next(iter(races.values())))} races", flush=True)
    checkpoints = [count for count in CHECKPOINTS if count <= trials]
    print(f"{'':<20}" + "".join(f"{f'after {count}':>18}{'lead':>18}" for count in checkpoints))
    for name, own in races.items():
        cells = []
        for count in checkpoints:
            shares = [one[count - 1] for one in own]
            leads = [ours[count - 1] - one for ours, one in zip(races.get(PR, own), shares, strict=True)]
            cells += [f"{spread(shares):>18}", f"{'' if name == PR or PR not in races else spread(leads, '+'):>18}"]
        print(f"{name:<20}" + "".join(cells), flush=True)


def spread(values: Sequence[float], sign: str = "") -> str:
    """``mean ±standard error``."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.fmean(values):{sign}.3f} ±{error:.3f}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--table", type=Path, action="append", help="default: those of benchmarks/tables with a none")
    parser.add_argument("--layers", type=int, action="append", choices=[2, 3, 4], help="planted; default: 3")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=100)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--metric", choices=list(METRICS.values()), default="MRR")
    parser.add_argument("--cost", type=Cost, choices=list(Cost), default=Cost.PARAMETERS)
    parser.add_argument("--sampler", action="append", choices=list(SAMPLERS), help="beside PRSampler; default: all")
    parser.add_argument("--out", type=Path, help="a line a race")
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    tables = asked.table or sorted((Path(__file__).parent / "tables").glob("*-none-*.jsonl"))
    samplers = list(dict.fromkeys([PR, *(asked.sampler or SAMPLERS)]))
    landscapes: list[Callable[[int], Landscape]] = [
        lambda seed, path=path: table(path, seed, metric=asked.metric, cost=asked.cost) for path in tables
    ]
    landscapes += [lambda seed, layers=layers: planted(layers, seed) for layers in asked.layers or [3]]
    for make in landscapes:
        started, races = time.process_time(), {name: list[list[float]]() for name in samplers}
        for seed in range(asked.first, asked.first + asked.seeds):
            landscape = make(seed)
            for name in samplers:
                races[name].append(race(landscape, name, seed, asked.trials))
                if asked.out is not None:
                    record = {"landscape": landscape.title, "sampler": name, "seed": seed, "shares": races[name][-1]}
                    with asked.out.open("a", encoding="utf-8") as lines:
                        lines.write(json.dumps(record) + "\n")
        show(f"{landscape.title}, {time.process_time() - started:.0f} s of processor", races, asked.trials)


if __name__ == "__main__":
    main()
