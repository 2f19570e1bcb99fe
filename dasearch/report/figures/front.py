"""The front of a study with a cost: scores of evaluated and confirmed layouts against their costs."""

from __future__ import annotations

import plotly.graph_objects as go

from dasearch.report.figures.scores import finite, score_axis
from dasearch.report.terminal import counted, front_in_words
from dasearch.report.theme import BEST, NEUTRAL, ROLE_COLOURS, STATE_COLOURS, Theme, brief, drawn, escaped, nothing
from dasearch.report.view import State, StudyView
from dasearch.search.confirmation import ConfirmedLayout
from dasearch.search.front import Selection


def front(view: StudyView, theme: Theme) -> go.Figure:
    """Single trainings, confirmed layouts with 95% t intervals, the staircase of their front, and the picked one as a star."""
    selection = view.selection
    if view.settings.search.cost is None:
        return nothing(theme, "This study has only a metric as its objective; search.objective may add a cost.")
    if selection is None or not view.completed:
        return nothing(theme, "No trial is complete yet.")
    traces, standings = [_evaluations(view, selection)], list(view.standings)
    says = f"{counted(len(view.completed), 'evaluation')}, none of them confirmed with fresh seeds yet."
    if standings:
        picked = selection(standings)
        rest = [standing for standing in standings if standing is not picked]
        traces += [
            _staircase(selection.front(standings), selection),
            _confirmed(rest, selection, "confirmed, 95% interval"),
            _confirmed([picked], selection, f"picked: {selection.pick}", star=True),
        ]
        says = front_in_words(standings, view.metric, selection)
    x, y = {"title": {"text": selection.cost.words}, "tickformat": ","}, {"title": {"text": score_axis(view)}}
    return drawn(theme, *traces, says=says, xaxis=x, yaxis=y)


def _evaluations(view: StudyView, selection: Selection) -> go.Scatter:
    layouts = [trial.layout for trial in view.completed if trial.layout is not None]
    return go.Scatter(
        x=[selection.costs.of(layout) for layout in layouts],
        y=[trial.score for trial in view.completed],
        mode="markers",
        name="one training",
        text=[f"trial {trial.number}: {brief(trial.layout)}" for trial in view.completed],
        hovertemplate="%{text}<br>%{x:,}: %{y:.4f}<extra></extra>",
        marker={"color": STATE_COLOURS[State.COMPLETE], "size": 6, "symbol": "circle-open"},
    )


def _staircase(found: list[ConfirmedLayout], selection: Selection) -> go.Scatter:
    return go.Scatter(
        x=[selection.costs.of(standing.layout) for standing in found],
        y=[standing.score.mean for standing in found],
        mode="lines",
        name="confirmed front",
        line={"color": NEUTRAL, "width": 2, "shape": "hv", "dash": "dot"},
        hoverinfo="skip",
    )


def _confirmed(found: list[ConfirmedLayout], selection: Selection, name: str, *, star: bool = False) -> go.Scatter:
    halves = finite(standing.score.high - standing.score.mean for standing in found)
    return go.Scatter(
        x=[selection.costs.of(standing.layout) for standing in found],
        y=[standing.score.mean for standing in found],
        mode="markers",
        name=name,
        text=[f"{escaped(standing.role)}: {brief(standing.layout)}" for standing in found],
        error_y={"type": "data", "array": halves, "thickness": 2, "color": NEUTRAL},
        hovertemplate="%{text}<br>%{x:,}: %{y:.4f}<extra></extra>",
        marker={
            "size": 17 if star else 11,
            "symbol": "star" if star else "diamond",
            "color": BEST if star else [ROLE_COLOURS.get(standing.role, NEUTRAL) for standing in found],
        },
    )
