"""An ablation as a table and a figure: each variant's score, and the study's gain over it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rich.table import Table

from dasearch.fitting import COLUMN, fitting, plain_table, shortened, width_of
from dasearch.report.terminal import counted, finite_record, symmetric
from dasearch.search.ablation import Scored

BLUE, GREY = "#0072B2", "#999999"  # Okabe & Ito 2008
INDENT = "  "  # of a variant under its group
ROW_HEIGHT, PANEL_MARGIN, FRAME = 26, 34, 120  # pixels


def ablation_table(scored: Sequence[Scored], width: int) -> Table:
    """One row per variant under its group; ``gain`` is the study's over it in its selection metric, paired by seed.

    Args:
        scored: the study and its variants.
        width: of the console; a narrow one shows fewer columns, dropping that metric and the gain last.
    """
    seeds = max(score.seeds for score in scored)
    table = plain_table(
        f"Validation data, {counted(seeds, 'seed')} (95% t interval); gain: the study over the variant, paired"
    )
    cells = _cells(scored)
    names = [score.variant.name for score in scored]
    named = {**cells, "": [*(INDENT + name for name in names), *(score.variant.group for score in scored)]}
    last = ["", scored[0].metric, f"gain in {scored[0].metric}"]
    kept = [
        heading for heading in fitting(named, width, [one for one in reversed(cells) if one not in last]) if heading
    ]
    room = width - width_of(cells, kept) - COLUMN
    for heading in ("", *kept):
        table.add_column(heading, no_wrap=True)
    group = ""
    for index, score in enumerate(scored):
        if score.variant.group != group:
            group = score.variant.group
            table.add_row(shortened(group, room), style="bold")
        name = f"{INDENT if group else ''}{shortened(names[index], room - len(INDENT))}"
        table.add_row(name, *(cells[heading][index] for heading in kept))
    return table


def _cells(scored: Sequence[Scored]) -> dict[str, list[str]]:
    """Columns by their headings."""
    cells = {metric: [symmetric(score.metrics[metric]) for score in scored] for metric in scored[0].metrics}
    cells["parameters"] = [f"{score.parameters:,}" for score in scored]
    cells[f"gain in {scored[0].metric}"] = [
        "" if score.gain is None else symmetric(score.gain, "+") for score in scored
    ]
    return cells


def ablation_figure(scored: Sequence[Scored], *, title: str) -> go.Figure:
    """The study's metric of every variant with its 95% interval over seeds, one panel per group; the line is the study itself."""
    whole, *others = scored
    groups = list(dict.fromkeys(score.variant.group for score in others))
    heights = [1 + sum(score.variant.group == group for score in others) for group in groups]
    figure = make_subplots(
        rows=len(groups),
        cols=1,
        shared_xaxes=True,
        subplot_titles=groups,
        row_heights=heights,
        vertical_spacing=min(0.08, 0.35 / max(1, len(groups))),
    )
    for row, group in enumerate(groups, start=1):
        named = [whole, *(score for score in others if score.variant.group == group)]
        figure.add_trace(_points(named), row=row, col=1)
        figure.add_vline(whole.metrics[whole.metric].mean, line={"color": GREY, "dash": "dot"}, row=row, col=1)
        figure.update_yaxes(autorange="reversed", row=row, col=1)
    figure.update_xaxes(title_text=f"validation {whole.metric}", row=len(groups), col=1)
    height = FRAME + ROW_HEIGHT * sum(heights) + PANEL_MARGIN * len(groups)
    figure.update_layout(title=title, height=height, showlegend=False, template="plotly_white", margin={"l": 260})
    return figure


def _points(scored: Sequence[Scored]) -> go.Scatter:
    values = [score.metrics[score.metric] for score in scored]
    halves = [0.0 if math.isinf(value.high) else value.high - value.mean for value in values]
    return go.Scatter(
        x=[value.mean for value in values],
        y=[score.variant.name for score in scored],
        error_x={"type": "data", "array": halves},
        mode="markers",
        marker={"size": 9, "color": [GREY if score.gain is None else BLUE for score in scored]},
        hovertemplate="%{y}: %{x:.4f}<extra></extra>",
    )


def ablation_record(scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """The same as JSON values."""
    return [
        {
            "group": score.variant.group,
            "variant": score.variant.name,
            "layout": str(score.variant.layout),
            "seeds": score.seeds,
            "parameters": score.parameters,
            "metrics": {name: finite_record(interval) for name, interval in score.metrics.items()},
            "metric": score.metric,
            "gain": None if score.gain is None else finite_record(score.gain),
        }
        for score in scored
    ]
