"""A benchmark of samplers as a table in the terminal and a figure of curves."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rich.console import Console
from rich.table import Table

from dasearch.bench.samplers import PR, Race, Score

COLOURS = ("#0072B2", "#999999", "#E69F00", "#D55E00", "#CC79A7", "#009E73", "#56B4E9")  # Okabe & Ito 2008
COLUMNS = 3
PANEL_HEIGHT = 260


def show_scores(console: Console, scores: Sequence[Score], trials: int) -> None:
    """Mean best value after the last trial, one row per landscape; PRSampler's paired lead in brackets."""
    chosen = [score for score in scores if score.trials == trials]
    title = f"best value after {trials} trials, 1 is the optimum (lead of {PR} ± standard error)"
    console.print(_by_landscape(title, chosen, _value))


def show_costs(console: Console, scores: Sequence[Score], trials: int) -> None:
    """The regret added by asking for several trials at a time, paired; None where all were sequential."""
    chosen = [score for score in scores if score.trials == trials and score.batch > 1]
    if chosen:
        title = f"regret added by asking for several at a time, after {trials} trials (± standard error)"
        console.print(_by_landscape(title, chosen, lambda score: f"{score.cost:+.3f} ± {score.cost_error:.3f}"))


def _by_landscape(title: str, scores: Sequence[Score], cell: Callable[[Score], str]) -> Table:
    """One row per landscape, one column per sampler and batch."""
    table = Table(title=title)
    table.add_column("landscape")
    labels = list(dict.fromkeys(score.label for score in scores))
    for label in labels:
        table.add_column(label, justify="right")
    for landscape in dict.fromkeys(score.landscape for score in scores):
        row = {score.label: cell(score) for score in scores if score.landscape == landscape}
        table.add_row(landscape, *(row.get(label, "") for label in labels))
    return table


def _value(score: Score) -> str:
    lead = "" if score.sampler == PR else f" ({score.lead:+.2f} ± {score.lead_error:.2f})"
    return f"{score.mean:.2f}{lead}"


def show_asks(console: Console, seconds: dict[str, dict[str, float]]) -> None:
    """Median seconds of one ask, one row per size (sites, and choices where there are more than two)."""
    table = Table(title="median seconds of an ask")
    table.add_column("size/trials")
    for name in next(iter(seconds.values()), {}):
        table.add_column(name, justify="right")
    for size, row in seconds.items():
        table.add_row(size, *(f"{value:.3f}" for value in row.values()))
    console.print(table)


def figure(races: Sequence[Race]) -> go.Figure:
    """Mean best value so far, one panel per landscape, one line per sampler and batch."""
    landscapes = list(dict.fromkeys(race.landscape for race in races))
    labels = list(dict.fromkeys(race.label for race in races))
    rows = -(-len(landscapes) // COLUMNS)
    plot = make_subplots(rows=rows, cols=COLUMNS, subplot_titles=landscapes, shared_yaxes=True)
    named: set[str] = set()
    for panel, landscape in enumerate(landscapes):
        for colour, label in zip(itertools.cycle(COLOURS), labels, strict=False):
            curves = [race.curve for race in races if (race.landscape, race.label) == (landscape, label)]
            if not curves:
                continue
            mean = [statistics.fmean(values) for values in zip(*curves, strict=False)]
            trace = go.Scatter(
                x=list(range(1, len(mean) + 1)),
                y=mean,
                name=label,
                legendgroup=label,
                showlegend=label not in named,
                line={"color": colour, "width": 3 if label == PR else 1.5},
            )
            named.add(label)
            plot.add_trace(trace, row=panel // COLUMNS + 1, col=panel % COLUMNS + 1)
    plot.update_xaxes(title_text="trials")
    plot.update_yaxes(range=[0, 1.02])
    plot.update_layout(height=PANEL_HEIGHT * rows + 80, title="Best noise-free value so far; 1 is the optimum")
    return plot
