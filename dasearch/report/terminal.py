"""A study's results in the terminal, as tables and sentences; `Terminal` shows its progress."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dasearch.commands import Place, command
from dasearch.config import Pick
from dasearch.fitting import LAYOUT, fitted, show_table, table_of
from dasearch.layout import Layout
from dasearch.search.confirmation import OBJECTIVE, WINNER, ConfirmedLayout, cheapest, recommended, winner_of
from dasearch.search.domain import briefly, settings_text
from dasearch.search.estimate import Estimate
from dasearch.search.events import DONE
from dasearch.search.front import Selection
from dasearch.search.progress import clock
from dasearch.search.store import PostSearchTraining, PriorTrial, Result
from dasearch.search.study import Status
from dasearch.short_layout import short_text
from dasearch.training.metrics import Interval
from dasearch.training.request_files import Answered


class Layouts(StrEnum):
    """Display of layouts in tables."""

    FITTING = "fitting"  # abbreviated where a line is too narrow
    FULL = "full"


PICKS = {
    Pick.KNEE: "its knee",
    Pick.BEST: "the best, as without a cost,",
    Pick.CHEAPEST: "the cheapest that is not significantly worse than all-serial",
}
NOTE = "   ("  # between a command and what explains it
CORRECTED_P = "p (Holm)"  # heading: corrected for the number of other rows in the table
SURE = 0.05  # corrected p below which a difference is called significant


def summary(console: Console, status: Status, place: Place, *, resume: str) -> None:
    """Print the results tables of a study, their interpretation, and the next commands.

    Args:
        console: to print to.
        status: of the study.
        place: options by which other commands locate the study.
        resume: the command line that resumes it.
    """
    console.print()
    if status.standings:
        show_table(console, standings_table(status, console.width))
        for sentence in conclusions(status.standings, status.trials, status.worth, status.metric, status.selection):
            _tell(console, sentence)
        console.print()
    if status.results:
        show_table(console, results_table(status.results, console.width))
        _tell(console, against_baselines(status.results))
        console.print()
    for artifact in status.artifacts:
        console.print(Text(f"saved {artifact.kind}: {artifact.path}"), soft_wrap=True)
    for line in next_steps(status, place, resume):
        console.print(Text(_with_room(line, console)), soft_wrap=True)


def standings_table(status: Status, width: int | None) -> Table:
    """Confirmed layouts, best first, with intervals over seeds; ``width`` as in `fitted`."""
    standings, selection = status.standings, status.selection
    winner = winner_of(status.results, standings, status.space, selection)
    cells = {
        LAYOUT: [],
        "role": [f"{one.role} (winner)" if one.layout == winner else one.role for one in standings],
        status.metric: [symmetric(one.score) for one in standings],
        "gain over\nall-serial": ["" if one.gain is None else symmetric(one.gain, "+") for one in standings],
    }
    if selection is not None:
        on_front = selection.front(standings)
        cells[selection.cost.words] = [f"{selection.costs.of(one.layout):,}" for one in standings]
        cells["front"] = [_yes(one in on_front) for one in standings]
    kept = fitted(cells, [one.layout for one in standings], width, ["front", "role"])
    title = f"Confirmed on validation data with {counted(standings[0].seeds, 'fresh seed')} (95% t interval)"
    return table_of(title, kept, ["bold" if one.layout == winner else None for one in standings])


def _yes(true: bool) -> str:
    return "yes" if true else ""


def conclusions(
    found: Sequence[ConfirmedLayout],
    trials: Sequence[Counted],
    worth: float,
    metric: str,
    selection: Selection | None,
) -> list[str]:
    """The result of the confirmation in sentences: the winner, and whether a cheaper layout is as good."""
    if selection is not None:
        return [front_in_words(found, metric, selection)]
    lighter = cheapest_in_words(found, trials, worth, metric)
    return [verdict(found, metric), *([] if lighter is None else [lighter])]


def front_in_words(found: Sequence[ConfirmedLayout], metric: str, selection: Selection) -> str:
    """A sentence on the confirmed front: its size, and the picked layout with its gain and cost."""
    picked, cost = selection(found), selection.cost.words
    own = selection.costs.of(picked.layout)
    parts = [f"{metric} {symmetric(picked.score)}", f"{own:,} {cost}"]
    serial = next((standing for standing in found if standing.gain is None), None)
    if serial is not None and picked.simultaneous_interval is not None:
        whole = selection.costs.of(serial.layout)
        less = f"{abs(1 - own / whole):.1%} {'fewer' if own < whole else 'more'} than"
        parts.append(f"{'as many as' if own == whole else less} all-serial")
        parts.append(
            f"gain over it {symmetric(picked.simultaneous_interval, '+')}, corrected for {len(found) - 1} comparisons"
        )
    return (
        f"{len(selection.front(found))} of {len(found)} confirmed layouts are on the front of {metric} and {cost}; "
        f"{PICKS[selection.pick]} is {short_text(picked.layout)}: {', '.join(parts)}."
    )


def verdict(standings: Sequence[ConfirmedLayout], metric: str = OBJECTIVE) -> str:
    """One sentence: does the winner beat all-serial beyond seed noise?"""
    winner, kept = standings[0], recommended(standings)
    name = short_text(winner.layout)
    if winner.simultaneous_interval is None:
        return f"All-serial itself ({name}) came out best; the search found nothing better."
    if kept is not winner and kept.simultaneous_interval is not None:
        gain = f"{symmetric(kept.simultaneous_interval, '+')} {metric}, corrected for {len(standings) - 1} comparisons"
        sure = short_text(kept.layout)
        return f"{sure} beats all-serial beyond seed noise: {gain}; {name} has the best mean, with wider noise."
    gain = f"{symmetric(winner.simultaneous_interval, '+')} {metric}, corrected for {len(standings) - 1} comparisons"
    if winner.simultaneous_interval.low > 0:
        return f"{name} beats all-serial beyond seed noise: {gain}."
    return (
        f"{name} came out best, but its gain over all-serial ({gain}) is within seed noise, so "
        "all-serial is kept; more seeds (search.confirm_seeds) or longer trials (trial.epochs) may resolve it."
    )


class Counted(Protocol):
    """A trial whose trained parameters may be known."""

    @property
    def layout(self) -> Layout | None:
        """Its layout; None where it has none."""

    @property
    def parameters(self) -> int | None:
        """Number of trained parameters; None where unknown."""


def cheapest_in_words(
    found: Sequence[ConfirmedLayout], trials: Sequence[Counted], worth: float, metric: str = OBJECTIVE
) -> str | None:
    """One sentence, where a confirmed layout needs fewer trained parameters than all-serial and is not worse."""
    parameters = {t.layout: t.parameters for t in trials if t.layout is not None and t.parameters is not None}
    lighter = cheapest(found, parameters, worth)
    if lighter is None or lighter.simultaneous_interval is None:
        return None
    serial = next(standing.layout for standing in found if standing.gain is None)
    saved = 1 - parameters[lighter.layout] / parameters[serial]
    return (
        f"{short_text(lighter.layout)} trains {saved:.1%} fewer parameters than all-serial and is at most "
        f"{worth:.0%} behind it, if at all: "
        f"{symmetric(lighter.simultaneous_interval, '+')} {metric}, corrected for {len(found) - 1} comparisons."
    )


def results_table(results: Sequence[Result], width: int | None) -> Table:
    """Test metrics of the trained models and the baselines: means and sd over seeds, intervals, the winner's lead.

    Args:
        results: rows of the table.
        width: as in `fitted`; a narrow console shows fewer columns, dropping the other metrics first.
    """
    metrics = list(dict.fromkeys(result.metric for result in results))
    last, seeds = metrics[-1], max(result.seeds for result in results)
    columns: dict[str, Callable[[dict[str, Result]], str]] = {"": lambda rows: rows[last].name, LAYOUT: lambda rows: ""}
    columns |= {metric: _spread_of(metric) for metric in metrics}
    columns |= {
        "95% interval": lambda rows: f"[{rows[last].low:.4f}, {rows[last].high:.4f}]",
        "winner's lead": lambda rows: lead_text(rows[last]),
        CORRECTED_P: lambda rows: p_text(rows[last]),
    }
    names = list(dict.fromkeys(result.name for result in results))
    by_name = {name: {result.metric: result for result in results if result.name == name} for name in names}
    cells = {heading: [cell(by_name[name]) for name in names] for heading, cell in columns.items()}
    layouts = [by_name[name][last].layout for name in names]
    kept = fitted(cells, layouts, width, [*metrics[:-1], LAYOUT, "95% interval"])
    over = f"mean ± sd over {seeds} seeds" if seeds > 1 else "one seed"
    title = f"Test split, evaluated once; {over}; {last}: interval over users, lead over users and seeds, p corrected by Holm"
    return table_of(title, kept, ["bold" if name == WINNER else None for name in names])


def lead_text(result: Result) -> str:
    """The winner's mean lead over a row with its interval; empty for the winner itself."""
    lead = result.lead
    return "" if lead is None else f"{lead.mean:+.4f} [{lead.low:+.4f}, {lead.high:+.4f}]"


