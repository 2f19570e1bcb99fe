"""Figures of chosen trials: each a pure function of a `StudyView`, trial numbers and a `Theme`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import plotly.graph_objects as go

from dasearch.errors import WrongUse
from dasearch.report.figures.layouts import layout_difference
from dasearch.report.figures.scores import score_axis
from dasearch.report.theme import BEST, NEUTRAL, SERIAL, Theme, brief, counting, drawn, nothing
from dasearch.report.view import StudyView, Trial

LINES = ((SERIAL, "solid", "circle"), (BEST, "solid", "square"))  # a colour and a symbol for each chosen trial


class TrialDrawing(NamedTuple):
    """A figure of one or two trials with its title; ``shows`` explains how to read it."""

    title: str
    shows: str
    draw: Callable[[StudyView, Sequence[int], Theme], go.Figure]


def trial_curves(view: StudyView, numbers: Sequence[int], theme: Theme) -> go.Figure:
    """Validation scores by epoch of one or two trials; a single one is shown with the best trial.

    Raises:
        WrongUse: if there is no such trial, or not one or two are given.
    """
    if not 1 <= len(numbers) <= len(LINES):
        raise WrongUse("give one or two trials, as in ?trial=3&trial=17")
    chosen = [view.trial(number) for number in numbers]
    curved = [(trial, line) for trial, line in zip(chosen, LINES, strict=False) if trial.curve]
    if not curved:
        return nothing(theme, "No epoch has been recorded yet.")
    traces = [_curve(trial, *line, f"trial {trial.number}") for trial, line in curved]
    best = view.best
    if len(chosen) == 1 and best is not None and best is not chosen[0] and best.curve:
        traces.insert(0, _curve(best, NEUTRAL, "dot", "circle-open", f"best (trial {best.number})"))
    says = " ".join(map(_curve_words, [trial for trial, _ in curved]))
    x, y = counting("epoch", max(len(trace.x) for trace in traces)), {"title": {"text": score_axis(view)}}
    return drawn(theme, *traces, says=says, height=320, xaxis=x, yaxis=y)


def _curve(trial: Trial, colour: str, dash: str, symbol: str, name: str) -> go.Scatter:
    curve = trial.curve or {}
    return go.Scatter(
        x=[epoch + 1 for epoch in curve],
        y=list(curve.values()),
        mode="lines+markers",
        name=name,
        text=[brief(trial.layout)] * len(curve),
        hovertemplate=name + ": %{text}<br>epoch %{x}: %{y:.4f}<extra></extra>",
        line={"color": colour, "width": 2, "dash": dash},
        marker={"symbol": symbol, "size": 7},
    )


def _curve_words(trial: Trial) -> str:
    values = list((trial.curve or {}).values())
    epochs = "one epoch" if len(values) == 1 else f"{len(values)} epochs"
    best = max(values)
    return f"Trial {trial.number}: {epochs}, the best {best:.4f} after epoch {values.index(best) + 1}."


def trial_difference(view: StudyView, numbers: Sequence[int], theme: Theme) -> go.Figure:
    """From the first trial's layout to the second's.

    Raises:
        WrongUse: if not two trials are given, there is no such trial, or one has no layout yet.
    """
    if len(numbers) != 2:
        raise WrongUse("give two trials, as in ?trial=3&trial=17")
    before, after = numbers
    return layout_difference(view, before, after, theme)


TRIAL_FIGURES: dict[str, TrialDrawing] = {
    "trial-curves": TrialDrawing(
        "Learning curve",
        "The validation score after each epoch; a single trial is shown with the best of the study, dotted.",
        trial_curves,
    ),
    "trial-difference": TrialDrawing(
        "What changes from one layout to the other",
        "Cells with an arrow differ; the others are the same in both.",
        trial_difference,
    ),
}
