"""A study in the terminal: a line for each training as it ends, one live line for the training that runs, tables at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.status import Status as Spinner
from rich.table import Table
from rich.text import Text

from dasearch.search.confirmation import OBJECTIVE, Standing
from dasearch.search.estimate import Estimate
from dasearch.search.events import ABLATION, CONFIRMATION, DONE, FINAL, SEARCH, Finished, Listener, Training
from dasearch.search.final import WINNER
from dasearch.search.store import Result
from dasearch.search.study import Status
from dasearch.training.loop import Epoch
from dasearch.training.metrics import Interval

HEADINGS = {
    SEARCH: "Search: validation MRR on Data_BO",
    CONFIRMATION: "Confirmation: the best and the controls again, with fresh seeds",
    FINAL: "Final training on all users",
    ABLATION: "Ablation: one thing changed at a time, the same seeds for all",
}
LM_EVERY = 25  # steps of tiny-opt's training between two updates of the live line


class Terminal(Listener):
    """Prints a run as it goes. Without a terminal (a file, a pipe) only finished lines are printed."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._spinner: Spinner | None = None
        self._phase = ""
        self._so_far = ""

    def close(self) -> None:
        if self._spinner is not None:
            self._spinner.stop()
            self._spinner = None

    def _live(self, text: str) -> None:
        if not self.console.is_terminal:
            return
        if self._spinner is None:
            self._spinner = self.console.status(Text(text))
            self._spinner.start()
        self._spinner.update(Text(text))

    def says(self, text: str) -> None:
        if self.console.is_terminal:
            self._live(f"{text} ...")
        else:
            self._print(text)

    def language_model(self, step: int, steps: int, loss: float) -> None:
        if step % LM_EVERY == 0 or step == steps:
            done = round(20 * step / steps)
            self._live(
                f"training tiny-opt on the catalogue's text {'█' * done}{'░' * (20 - done)} {step}/{steps}  loss {loss:.2f}"
            )
        if step == steps:
            self._print(f"tiny-opt trained on the catalogue's text: {steps} steps, loss {loss:.2f}")

    def started(self, training: Training) -> None:
        if training.phase != self._phase:
            self._phase = training.phase
            self._print("")
            self.console.print(Text(HEADINGS[training.phase], style="bold"))
        self._live(f"{_place(training)}epoch 1/{training.epochs}{self._so_far}")

    def epoch(self, training: Training, epoch: Epoch) -> None:
        now = min(epoch.number + 2, training.epochs)
        score = epoch.metrics[OBJECTIVE]
        self._live(f"{_place(training)}epoch {now}/{training.epochs}  {OBJECTIVE} {score:.4f}{self._so_far}")

    def finished(self, finished: Finished) -> None:
        training = finished.training
        width = len(str(training.total))
        parts = [f"{training.index:>{width}}/{training.total}", str(training.layout)]
        if training.phase != SEARCH:
            parts.append(f"{training.label:<22}")
        parts.append("diverged   " if finished.score is None else f"{OBJECTIVE} {finished.score:.4f}")
        if finished.best is not None:
            parts.append(f"best {finished.best:.4f}")
        parts.append(f"{finished.seconds:5.1f} s")
        parts.append(f"left {clock(finished.seconds_left)}")
        best = "" if finished.best is None else f"  best {finished.best:.4f}"
        self._so_far = f"{best}  left {clock(finished.seconds_left)}"
        self._print("  ".join(parts))

    def _print(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True)


def _place(training: Training) -> str:
    """``12/30  SPS-PPS  random, seed 2  `` (a trial has no label)."""
    label = "" if training.phase == SEARCH else f"{training.label}  "
    return f"{training.index}/{training.total}  {training.layout}  {label}"