def p_text(result: Result) -> str:
    """``0.012`` or ``<.001``."""
    if result.p is None:
        return ""
    return f"{result.p:.3f}" if result.p >= 0.001 else "<.001"


def _spread_of(metric: str) -> Callable[[dict[str, Result]], str]:
    return lambda rows: spread(rows[metric])


def spread(result: Result) -> str:
    """``mean ± sd`` over seeds."""
    return f"{result.value:.4f}" if result.sd is None else f"{result.value:.4f} ±{result.sd:.4f}"


def against_baselines(results: Sequence[Result], metric: str = "NDCG@10") -> str:
    """One sentence: the rows that the winner is significantly above or below, and the others."""
    rows: dict[str, list[str]] = {
        "significantly above": [],
        "significantly below": [],
        "statistically indistinguishable from": [],
    }
    above, below, level = rows.values()
    for result in results:
        if result.metric != metric or result.lead is None:
            continue
        sure = (result.p or 0.0) < SURE and not result.lead.low <= 0 <= result.lead.high
        (level if not sure else above if result.lead.mean > 0 else below).append(result.name)
    parts = [f"{words} {', '.join(names)}" for words, names in rows.items() if names]
    return f"In {metric} the winner is {'; '.join(parts)}."


def next_steps(status: Status, place: Place, resume: str) -> list[str]:
    """The next commands, quoted for a shell."""
    model = next((artifact.path for artifact in status.artifacts if artifact.kind == "model"), None)
    if model is None:
        return [
            f"next: {resume}{NOTE}trains and tests the winner)",
            f"      {command('status', status.name, *place.options)}",
        ]
    pick = command("export", status.name, "--pick", "best", *place.options)
    return [
        f"next: {command('recommend', model, '--history', 'ITEM,ITEM,...')}",
        f"      {command('report', status.name, *place.options)}",
        *([f"      {pick}{NOTE}another layout of the front)"] if status.selection else []),
        f"      {command('export', model, '--format', 'hf')}{NOTE}{command('export', '--list')} shows the others)",
    ]


