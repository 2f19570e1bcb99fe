"""What the tables of real trainings say: effects against seed noise, shared effects, interactions, gain over all-serial.

Run: python benchmarks/read_tables.py [TABLE ...]. Variances come from a two-way analysis (layouts, seeds): what is left after
both is seed noise, and is taken off the variance of layout means. Effects and interactions are those of `dasearch.bench.anova`:
every choice against the first, averaged over all other sites, and the variance of one order added up, less what noise alone
would give. The gain is that of the layout which looks best without a seed, measured on that seed, against the first choices
(all-serial) on the same seed: free of the winner's curse.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from torch import Tensor

from dasearch.bench.anova import Effect, by_site, main_effects, pair_effects, variances
from dasearch.bench.landscapes import OBJECTIVE, OUTPUTS, Table, read_table

TABLES = Path(__file__).parent / "tables"
STRONGEST = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", type=Path, metavar="TABLE", help="default: those of the project")
    for path in parser.parse_args().tables or sorted(TABLES.glob("*.jsonl")):
        table = read_table(path)
        layouts, seeds = table.outputs[OBJECTIVE].shape
        print(f"\n{path.stem}: {layouts} layouts, {seeds} seed(s)")
        noise = {name: show_spread(name, table.outputs[name]) for name in OUTPUTS}[OBJECTIVE]
        show_effects(table, noise / seeds)
        show_gain(table)


def show_spread(name: str, values: Tensor) -> float:
    """The variance of seed noise, 0 where one seed tells nothing of it; shapes: ``(layouts, seeds)``."""
    layouts, seeds = values.shape
    means = values.mean(1)
    if seeds < 2:
        print(f"  {name:10s} mean {means.mean():.4f}, sd over layouts {means.std():.5f} (noise included)")
        return 0.0
    left = values - means[:, None] - values.mean(0) + values.mean()
    variance = float(left.square().sum()) / ((layouts - 1) * (seeds - 1))
    true = max(0.0, float(means.var()) - variance / seeds)
    sds = f"sd of layouts {true**0.5:.5f}, of seeds {variance**0.5:.5f}, ratio {(true / variance) ** 0.5:.2f}"
    print(f"  {name:10s} mean {means.mean():.4f}, {sds}")
    return variance


def show_effects(table: Table, noise: float) -> None:
    """``noise`` is the variance of a layout's mean."""
    means, names, letters = by_site(table), list(table.letters), list(table.letters.values())
    shares = variances(means, noise)
    total = sum(shares.values()) or 1.0
    print("  variance by order: " + ", ".join(f"{kind} {share / total:.0%}" for kind, share in shares.items()))
    print(f"  a choice instead of the first, averaged over the rest{'' if noise else ' (one seed: noise included)'}:")
    for effect in main_effects(means, noise):
        ((site, code),) = effect.choices
        print(f"    {names[site]:24s} {letters[site][code]} for {letters[site][0]} {shown(effect)}")
    strongest = sorted(pair_effects(means, noise), key=lambda effect: -abs(effect.value))[:STRONGEST]
    for effect in strongest:
        print("  strong pair: " + " x ".join(f"{names[i]} {letters[i][k]}" for i, k in effect.choices), shown(effect))


def shown(effect: Effect) -> str:
    return f"{effect.value:+.5f}" + (f" ± {effect.sd:.5f}" if effect.sd else "")


def show_gain(table: Table) -> None:
    values = table.outputs[OBJECTIVE]
    best = table.layouts[int(values.mean(1).argmax())]
    alike = [(code,) * len(best) for code in range(min(table.sizes.values()))]
    shown = [f"{written(table, layout)} {values[table.index[layout]].mean():.4f}" for layout in [*alike, best]]
    print(f"  {', '.join(shown[:-1])}; best mean {shown[-1]}")
    gains = []
    for seed in range(values.shape[1] if values.shape[1] > 1 else 0):
        others = [s for s in range(values.shape[1]) if s != seed]
        chosen = int(values[:, others].mean(1).argmax())
        gains.append(float(values[chosen, seed] - values[0, seed]))
    if gains:
        each = ", ".join(f"{gain:+.4f}" for gain in gains)
        first = written(table, table.layouts[0])
        print(f"  gain of the best of the other seeds over {first}: {statistics.fmean(gains):+.4f} ({each})")


def written(table: Table, layout: tuple[int, ...]) -> str:
    return "".join(letters[code] for letters, code in zip(table.letters.values(), layout, strict=True))


if __name__ == "__main__":
    main()
