"""The test result: the winner against its controls, the variations and the ID models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from dasearch.report.terminal import against_baselines
from dasearch.report.theme import BEST, NEUTRAL, ROLE_COLOURS, Theme, drawn, escaped, nothing
from dasearch.report.view import LEAD_METRIC, StudyView
from dasearch.search.confirmation import WINNER
from dasearch.search.store import Result

ROW, FRAME = 30, 100  # pixels


def results(view: StudyView, theme: Theme) -> go.Figure:
    """One line per row of the results table, in its comparison metric, with intervals over users where there are any."""
    rows = shown_rows(view.results)
    if not rows:
        return nothing(theme, "The test split has not been read yet; the final phase evaluates on it once.")
    metric = rows[0].metric
    trace = go.Scatter(
        x=[row.value for row in rows],
        y=[escaped(row.name) for row in rows],
        mode="markers",
        error_x=_intervals(rows),
        showlegend=False,
        marker={
            "size": [15 if row.name == WINNER else 10 for row in rows],
            "symbol": [_symbol(row) for row in rows],
            "color": [BEST if row.name == WINNER else ROLE_COLOURS.get(row.name, NEUTRAL) for row in rows],
        },
        hovertemplate="%{y}: " + metric + " %{x:.4f}<extra></extra>",
    )
    x, height = {"title": {"text": f"test {metric}"}}, FRAME + ROW * len(rows)
    return drawn(theme, trace, says=_words(rows), height=height, xaxis=x, yaxis={"autorange": "reversed"})


def shown_rows(results: Sequence[Result]) -> list[Result]:
    """Results in the comparison metric of the results table, or in its first one."""
    metrics = [result.metric for result in results]
    metric = LEAD_METRIC if LEAD_METRIC in metrics else next(iter(metrics), None)
    return [result for result in results if result.metric == metric]


def _symbol(row: Result) -> str:
    if row.name == WINNER:
        return "star"
    return "diamond" if row.layout is None else "circle"


def _intervals(rows: Sequence[Result]) -> dict[str, Any] | None:
    """Interval ends of each row; None where no row has any."""
    if all(row.low is None for row in rows):
        return None
    above = [0.0 if row.high is None else row.high - row.value for row in rows]
    below = [0.0 if row.low is None else row.value - row.low for row in rows]
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 2, "color": NEUTRAL}


def _words(rows: Sequence[Result]) -> str:
    """A sentence on the winner's value and its comparison with the other rows."""
    own = next((row for row in rows if row.name == WINNER), rows[0])
    interval = "" if own.low is None or own.high is None else f" [{own.low:.4f}, {own.high:.4f}]"
    compared = f" {against_baselines(rows, own.metric)}" if any(row.lead is not None for row in rows) else ""
    return f"On the test split the {own.name} has {own.metric} {own.value:.4f}{interval}.{compared}"
