"""Figures of scores: the best so far, learning curves, confirmation, and scores against cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from itertools import accumulate

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dasearch.report.terminal import counted, front_in_words, verdict
from dasearch.report.theme import (
    BEST,
    HEIGHT,
    NEUTRAL,
    ROLE_COLOURS,
    STATE_COLOURS,
    STATE_SYMBOLS,
    Theme,
    brief,
    counting,
    drawn,
    escaped,
    finished,
    nothing,
)
from dasearch.report.view import State, StudyView, Trial
from dasearch.search.confirmation import ALL_SERIAL, CANDIDATE, ConfirmedLayout

NO_SCORE = "No trial is complete yet."
BAND = "rgba(0, 114, 178, 0.18)"  # serial's colour: the band is all-serial's
ROW, FRAME = 34, 130  # pixels


def score_axis(view: StudyView) -> str:
    """Title of an axis of scores."""
    return f"validation {view.metric}"


def best_so_far(view: StudyView, theme: Theme) -> go.Figure:
    """Every score by trial number and the best until then, with the confirmed controls and all-serial's noise band."""
    trials = view.completed
    if not trials:
        return nothing(theme, NO_SCORE)
    scores = [trial.score or 0.0 for trial in trials]
    best = list(accumulate(scores, max))
    numbers = [trial.number for trial in trials]
    evaluated = go.Scatter(
        x=numbers,
        y=scores,
        mode="markers",
        name="evaluation",
        text=[brief(trial.layout) for trial in trials],
        hovertemplate="trial %{x}: %{text}<br>" + view.metric + " %{y:.4f}<extra></extra>",
        marker={"color": STATE_COLOURS[State.COMPLETE], "size": 7},
    )
    so_far = go.Scatter(
        x=numbers, y=best, mode="lines", name="best so far", line={"color": BEST, "width": 2.5, "shape": "hv"}
    )
    span = (numbers[0], numbers[-1])
    controls = [_control_line(standing, span) for standing in view.standings if standing.role != CANDIDATE]
    band, noise = _noise_band(view, span)
    says = f"The best of {counted(len(trials), 'evaluation')} has {view.metric} {best[-1]:.4f}. {noise}"
    x, y = counting("trial", numbers[-1]), {"title": {"text": score_axis(view)}}
    return drawn(theme, *band, *controls, evaluated, so_far, says=says, xaxis=x, yaxis=y)


def _control_line(standing: ConfirmedLayout, span: tuple[int, int]) -> go.Scatter:
    return go.Scatter(
        x=list(span),
        y=[standing.score.mean] * 2,
        mode="lines",
        name=escaped(standing.role),
        line={"color": ROLE_COLOURS.get(standing.role, NEUTRAL), "dash": "dash", "width": 1.5},
        hovertemplate=f"{escaped(standing.role)}, confirmed: %{{y:.4f}}<extra></extra>",
    )


def _noise_band(view: StudyView, span: tuple[int, int]) -> tuple[list[go.Scatter], str]:
    """Draw all-serial's mean ± sd over fresh seeds; returns it in words."""
    seeds = list(view.seed_scores(view.space.all_serial).values())
    if len(seeds) < 2:
        return [], "The noise is unknown: all-serial has not been trained with several seeds yet."
    mean, sd = statistics.fmean(seeds), statistics.stdev(seeds)
    band = go.Scatter(
        x=[span[0], span[1], span[1], span[0]],
        y=[mean + sd, mean + sd, mean - sd, mean - sd],
        fill="toself",
        fillcolor=BAND,
        mode="lines",
        line={"width": 0},
        name=f"{ALL_SERIAL} ± sd of {len(seeds)} seeds",
        hoverinfo="skip",
    )
    return [band], f"All-serial has {mean:.4f} with sd {sd:.4f} over {len(seeds)} fresh seeds."


def learning_curves(view: StudyView, theme: Theme) -> go.Figure:
    """Validation scores by epoch, one trace per state with gaps between trials; early ends are marked."""
    curved = [trial for trial in view.trials if trial.curve]
    if not curved:
        return nothing(theme, "No epoch has been recorded yet.")
    best = view.best
    traces = [_curves(state, [t for t in curved if t.state is state and t is not best]) for state in State]
    if best is not None and best.curve:
        traces.append(_curves(State.COMPLETE, [best], name=f"best (trial {best.number})", colour=BEST, width=3.0))
    shown = [trace for trace in traces if trace.x]
    early = sum(trial.state in (State.PRUNED, State.FAIL) for trial in curved)
    says = f"Learning curves of {counted(len(curved), 'trial')}, {early} of which failed or were pruned."
    x, y = counting("epoch", max(len(trial.curve or {}) for trial in curved)), {"title": {"text": score_axis(view)}}
    return drawn(theme, *shown, says=says, xaxis=x, yaxis=y)