def _with_room(line: str, console: Console) -> str:
    """A command without its note where a terminal would break the line; `NOTE` begins a note."""
    return line.partition(NOTE)[0] if console.is_terminal and len(line) > console.width else line


def show_studies(console: Console, studies: Sequence[Status]) -> None:
    """Print one line per study: phase, evaluations, the best so far."""
    table = Table.grid(padding=(0, 2))
    for _ in range(5):
        table.add_column(no_wrap=True, overflow="ellipsis")
    for one in studies:
        best = _best_cells(one)
        evaluations = f"{len(one.completed)} of {counted(one.budget, 'evaluation')}"
        table.add_row(one.name, one.phase, evaluations, *best)
    console.print(table if studies else "no study has begun yet; start one with `dasearch run`")


def _best_cells(status: Status) -> tuple[str, str]:
    """The best score so far and its layout, empty before there is one."""
    best = status.best
    if best is None or best.layout is None:
        return "", ""
    return f"best {status.metric} {best.score:.4f}", short_text(best.layout)


def show_status(console: Console, status: Status, *, layouts: Layouts = Layouts.FITTING) -> None:
    """Print a study's status: its phase, its best trials, and the tables that exist."""
    width = console.width if layouts is Layouts.FITTING else None
    _show_head(console, status, layouts)
    show_table(console, trials_table(status, width))
    for line in failures(status):
        _tell(console, line)
    if status.standings:
        show_table(console, standings_table(status, width))
    if status.phase == DONE:
        show_table(console, results_table(status.results, width))


