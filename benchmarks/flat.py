"""How often a search would be called flat, and how often its confirmation names a winner, where the truth is known.

Run: python benchmarks/flat.py [--races N]. The noise is real: what is left of the trainings in benchmarks/tables when the mean
of each layout and of each seed is taken off, drawn anew for every evaluation, times the factor that a heading names. Into it
a gain is planted for every layout with one adapter parallel (0, 5% or 10% of the mean). After 10, 20 and 30 trials
the search asks `chance_of_gain`; "flat" is a chance below 5% for a margin of 2%. Then three layouts that have the gain,
or none, are confirmed beside all-serial with 3 and 5 fresh seeds, and a "winner" is what `recommended` names. No surrogate
proposes here: trials are random layouts, which tell less than proposed ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from dasearch.bench.landscapes import OBJECTIVE, Table, read_table
from dasearch.layout import Layout
from dasearch.search.confirmation import recommended, standings
from dasearch.search.domain import Domain, Point
from dasearch.search.store import Confirmation
from dasearch.search.worth import UNLIKELY, chance_of_gain
from dasearch.search_space import SearchSpace, load_search_space

TABLES = Path(__file__).parent / "tables"
GAINS, TRIALS, SEEDS, FACTORS = (0.0, 0.05, 0.10), (10, 20, 30), (3, 5), (1.0, 0.25)
MARGIN, CONFIRMATIONS = 0.02, 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--races", type=int, default=100)
    races = parser.parse_args().races
    for path in sorted(TABLES.glob("*.jsonl")):
        table = read_table(path)
        if table.outputs[OBJECTIVE].shape[1] < 2:
            continue  # one seed tells nothing of the noise
        noise, level = residuals(table)
        space = load_search_space("darec", backbone_layers=len(table.sizes) // 3)
        for factor in FACTORS:
            print(f"{path.stem}, noise x {factor:g}: sd {factor * float(noise.std() / level):.1%} of the mean")
            for gain in GAINS:
                print(row(space, factor * noise / level, gain, races), flush=True)


def residuals(table: Table) -> tuple[Tensor, float]:
    """What neither the layout nor the seed explains, all of it as one line, and the mean score."""
    values = table.outputs[OBJECTIVE]
    centred = values - values.mean(0) - values.mean(1, keepdim=True) + values.mean()
    lost = (values.shape[1] / (values.shape[1] - 1)) ** 0.5  # by taking off means of few seeds
    return centred.flatten() * lost, float(values.mean())


def row(space: SearchSpace, noise: Tensor, gain: float, races: int) -> str:
    flat = dict.fromkeys(TRIALS, 0)
    for race in range(races):
        generator = torch.Generator().manual_seed(race)
        signals = {
            Point(layout): score(layout, noise, gain, generator) for layout in drawn(space, max(TRIALS), generator)
        }
        for count in TRIALS:
            first = dict(list(signals.items())[:count])
            flat[count] += chance_of_gain(Domain(space, {}), first, margin=MARGIN, seed=race) < UNLIKELY
    said = ", ".join(f"{count / max(races, 1):.2f} ({trials})" for trials, count in flat.items())
    won = ", ".join(f"{winners(space, noise, gain, seeds):.3f} ({seeds})" for seeds in SEEDS)
    return f"  gain {gain:>4.0%}: called flat {said} after trials; a winner named {won} of seeds"


def winners(space: SearchSpace, noise: Tensor, gain: float, seeds: int) -> float:
    """How often a confirmation of three layouts beside all-serial names one of them."""
    found = 0
    for race in range(CONFIRMATIONS):
        generator = torch.Generator().manual_seed(race)
        serial, *others = drawn(space, 40, generator)
        best = [layout for layout in others if layout.z[0] or not gain][:3]
        rows = [
            Confirmation(layout, "candidate", seed, {OBJECTIVE: score(layout, noise, gain, generator)}, 0.0)
            for layout in [serial, *best]
            for seed in range(seeds)
        ]
        found += recommended(standings(rows, serial)).layout != serial
    return found / CONFIRMATIONS


def drawn(space: SearchSpace, count: int, generator: torch.Generator) -> list[Layout]:
    """All-serial and random layouts."""
    found = {space.all_serial: None}
    while len(found) < count:
        found[Layout.random(space.layers, 3, generator=generator)] = None
    return list(found)


def score(layout: Layout, noise: Tensor, gain: float, generator: torch.Generator) -> float:
    return 1 + gain * layout.z[0] + float(noise[torch.randint(len(noise), (), generator=generator)])


if __name__ == "__main__":
    main()