def _curves(
    state: State, trials: Iterable[Trial], *, name: str | None = None, colour: str | None = None, width: float = 1.2
) -> go.Scatter:
    """The curves of trials of one state as one trace."""
    x: list[int | None] = []
    y: list[float | None] = []
    sizes: list[int] = []
    text: list[str] = []
    stopped = state is not State.COMPLETE
    for trial in trials:
        curve = trial.curve or {}
        x += [*(epoch + 1 for epoch in curve), None]
        y += [*curve.values(), None]
        alone = 8 if len(curve) == 1 else 4  # a single epoch draws no line
        sizes += [*([4] * (len(curve) - 1)), 11 if stopped else alone, 0]
        text += [f"trial {trial.number}: {brief(trial.layout)}"] * (len(curve) + 1)
    return go.Scatter(
        x=x,
        y=y,
        mode="lines+markers",
        name=name or state.word,
        text=text,
        hovertemplate="%{text}<br>epoch %{x}: %{y:.4f}<extra></extra>",
        line={"color": colour or STATE_COLOURS[state], "width": width},
        marker={"size": sizes, "symbol": STATE_SYMBOLS[state]},
        opacity=1.0 if stopped or name else 0.55,
    )


def confirmation(view: StudyView, theme: Theme) -> go.Figure:
    """Confirmed layouts with 95% t intervals over seeds, the best on top, and the single trainings."""
    standings = view.standings
    if not standings:
        return nothing(theme, "Nothing is confirmed with fresh seeds yet.")
    labels = [f"{escaped(standing.role)}<br>{brief(standing.layout)}" for standing in standings]
    halves = [standing.score.high - standing.score.mean for standing in standings]
    sure = any(map(math.isfinite, halves))
    means = go.Scatter(
        x=[standing.score.mean for standing in standings],
        y=labels,
        mode="markers",
        name="mean, 95% interval" if sure else "mean",
        error_x={"type": "data", "array": finite(halves), "thickness": 2, "color": NEUTRAL} if sure else None,
        marker={"size": 11, "color": [ROLE_COLOURS.get(standing.role, NEUTRAL) for standing in standings]},
        hovertemplate="%{y}: %{x:.4f}<extra></extra>",
    )
    single = [
        (score, label)
        for label, s in zip(labels, standings, strict=True)
        for score in view.seed_scores(s.layout).values()
    ]
    seeds = go.Scatter(
        x=[score for score, _ in single],
        y=[label for _, label in single],
        mode="markers",
        name="one training",
        marker={"symbol": "line-ns-open", "size": 10, "color": BEST},
        hovertemplate="%{x:.4f}<extra></extra>",
    )
    says = (
        verdict(standings, view.metric)
        if view.selection is None
        else front_in_words(standings, view.metric, view.selection)
    )
    rows = {"autorange": "reversed"}
    x = {"title": {"text": score_axis(view)}}
    height = FRAME + ROW * len(standings)
    return drawn(theme, means, seeds, says=says, height=height, xaxis=x, yaxis=rows)


def finite(halves: Iterable[float]) -> list[float]:
    """Half-width of an interval; None for a single seed."""
    return [0.0 if math.isinf(half) else half for half in halves]


def score_against_cost(view: StudyView, theme: Theme) -> go.Figure:
    """Scores by seconds of training and by trained parameters, one panel each."""
    trials = view.completed
    if not trials:
        return nothing(theme, NO_SCORE)
    every: dict[str, list[float | None]] = {
        "seconds of training": [trial.seconds for trial in trials],
        "trained parameters": [trial.parameters for trial in trials],
    }
    varied = {title: costs for title, costs in every.items() if len(set(costs)) > 1}  # equal for all trials: no axis
    panels = varied or every
    figure = make_subplots(rows=len(panels), cols=1, vertical_spacing=0.22)
    for row, (title, costs) in enumerate(panels.items(), start=1):
        trace = go.Scatter(
            x=costs,
            y=[trial.score for trial in trials],
            mode="markers",
            showlegend=False,
            text=[f"trial {trial.number}: {brief(trial.layout)}" for trial in trials],
            hovertemplate="%{text}<br>" + title + " %{x:,}<br>" + view.metric + " %{y:.4f}<extra></extra>",
            marker={"color": STATE_COLOURS[State.COMPLETE], "size": 8},
        )
        figure.add_trace(trace, row=row, col=1)
        figure.update_xaxes(title_text=title, row=row, col=1)
        figure.update_yaxes(title_text=score_axis(view), row=row, col=1)
    return finished(figure, theme, says=_costs(trials), height=len(panels) * (HEIGHT - 100))


def _costs(trials: Sequence[Trial]) -> str:
    seconds = [trial.seconds for trial in trials if trial.seconds is not None]
    sizes = {trial.parameters for trial in trials if trial.parameters is not None}
    parts = [counted(len(trials), "evaluation")]
    if seconds:
        parts.append(f"{min(seconds):.1f} to {max(seconds):.1f} s of training each, {sum(seconds):,.0f} s in all")
    if len(sizes) == 1:
        parts.append(f"all with {sizes.pop():,} trained parameters")
    elif sizes:
        parts.append(f"{min(sizes):,} to {max(sizes):,} trained parameters")
    return ", ".join(parts) + "."