def clock(seconds: float) -> str:
    """``1:05:09`` or ``4:10``."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def summary(console: Console, status: Status, *, command: str) -> None:
    """The closing tables of a study, what they mean, and what to type next."""
    console.print()
    if status.standings:
        console.print(standings_table(status))
        console.print(Text(verdict(status.standings)), soft_wrap=True)
        console.print()
    if status.results:
        console.print(results_table(status.results))
        console.print(Text(against_baselines(status.results)), soft_wrap=True)
        console.print()
    for artifact in status.artifacts:
        console.print(Text(f"saved {artifact.kind}: {artifact.path}"), soft_wrap=True)
    for line in next_steps(status, command):
        console.print(Text(line), soft_wrap=True)


def standings_table(status: Status) -> Table:
    """Confirmed layouts, best first, with intervals over seeds."""
    seeds = status.standings[0].seeds
    table = plain_table(f"Confirmed on validation data with {seeds} fresh seeds (95% t interval)")
    for heading in ("layout", "role", OBJECTIVE, "gain over all-serial"):
        table.add_column(heading, no_wrap=True)
    for index, standing in enumerate(status.standings):
        gain = "" if standing.gain is None else symmetric(standing.gain, "+")
        role = standing.role if index else f"{standing.role} (winner)"
        style = None if index else "bold"
        table.add_row(str(standing.layout), role, symmetric(standing.score), gain, style=style)
    return table


def verdict(standings: Sequence[Standing]) -> str:
    """One sentence: does the winner beat all-serial beyond seed noise?"""
    winner = standings[0]
    if winner.gain is None:
        return f"All-serial itself ({winner.layout}) came out best; the search found nothing better."
    if winner.gain.low > 0:
        return f"{winner.layout} beats all-serial beyond seed noise: {symmetric(winner.gain, '+')} {OBJECTIVE}."
    return (
        f"{winner.layout} came out best, but its gain over all-serial, {symmetric(winner.gain, '+')} {OBJECTIVE}, "
        "is within seed noise; more seeds (search.confirm_seeds) or longer trials (trial.epochs) would tell."
    )


def results_table(results: Sequence[Result]) -> Table:
    """Test metrics of the trained models and the baselines: means and sd over seeds, intervals, the winner's lead."""
    metrics = list(dict.fromkeys(result.metric for result in results))
    seeds = max(result.seeds for result in results)
    table = plain_table(
        f"Test split, read once; mean ± sd over {seeds} seed{'s' * (seeds > 1)}, {metrics[-1]} with its 95% interval over users"
    )
    for heading in ("", "layout", *metrics, "95% interval", "winner's lead", "p"):
        table.add_column(heading, no_wrap=True)
    for name in dict.fromkeys(result.name for result in results):
        rows = {result.metric: result for result in results if result.name == name}
        last = rows[metrics[-1]]
        cells = [spread(rows[metric]) for metric in metrics]
        lead = "" if last.lead is None else f"{last.lead.mean:+.4f} [{last.lead.low:+.4f}, {last.lead.high:+.4f}]"
        p = "" if last.p is None else f"{last.p:.3f}" if last.p >= 0.001 else "<.001"
        style = "bold" if name == WINNER else None
        table.add_row(name, last.layout or "", *cells, f"[{last.low:.4f}, {last.high:.4f}]", lead, p, style=style)
    return table


def spread(result: Result) -> str:
    """``mean ± sd`` over seeds."""
    return f"{result.value:.4f}" if result.sd is None else f"{result.value:.4f} ±{result.sd:.4f}"


def against_baselines(results: Sequence[Result], metric: str = "NDCG@10") -> str:
    """One sentence: which rows the winner stands above and below, and of which no one can say."""
    found: dict[str, list[str]] = {"above": [], "below": [], "level (within its interval) with": []}
    for result in results:
        if result.metric == metric and result.lead is not None:
            found[_standing(result.lead)].append(result.name)
    parts = [f"{words} {', '.join(names)}" for words, names in found.items() if names]
    return f"In {metric} the winner stands {'; '.join(parts)}."


def _standing(lead: Interval) -> str:
    if lead.low > 0:
        return "above"
    return "below" if lead.high < 0 else "level (within its interval) with"


def next_steps(status: Status, command: str) -> list[str]:
    model = next((artifact.path for artifact in status.artifacts if artifact.kind == "model"), None)
    if model is None:
        return [f"next: {command}   (goes on with this study)", "      dasearch status " + status.name]
    return [
        f"next: dasearch recommend {model} --history ITEM,ITEM,...",
        f"      dasearch evaluate {model}",
        f"      dasearch status {status.name}",
    ]


def show_status(console: Console, status: Status) -> None:
    """Where a study stands: its phase, its best trials, and its tables as far as they exist."""
    best = status.best
    console.print(
        Text(f"{status.name}: {status.phase}, {len(status.completed)} of {status.budget} evaluations", style="bold")
    )
    if best is not None:
        console.print(Text(f"best so far: {best.layout}  {OBJECTIVE} {best.score:.4f}  (trial {best.number})"))
    table = plain_table("Trials")
    for heading in ("trial", "layout", "state", OBJECTIVE, "seconds"):
        table.add_column(heading, no_wrap=True)
    for trial in status.trials:
        score = "" if trial.score is None else f"{trial.score:.4f}"
        seconds = "" if trial.seconds is None else f"{trial.seconds:.1f}"
        table.add_row(str(trial.number), str(trial.layout or ""), trial.state, score, seconds)
    console.print(table)
    if status.standings:
        console.print(standings_table(status))
    if status.phase == DONE:
        console.print(results_table(status.results))


def show_estimate(console: Console, yaml: str, estimate: Estimate) -> None:
    """What ``--dry-run`` prints."""
    console.print(Text(yaml), soft_wrap=True)
    console.print(f"layouts in the space: {estimate.layouts:,}")
    console.print(f"parameters: {estimate.trained_parameters:,} trained, {estimate.frozen_parameters:,} frozen")
    parts = (estimate.search_seconds, estimate.confirmation_seconds, estimate.final_seconds)
    search, confirmation, final = (clock(seconds) for seconds in parts)
    console.print(f"estimated time on this machine: {clock(estimate.seconds)}")
    console.print(f"  search {search}, confirmation {confirmation}, final training {final}")
    console.print("  early stopping shortens it; tiny-opt's own first training adds to it")


def symmetric(interval: Interval, sign: str = "") -> str:
    """``0.1234 ±0.0056``; a single seed has no width to show."""
    half = interval.high - interval.mean
    return f"{interval.mean:{sign}.4f}" if math.isinf(half) else f"{interval.mean:{sign}.4f} ±{half:.4f}"


def plain_table(title: str) -> Table:
    """A table with a title and little else."""
    return Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False
    )
