"""Does a search lose by ending hopeless trainings early? Replayed on the tables of real trainings, by Optuna's own pruners.

Run: python benchmarks/pruning.py [TABLE ...] [--seeds 20] [--budget 30] [--workers 1] [--out FILE]. A search by PRSampler, one
trial at a time, sees a layout's validation curve epoch by epoch; a pruner may end it after any epoch but the last. What the
surrogate then learns of it: nothing; the mean of its epochs, as of a whole curve; or that mean and what whole curves gain
after so many epochs, on average. Printed, paired by seed with the search that prunes nothing, with standard errors: the share
of epochs saved in so many trials; the regret of the layout recommended (best posterior mean of the whole trainings; 0 the best
layout of the table, 1 the mean one) after as many trials, and after as many epochs; and how often the best of the evaluated
layouts was pruned. Races are written as they come; the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

import optuna
import torch
from optuna.pruners import (
    BasePruner,
    MedianPruner,
    NopPruner,
    PatientPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
    WilcoxonPruner,
)
from optuna.trial import TrialState

from dasearch.bayes import Choices, PRSampler, Surrogate
from dasearch.bench.landscapes import Table, read_table
from dasearch.bench.samplers import ask, mean_and_error, space_of

TABLES = Path(__file__).parent / "tables"
NOTHING = "none"
PRUNERS: dict[str, Callable[[], BasePruner]] = {  # epochs count from 1
    NOTHING: NopPruner,
    "median": MedianPruner,
    "median, from epoch 2": lambda: MedianPruner(n_warmup_steps=2),
    "worst quarter": lambda: PercentilePruner(75.0),
    "halving": lambda: SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
    "patient median": lambda: PatientPruner(MedianPruner(), patience=0),
    "Wilcoxon": WilcoxonPruner,
}


class Told(StrEnum):
    """What the surrogate learns of a pruned trial."""

    NOTHING = "nothing"
    PART = "mean of its epochs"
    EXTRAPOLATED = "extrapolated"


CONFIGURATIONS = [
    (NOTHING, Told.NOTHING),
    *((pruner, told) for pruner in PRUNERS if pruner != NOTHING for told in Told),
]


COLUMNS = (
    "pruner",
    "told",
    "epochs saved",
    "regret, equal trials",
    "regret, equal epochs",
    "best pruned",
    "trials",
    "n",
)


@dataclass(frozen=True)
class Tried:
    """A trial: its layout, the epochs that it had, and what the surrogate learns of it, if anything."""

    codes: tuple[int, ...]
    curve: list[float]
    whole: bool
    signal: float | None


@dataclass(frozen=True)
class Race:
    """One search; ``pruned_best``: whether the best of the layouts evaluated in the budget of trials was pruned."""

    table: str
    pruner: str
    told: str
    seed: int
    saved: float
    regret_of_trials: float
    regret_of_epochs: float
    pruned_best: bool
    trials: int  # that the budget's epochs sufficed for

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.table, self.pruner, self.told, self.seed


Entry = tuple[Path, int, str, Told, int]  # table, seed, pruner, what is told, budget


def race(entry: Entry) -> Race:
    """Search until the epochs of ``budget`` whole trainings are spent, or every layout is known."""
    path, seed, pruner, told, budget = entry
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    table = read_table(path, seed=seed)
    space = space_of(table.sizes)
    search = optuna.create_study(direction="maximize", sampler=PRSampler(seed=seed, search_space=space))
    judge = optuna.create_study(direction="maximize", pruner=PRUNERS[pruner]())
    tried: list[Tried] = []
    length = next(iter(table.curves.values())).shape[2]
    while spent(tried) + length <= budget * length and len(tried) < len(table.layouts):
        trial, codes, _ = ask(search, space)
        *curve, _ = table.observe(codes, torch.Generator())
        seen = judged(judge, curve)
        signal = learned(seen, len(seen) == length, [one.curve for one in tried if one.whole], told)
        tried.append(Tried(codes, seen, len(seen) == length, signal))
        search.tell(trial, signal, state=TrialState.PRUNED if signal is None else TrialState.COMPLETE)
    first = tried[:budget]
    best = max(first, key=lambda one: table.truth(one.codes))
    return Race(
        path.stem,
        pruner,
        told.value,
        seed,
        1 - spent(first) / (len(first) * length),
        1 - table.truth(recommended(first, table)),
        1 - table.truth(recommended(tried, table)),
        not best.whole,
        len(tried),
    )


def spent(tried: Sequence[Tried]) -> int:
    return sum(len(one.curve) for one in tried)


def judged(judge: optuna.Study, curve: Sequence[float]) -> list[float]:
    """The part of a curve that the study's pruner lets a trial have."""
    trial = judge.ask()
    for number, value in enumerate(curve, start=1):
        trial.report(value, number)
        if number < len(curve) and trial.should_prune():
            judge.tell(trial, state=TrialState.PRUNED)
            return list(curve[:number])
    judge.tell(trial, max(curve))
    return list(curve)


