"""What asking for several trials at a time costs, from the races of ``dasearch bench samplers --batch``.

Run: python benchmarks/batches.py FOLDER   (the bench's --out)
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dasearch.bench.command import RACES
from dasearch.bench.samplers import CHECKPOINTS, PR, TABLE, Race, mean_and_error, reached, read_races

TRIALS = 30
SPARSE = "sparse"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    races = read_races(parser.parse_args().folder / RACES)
    batches = sorted({race.batch for race in races} - {1})
    print("Regret added, ± standard error\n")
    print(table(races, [(batch, t, t) for t in CHECKPOINTS if t <= TRIALS for batch in batches]))
    print("\nThe same against one at a time that has as many values as the last batch had\n")
    print(table(races, [(batch, TRIALS, seen(batch)) for batch in batches]))


def seen(batch: int) -> int:
    """Values told when the last of the trials was asked for."""
    return (TRIALS - 1) // batch * batch


def table(races: Sequence[Race], columns: Sequence[tuple[int, int, int]]) -> str:
    """A row a landscape and group; columns are batch, its trials, and the trials of one at a time."""
    heads = [f"{batch} after {trials}, 1 after {alone}" for batch, trials, alone in columns]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (len(columns) + 1) + "|"]
    for name, of in groups(races).items():
        lines.append(f"| {name} | {' | '.join(cost(of, *column) for column in columns)} |")
    return "\n".join(lines)


def groups(races: Sequence[Race]) -> dict[str, list[Race]]:
    """Every landscape by itself, then the planted ones of a size with and without the sparse family, and the tables."""
    names = list(dict.fromkeys(race.landscape for race in races))
    members = {name: [name] for name in names}
    by_size: dict[str, list[str]] = {}
    for name in names:
        if not name.startswith(TABLE):
            by_size.setdefault(name.split("/", 1)[1], []).append(name)
    for size, same in by_size.items():
        members[f"planted/{size}"] = same
        members[f"planted/{size} without {SPARSE}"] = [name for name in same if not name.startswith(SPARSE)]
    members["tables"] = [name for name in names if name.startswith(TABLE)]
    return {group: [race for race in races if race.landscape in of] for group, of in members.items()}


def cost(races: Sequence[Race], batch: int, trials: int, alone: int) -> str:
    values, against = reached(races, PR, batch, trials), reached(races, PR, 1, alone)
    pairs = [pair for pair in values if pair in against]
    if not pairs:
        return ""
    return "{:+.3f} ± {:.3f}".format(*mean_and_error([against[pair] - values[pair] for pair in pairs]))


if __name__ == "__main__":
    main()
