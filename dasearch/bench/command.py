"""The benchmark as the command line runs it: validate names, run races serially or in parallel, write the scores."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dasearch.bench.landscapes import BINARY, FAMILIES, MOST_CHOICES, SITES, read_table
from dasearch.bench.samplers import PR, SAMPLERS, Entry, Race, Score, ask_seconds, planned, read_races, run, scores
from dasearch.errors import WrongUse, spelled, suggestion
from dasearch.folders import write_text
from dasearch.shipped import shipped

RACES, SCORES = "races.jsonl", "scores.json"


@dataclass(frozen=True)
class Bench:
    """The results of a benchmark."""

    races: list[Race]
    scores: list[Score]
    ask_seconds: dict[str, dict[str, float]]

    def record(self) -> dict[str, Any]:
        """The contents of ``scores.json``: scores and the median seconds of an ask, as JSON values."""
        return {"scores": [asdict(score) for score in self.scores], "ask_seconds": self.ask_seconds}


def race_samplers(
    *,
    families: Sequence[str] | None,
    sites: Sequence[int],
    tables: Sequence[Path] | None,
    samplers: Sequence[str] | None,
    seeds: int,
    trials: int,
    workers: int,
    ask: bool,
    out: Path,
    batches: Sequence[int] = (1,),
    choices: Sequence[int] = (BINARY,),
    say: Callable[[str], None],
) -> Bench:
    """Run every race that ``out`` does not contain yet and write the scores; None selects everything available.

    Every sampler is asked for one trial at a time and, in addition, for each batch size in ``batches``. ``say`` receives a
    line of progress after each race.

    Raises:
        WrongUse: for an unknown family, sampler or table, a number of sites that is not a multiple of the layer's, too few or
            too many choices, or an empty batch.
    """
    planted = _known(FAMILIES if families is None else families, FAMILIES, "family")
    others = _known(SAMPLERS if samplers is None else samplers, SAMPLERS, "sampler")
    _require_sizes(sites, choices, batches)
    tables = _tables() if tables is None else tables
    _require_tables(tables)
    names = list(dict.fromkeys([PR, *others]))
    out.mkdir(parents=True, exist_ok=True)
    batches, choices = list(dict.fromkeys([1, *batches])), list(dict.fromkeys(choices))
    entries = planned(planted, sites, tables, names, seeds=seeds, trials=trials, batches=batches, choices=choices)
    _run_left(entries, out / RACES, workers, say)
    keys = {entry.key for entry in entries}
    races = [race for race in read_races(out / RACES) if race.key in keys]
    bench = Bench(races, scores(races), ask_seconds(names, batches, choices) if ask else {})
    write_text(out / SCORES, json.dumps(bench.record(), indent=1) + "\n")
    return bench


def _require_sizes(sites: Sequence[int], choices: Sequence[int], batches: Sequence[int]) -> None:
    """Reject sizes of landscapes and batches that cannot be raced on."""
    for size in sites:
        if size % SITES or size < 2 * SITES:
            raise WrongUse(
                f"{size} sites are no whole number of layers; planted landscapes have {SITES} sites per layer: use 6, 36 or 90"
            )
    for count in choices:
        if not BINARY <= count <= MOST_CHOICES:
            raise WrongUse(
                f"a site of a planted landscape has {BINARY} to {MOST_CHOICES} choices; set --choices accordingly, not to {count}"
            )
    if any(batch < 1 for batch in batches):
        raise WrongUse(f"a batch of {min(batches)} is empty; use --batch with numbers of at least 1, as in 1,4,8")


def _require_tables(tables: Sequence[Path]) -> None:
    """Reject missing tables and those that cannot be read."""
    for table in tables:
        if not table.is_file():
            raise WrongUse(f"there is no table {table}; make one with benchmarks/train_table.py")
        read_table(table)


def _run_left(entries: Sequence[Entry], file: Path, workers: int, say: Callable[[str], None]) -> None:
    """Run the races that the file does not hold yet, in so many processes, with a line of progress after each."""
    started = time.perf_counter()
    with ExitStack() as stack:
        map_races: Callable[..., Any] = map
        if workers > 1:
            context = multiprocessing.get_context("spawn")
            map_races = stack.enter_context(ProcessPoolExecutor(workers, mp_context=context)).map
        for done, (left, race) in enumerate(run(entries, file, map_races=map_races), start=1):
            minutes = (time.perf_counter() - started) / done * left / 60
            say(
                f"{race.landscape}  {race.label}  seed {race.seed}: {race.curve[-1]:.2f}   {left} left, {minutes:.0f} min"
            )


def _tables() -> list[Path]:
    return sorted((shipped("studies").parent / "benchmarks" / "tables").glob("*.jsonl"))


def _known(given: Iterable[str], known: Iterable[str], what: str) -> list[str]:
    """Names in their canonical spelling, matched case-insensitively.

    Raises:
        WrongUse: for an unknown name.
    """
    able = list(known)
    names = [spelled(name, able) for name in given]
    for name in names:
        if name not in able:
            raise WrongUse(f"there is no {what} {name!r}{suggestion(name, able)}; known: {', '.join(able)}")
    return names