def learned(seen: Sequence[float], whole: bool, others: Sequence[Sequence[float]], told: Told) -> float | None:
    """What the surrogate learns of a trial with these epochs, beside whole curves of others; None: nothing."""
    own = statistics.fmean(seen)
    if whole or told is Told.PART:
        return own
    if told is Told.NOTHING:
        return None
    return own + statistics.fmean(statistics.fmean(c) - statistics.fmean(c[: len(seen)]) for c in others)


def recommended(tried: Sequence[Tried], table: Table) -> tuple[int, ...]:
    """Of the layouts that were trained to the end, that of the best posterior mean."""
    known = [one for one in tried if one.signal is not None]
    codes = torch.tensor([one.codes for one in known], dtype=torch.float64)
    values = torch.tensor([one.signal for one in known], dtype=torch.float64)
    whole = [one.codes for one in known if one.whole]
    surrogate = Surrogate.fit(codes, values, Choices.named(table.sizes))
    return whole[int(surrogate.posterior(torch.tensor(whole, dtype=torch.float64)).mean.argmax())]


def show(races: Sequence[Race]) -> None:
    """A line for each pruner and what is told, by table and over all."""
    tables = list(dict.fromkeys(found.table for found in races))
    for title, members in [*((name, [name]) for name in tables), ("all", tables)]:
        print(f"\n{title}\n| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
        of = [found for found in races if found.table in members]
        unpruned = {(found.table, found.seed): found for found in of if found.pruner == NOTHING}
        for pruner, told in CONFIGURATIONS:
            own = [f for f in of if (f.pruner, f.told) == (pruner, told) and (f.table, f.seed) in unpruned]
            if own:
                print(line(own, [unpruned[found.table, found.seed] for found in own]), flush=True)


def line(own: Sequence[Race], unpruned: Sequence[Race]) -> str:
    def regret(of: Callable[[Race], float]) -> str:
        mean = statistics.fmean(map(of, own))
        if own[0].pruner == NOTHING:
            return f"{mean:.3f}"
        more, error = mean_and_error([of(a) - of(b) for a, b in zip(own, unpruned, strict=True)])
        return f"{mean:.3f} ({more:+.3f} ± {error:.3f})"

    saved, pruned = (statistics.fmean(values) for values in ([f.saved for f in own], [f.pruned_best for f in own]))
    parts = [own[0].pruner, own[0].told, f"{saved:.0%}", regret(lambda f: f.regret_of_trials)]
    parts += [regret(lambda f: f.regret_of_epochs), f"{pruned:.0%}", f"{statistics.fmean(f.trials for f in own):.0f}"]
    return f"| {' | '.join(parts)} | {len(own)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", type=Path, metavar="TABLE", help="default: those of the project")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--budget", type=int, default=30)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("pruning.jsonl"))
    given = parser.parse_args()
    races = [Race(**json.loads(row)) for row in given.out.read_text().splitlines()] if given.out.is_file() else []
    done, tables = {found.key for found in races}, given.tables or sorted(TABLES.glob("*.jsonl"))
    every = itertools.product(range(given.seeds), CONFIGURATIONS, tables)  # cut short, all have been compared equally
    left = [(path, seed, *how, given.budget) for seed, how, path in every if (path.stem, *how, seed) not in done]
    with ProcessPoolExecutor(given.workers) as pool, given.out.open("a", encoding="utf-8") as file:
        for number, found in enumerate(pool.map(race, left), start=1):
            races.append(found)
            print(json.dumps(asdict(found)), file=file, flush=True)
            print(f"{number} of {len(left)}: {' '.join(map(str, found.key))}", flush=True)
    show(races)


if __name__ == "__main__":
    main()
