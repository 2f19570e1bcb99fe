"""How a bench of samplers is shown: a table in the terminal and a figure of curves."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rich.console import Console
from rich.table import Table

from dasearch.bench.samplers import PR, Race, Score

COLOURS = ("#0072B2", "#999999", "#E69F00", "#D55E00", "#CC79A7", "#009E73", "#56B4E9")  # Okabe & Ito 2008
COLUMNS = 3
PANEL_HEIGHT = 260


def show_scores(console: Console, scores: Sequence[Score], trials: int) -> None:
    """Mean best value after so many trials, a row a landscape; PRSampler's paired lead in brackets."""
    chosen = [score for score in scores if score.trials == trials]
    samplers = list(dict.fromkeys(score.sampler for score in chosen))
    table = Table(title=f"best value after {trials} trials, 1 is the optimum (lead of {PR} ± standard error)")
    table.add_column("landscape")
    for name in samplers:
        table.add_column(name, justify="right")
    for landscape in dict.fromkeys(score.landscape for score in chosen):
        row = {score.sampler: score for score in chosen if score.landscape == landscape}
        table.add_row(landscape, *(_cell(row.get(name)) for name in samplers))
    console.print(table)


def _cell(score: Score | None) -> str:
    if score is None:
        return ""
    lead = "" if score.sampler == PR else f" ({score.lead:+.2f} ± {score.lead_error:.2f})"
    return f"{score.mean:.2f}{lead}"


def show_asks(console: Console, seconds: dict[str, dict[str, float]]) -> None:
    """Median seconds of one ask, a row a size."""
    table = Table(title="median seconds of an ask")
    table.add_column("bits/trials")
    for name in next(iter(seconds.values()), {}):
        table.add_column(name, justify="right")
    for size, row in seconds.items():
        table.add_row(size, *(f"{value:.3f}" for value in row.values()))
    console.print(table)


def figure(races: Sequence[Race]) -> go.Figure:
    """Mean best value so far, a panel a landscape, a line a sampler."""
    landscapes = list(dict.fromkeys(race.landscape for race in races))
    samplers = list(dict.fromkeys(race.sampler for race in races))
    rows = -(-len(landscapes) // COLUMNS)
    found = make_subplots(rows=rows, cols=COLUMNS, subplot_titles=landscapes, shared_yaxes=True)
    named: set[str] = set()
    for panel, landscape in enumerate(landscapes):
        for colour, sampler in zip(COLOURS, samplers, strict=False):
            curves = [race.curve for race in races if (race.landscape, race.sampler) == (landscape, sampler)]
            if not curves:
                continue
            mean = [statistics.fmean(values) for values in zip(*curves, strict=False)]
            trace = go.Scatter(
                x=list(range(1, len(mean) + 1)),
                y=mean,
                name=sampler,
                legendgroup=sampler,
                showlegend=sampler not in named,
                line={"color": colour, "width": 3 if sampler == PR else 1.5},
            )
            named.add(sampler)
            found.add_trace(trace, row=panel // COLUMNS + 1, col=panel % COLUMNS + 1)
    found.update_xaxes(title_text="trials")
    found.update_yaxes(range=[0, 1.02])
    found.update_layout(height=PANEL_HEIGHT * rows + 80, title="Best noise-free value so far; 1 is the optimum")
    return found