def _show_head(console: Console, status: Status, layouts: Layouts) -> None:
    """The lines above the tables."""
    best = status.best
    head = f"{status.name}: {status.phase}, {len(status.completed)} of {status.budget} evaluations"
    console.print(Text(head, style="bold"))
    if status.prior:
        _tell(console, f"warm start: {warm_start(status.prior)}")
    if best is not None and best.layout is not None:
        written = short_text(best.layout) if layouts is Layouts.FITTING else str(best.layout)
        _tell(console, f"best so far: {written}  {status.metric} {best.score:.4f}  (trial {best.number})")
    if status.settings_found:
        _tell(console, f"settings found: {settings_text(status.settings_found)}")


def _tell(console: Console, sentence: str) -> None:
    """Print a sentence, wrapped between words on a terminal, else as one line."""
    console.print(Text(sentence), soft_wrap=not console.is_terminal)


class Failing(Protocol):
    """A trial that may have failed."""

    @property
    def failed(self) -> bool:
        """Whether its training failed."""

    @property
    def reason(self) -> str | None:
        """The cause of the failure; None where there is none."""


class Trained(Protocol):
    """A study or its status, with its trainings."""

    @property
    def trials(self) -> Sequence[Failing]:
        """The trials of its search."""

    @property
    def later_trainings(self) -> Sequence[PostSearchTraining]:
        """The trainings after its search."""


def failures(study: Trained) -> list[str]:
    """One sentence per cause with its number of failed trials or later trainings; the most frequent first."""
    failed = [("trial", trial.reason) for trial in study.trials if trial.failed]
    failed += [(f"{one.phase} training", one.reason) for one in study.later_trainings if one.reason is not None]
    return [f"{counted(number, noun)} failed: {reason}" for (noun, reason), number in Counter(failed).most_common()]


def trials_table(status: Status, width: int | None) -> Table:
    """One row per trial; ``width`` as in `fitted`."""
    trials, selection = status.trials, status.selection
    settings = [briefly(trial.settings) for trial in trials]
    names = briefly(status.settings_found)
    cells = {
        "trial": [str(trial.number) for trial in trials],
        LAYOUT: [],
        **{name: [own.get(name, "") for own in settings] for name in names},
        "state": [trial.state for trial in trials],
        status.metric: ["" if trial.score is None else f"{trial.score:.4f}" for trial in trials],
        "seconds": ["" if trial.seconds is None else f"{trial.seconds:.1f}" for trial in trials],
    }
    if selection is not None:
        cells[selection.cost.words] = [f"{selection.costs.of(t.layout):,}" if t.layout else "" for t in trials]
    return table_of("Trials", fitted(cells, [t.layout for t in trials], width, ["seconds", "state", *names]))


