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
from dasearch.search.store import Confirmation
from dasearch.search.worth import UNLIKELY, chance_of_gain
from dasearch.search_space import SearchSpace, load_search_space

TABLES = Path(__file__).parent / "tables"
GAINS, TRIALS, SEEDS, FACTORS = (0.0, 0.05, 0.10), (10, 20, 30), (3, 5), (1.0, 0.25)
MARGIN = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--races", type=int, default=100)
    races = parser.parse_args().races
    for path in sorted(TABLES.glob("*.jsonl")):
        table = read_table(path)
        if table.outputs[OBJECTIVE].shape[1] < 2:
            continue  # one seed tells nothing of the noise
        noise, level = residuals(table)
        space = load_search_space("darec", backbone_layers=len(table.names) // 3)
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
    flat, winners = dict.fromkeys(TRIALS, 0), dict.fromkeys(SEEDS, 0)
    for race in range(races):
        generator = torch.Generator().manual_seed(race)

        def score(layout: Layout, generator: torch.Generator = generator) -> float:
            at = int(torch.randint(len(noise), (), generator=generator))
            return 1 + gain * layout.flat[0] + float(noise[at])

        layouts = {space.all_serial: None}
        while len(layouts) < max(TRIALS):
            layouts[Layout.random(space.layers, 3, generator=generator)] = None
        signals = {layout: score(layout) for layout in layouts}
        for count in TRIALS:
            first = dict(list(signals.items())[:count])
            flat[count] += chance_of_gain(space, first, margin=MARGIN, seed=race) < UNLIKELY
        best = [layout for layout in layouts if layout.flat[0] or not gain][1:4]
        for seeds in SEEDS:
            rows = [
                Confirmation(layout, "candidate", seed, {OBJECTIVE: score(layout)}, 0.0)
                for layout in [space.all_serial, *best]
                for seed in range(seeds)
            ]
            winners[seeds] += recommended(standings(rows, space.all_serial)).layout != space.all_serial
    said = ", ".join(f"{count / races:.2f} ({trials})" for trials, count in flat.items())
    won = ", ".join(f"{count / races:.2f} ({seeds})" for seeds, count in winners.items())
    return f"  gain {gain:>4.0%}: called flat {said} after trials; a winner named {won} of seeds"


if __name__ == "__main__":
    main()
