"""Does another study's result help a search, and does a misleading one harm it? On planted landscapes, one process.

Run: python benchmarks/warm_start.py [--seeds 4] [--first 100]. Each race begins with a study of 30 trials on a landscape of 12
layers; its layouts, carried to 24 layers, and its noisy values are the prior of a search there. The 12 layers are the 24
joined in pairs (what a layout costs whose pairs are alike), and they are related to them in one of four ways:

    same        nothing else differs; noise and depth do
    similar     mixed with a landscape drawn for itself, until they correlate at .7
    unrelated   a landscape of the same family drawn for itself
    inverted    the same with the other sign: what was best is worst

A prior also shortens the startup from ten trials to two, so a search without a prior that does so too is raced as well.
Printed: the share of the optimum that the best layout so far reaches, without a prior, and how much more it is with each,
paired by seed, with 95% t intervals.
"""

from __future__ import annotations

import argparse
import time

import optuna
import torch

from dasearch.bayes import Observation, PRSampler
from dasearch.bayes.sampler import FEWEST_STARTUP
from dasearch.bench.landscapes import FAMILIES, Planted
from dasearch.bench.samplers import play, space_of
from dasearch.layout import Depth, Layout, map_to_depth
from dasearch.search.confirmation import t_interval

SHALLOW, DEEP = 12, 24
TRIALS, CHECKPOINTS = 30, (5, 10, 20, 30)
SIMILAR = 0.7
RACED = ("smooth", "independent", "within")


def joined(deep: Planted) -> Planted:
    """Pairs of layers as one, up to a constant: what the deep landscape says of layouts whose pairs are alike."""
    pairs = (len(deep.single) // 2, 2)
    return Planted(deep.single.unflatten(0, pairs).sum(1), deep.within.unflatten(0, pairs).sum(1), deep.between[1::2])


def mixed(first: Planted, second: Planted, share: float) -> Planted:
    """A landscape that correlates with the first at ``share`` over random layouts."""
    other = (1 - share**2) ** 0.5 * first.spread / second.spread
    parts = zip(
        (first.single, first.within, first.between), (second.single, second.within, second.between), strict=True
    )
    return Planted(*(share * a + other * b for a, b in parts))


def sources(family: str, deep: Planted, generator: torch.Generator) -> dict[str, Planted]:
    """The other study's landscapes."""
    shallow, drawn = joined(deep), FAMILIES[family](SHALLOW, generator)
    assert isinstance(drawn, Planted)
    inverted = Planted(-shallow.single, -shallow.within, -shallow.between)
    return {"same": shallow, "similar": mixed(shallow, drawn, SIMILAR), "unrelated": drawn, "inverted": inverted}


def search(
    landscape: Planted, seed: int, prior: list[Observation], startup: int | None = None
) -> tuple[list[float], optuna.Study]:
    space = space_of(landscape.sizes)
    sampler = PRSampler(seed=seed, search_space=space, prior=prior, n_startup=startup)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    noise = torch.Generator().manual_seed(seed + 10_000)
    return play(study, landscape, TRIALS, noise)[0], study


def observations(study: optuna.Study, names: list[str]) -> list[Observation]:
    """A shallow study's trials as those of a deep one."""
    found = []
    of, to = (Depth(tuple(range(layers)), layers) for layers in (SHALLOW, DEEP))
    for trial in study.trials:
        bits = [trial.params[name] for name in sorted(trial.params)]
        layout = map_to_depth(Layout.from_bits(bits, sites=len(names) // DEEP), of, to)
        found.append(Observation(dict(zip(names, layout.z, strict=True)), trial.values[0]))
    return found


def race(family: str, seed: int) -> dict[str, list[float]]:
    """Curves without a prior and with each."""
    generator = torch.Generator().manual_seed(seed)
    deep = FAMILIES[family](DEEP, generator)
    assert isinstance(deep, Planted)
    found = {"cold": search(deep, seed, [])[0], "cold, 2 startup": search(deep, seed, [], FEWEST_STARTUP)[0]}
    for name, source in sources(family, deep, generator).items():
        _, study = search(source, seed + 50_000, [])
        found[name] = search(deep, seed, observations(study, list(deep.sizes)))[0]
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--first", type=int, default=100)
    parser.add_argument("--family", action="append", choices=[name for name in FAMILIES if name != "sparse"])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found: dict[str, list[dict[str, list[float]]]] = {}
    for family in asked.family or RACED:
        started = time.process_time()
        found[family] = [race(family, seed) for seed in range(asked.first, asked.first + asked.seeds)]
        show(f"{family}/{3 * DEEP}, {time.process_time() - started:.0f} s of processor", found[family])
    show("pooled", [one for races in found.values() for one in races])


def show(title: str, races: list[dict[str, list[float]]]) -> None:
    print(f"\n{title}, {len(races)} races", flush=True)
    for name in races[0]:
        cells = []
        for trials in CHECKPOINTS:
            values = [one[name][trials - 1] - (one["cold"][trials - 1] if name != "cold" else 0) for one in races]
            mean, low, high = t_interval(values)
            cells.append(f"{mean:.2f}" if name == "cold" else f"{mean:+.2f} ({low:+.2f} to {high:+.2f})")
        print(f"  {name:16s}" + "".join(f"{cell:>26s}" for cell in cells))


if __name__ == "__main__":
    main()