def show_estimate(console: Console, yaml: str, estimate: Estimate) -> None:
    """Print an estimate for ``--dry-run``."""
    console.print(Text(yaml), soft_wrap=True)
    console.print(f"layouts in the space: {estimate.layouts:,}")
    console.print(f"parameters: {estimate.trained_parameters:,} trained, {estimate.frozen_parameters:,} frozen")
    console.print(
        f"side by side: {counted(estimate.side_by_side, 'trial')}, "
        f"{counted(estimate.finals_side_by_side, 'final training')} (search.batch)"
    )
    parts = {
        "preparation": estimate.preparation_seconds,
        "search": estimate.search_seconds,
        "confirmation": estimate.confirmation_seconds,
        "final training": estimate.final_seconds,
        "ID models": estimate.id_model_seconds,
    }
    console.print(f"estimated time on this machine: {clock(estimate.seconds)}")
    console.print(f"  {', '.join(f'{name} {clock(seconds)}' for name, seconds in parts.items())}", soft_wrap=True)
    console.print("  measured now, for all epochs; early stopping shortens it")
    threads = f"{counted(estimate.threads, 'thread')} of {counted(estimate.cores, 'core')}"
    console.print(f"threads: {threads}; {estimate.waiting}", soft_wrap=True)


def show_answered(console: Console, done: Answered, out: Path) -> None:
    """Print the outcome of answering a file of histories."""
    pace = f"{done.seconds:.1f} s, {done.answered / max(done.seconds, 1e-9):,.0f} a second"
    console.print(Text(f"answered {done.answered:,} of {counted(done.rows, 'row')} in {pace}: {out}"), soft_wrap=True)
    if done.left_out:
        left_out = f"skipped {counted(done.left_out, 'row')}, the first: {done.first_left_out}"
        console.print(Text(left_out), soft_wrap=True)


def counted(number: int, noun: str) -> str:
    """``1 trial``, ``2 trials``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def symmetric(interval: Interval, sign: str = "") -> str:
    """``0.1234 ±0.0056``; a single seed has no interval."""
    half = interval.high - interval.mean
    return f"{interval.mean:{sign}.4f}" if math.isinf(half) else f"{interval.mean:{sign}.4f} ±{half:.4f}"


def finite_record(interval: Interval) -> dict[str, float | None]:
    """An interval as JSON values: JSON has no infinity, so that of a single seed has null ends."""
    return {name: value if math.isfinite(value) else None for name, value in interval._asdict().items()}


def warm_start(prior: Sequence[PriorTrial]) -> str:
    """The source of a study's warm start, in words."""
    return f"{counted(len(prior), 'layout')} of {prior[0].source}"


def prior_record(trial: PriorTrial) -> dict[str, Any]:
    """A prior trial as JSON values."""
    return {**trial._asdict(), "layout": str(trial.layout)}


def later_record(training: PostSearchTraining) -> dict[str, Any]:
    """A training after the search as JSON values."""
    times = {"began": training.began.isoformat(), "ended": training.ended and training.ended.isoformat()}
    return {**training._asdict(), "layout": str(training.layout), **times}


def standings_record(found: Sequence[ConfirmedLayout], selection: Selection | None) -> list[dict[str, Any]]:
    """The confirmed layouts as JSON values; with a cost also their costs, and whether they are on the front and picked."""
    records = [standing_record(standing) for standing in found]
    if selection is None or not found:
        return records
    on_front, picked = selection.front(found), selection(found)
    return [
        record | {"cost": selection.costs.of(one.layout), "front": one in on_front, "picked": one is picked}
        for record, one in zip(records, found, strict=True)
    ]


def standing_record(standing: ConfirmedLayout) -> dict[str, Any]:
    """A confirmed layout as JSON values."""
    intervals = {"score": standing.score, "gain": standing.gain, "together": standing.simultaneous_interval}
    return {
        "layout": str(standing.layout),
        "role": standing.role,
        "seeds": standing.seeds,
        **{name: None if interval is None else finite_record(interval) for name, interval in intervals.items()},
    }
