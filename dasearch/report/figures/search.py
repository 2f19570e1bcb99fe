"""The search at work: what it proposed, how well it predicted, and when each trial ran."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import plotly.graph_objects as go

from dasearch.report.figures.structure import short
from dasearch.report.terminal import counted
from dasearch.report.theme import (
    BEST,
    CHOICE_SCALE,
    NEUTRAL,
    STATE_COLOURS,
    Theme,
    brief,
    counting,
    drawn,
    escaped,
    nothing,
)
from dasearch.report.view import State, StudyView, Trial
from dasearch.search.confirmation import OBJECTIVE

WIDE = 1.96  # standard deviations of a normal 95% interval
ROW, FRAME = 20, 100  # pixels
LANE = 44
MILLISECONDS = 1000.0


def theta_over_trials(view: StudyView, theme: Theme) -> go.Figure:
    """A heat map, sites x proposals: the probability of parallel that maximised the acquisition function."""
    proposals = [proposal for proposal in view.proposals if proposal.theta is not None]
    if not proposals:
        return nothing(theme, "No trial has been proposed by the surrogate yet.")
    names = view.space.free
    thetas = [proposal.theta or {} for proposal in proposals]
    trace = go.Heatmap(
        x=[proposal.trial_number for proposal in proposals],
        y=[short(name) for name in names],
        z=[[theta[name][0] if name in theta else None for theta in thetas] for name in names],
        colorscale=CHOICE_SCALE,
        zmin=0,
        zmax=1,
        showscale=False,
        hovertemplate="trial %{x}, layer %{y}: %{z:.2f}<extra></extra>",
    )
    last = thetas[-1]
    decided = sum(not 0.1 < values[0] < 0.9 for values in last.values())
    says = (
        f"{counted(len(proposals), 'proposal')} of the surrogate; in the last, trial {proposals[-1].trial_number}, "
        f"{decided} of {len(last)} sites are decided (below .1 or above .9)."
    )
    x, y = counting("trial", proposals[-1].trial_number), {"autorange": "reversed"}
    return drawn(theme, trace, says=says, height=FRAME + ROW * len(names), xaxis=x, yaxis=y)


class Foreseen(NamedTuple):
    """A trial's predicted mean and sd, without its own noise, and its outcome."""

    trial: Trial
    mean: float
    sd: float
    outcome: float


def foreseen(view: StudyView) -> list[Foreseen]:
    """Every prediction made before its trial that has an outcome by now; both in what the surrogate learns."""
    trials = {trial.number: trial for trial in view.completed}
    found = []
    for proposal in view.proposals:
        trial = trials.get(proposal.trial_number)
        if trial is None or trial.signal is None or proposal.mean is None or proposal.sd is None:
            continue
        found.append(Foreseen(trial, proposal.mean, proposal.sd, trial.signal))
    return found


def calibration(view: StudyView, theme: Theme) -> go.Figure:
    """Predicted mean ± 95% (posterior sd and the noise of one training) against the outcome, with the coverage in words."""
    found = foreseen(view)
    if not found:
        return nothing(theme, "No predicted trial is complete yet.")
    noise = 0.0 if view.learned is None else view.learned.noise_sd
    halves = [WIDE * float((one.sd**2 + noise**2) ** 0.5) for one in found]
    inside = [abs(one.outcome - one.mean) <= half for one, half in zip(found, halves, strict=True)]
    points = go.Scatter(
        x=[one.mean for one in found],
        y=[one.outcome for one in found],
        error_x={"type": "data", "array": halves, "thickness": 1, "width": 0, "color": NEUTRAL},
        mode="markers",
        name="trial",
        text=[f"trial {one.trial.number}: {brief(one.trial.layout)}" for one in found],
        hovertemplate="%{text}<br>predicted %{x:.4f}, came out %{y:.4f}<extra></extra>",
        marker={
            "size": 9,
            "color": [STATE_COLOURS[State.COMPLETE] if within else BEST for within in inside],
            "symbol": ["circle" if within else "x" for within in inside],
        },
        showlegend=False,
    )
    ends = [min(one.outcome for one in found), max(one.outcome for one in found)]
    diagonal = go.Scatter(x=ends, y=ends, mode="lines", name="as predicted", line={"color": NEUTRAL, "dash": "dot"})
    x = {"title": {"text": f"predicted {OBJECTIVE} (mean of the curve)"}}
    y = {"title": {"text": "came out"}}
    return drawn(theme, diagonal, points, says=coverage(sum(inside), found, noise), xaxis=x, yaxis=y)


def coverage(inside: int, found: Sequence[Foreseen], noise: float) -> str:
    """How many outcomes lie within their 95% interval, and by how much predictions were too high."""
    error = sum(one.mean - one.outcome for one in found) / len(found)
    high = "too high" if error > 0 else "too low"
    return (
        f"{inside} of {len(found)} outcomes ({inside / len(found):.0%}; 95% is right) lie within the predicted 95% interval "
        f"of posterior sd and noise (sd {noise:.5f}); predictions were {abs(error):.5f} {high} on average."
    )


def timeline(view: StudyView, theme: Theme) -> go.Figure:
    """A bar a trial from start to end, a trace a state; what ran at one time lies in different lanes."""
    spans = [(trial.started, trial.ended or view.read, trial) for trial in view.trials if trial.started]
    if not spans:
        return nothing(theme, "No trial has started yet.")
    lanes = free_lanes([(start, end) for start, end, _ in spans])
    traces = []
    for state in State:
        chosen = [(*span, lane) for span, lane in zip(spans, lanes, strict=True) if span[2].state is state]
        if chosen:
            traces.append(_bars(state, chosen))
    count = {state: sum(span[2].state is state for span in spans) for state in State}
    retries = sum(span[2].retry_of is not None for span in spans)
    shares = ", ".join(f"{number} {state.word}" for state, number in count.items() if number)
    says = f"{counted(len(spans), 'trial')}: {shares}; {retries} of them repeat a failed one."
    lanes_axis = {**counting("lane", max(lanes)), "autorange": "reversed"}
    height = FRAME + LANE * (max(lanes) + 1)
    x = {"type": "date"}
    return drawn(theme, *traces, says=says, barmode="overlay", height=height, xaxis=x, yaxis=lanes_axis)


def _bars(state: State, spans: Sequence[tuple[datetime, datetime, Trial, int]]) -> go.Bar:
    return go.Bar(
        base=[start.isoformat() for start, _, _, _ in spans],
        x=[(end - start).total_seconds() * MILLISECONDS for start, end, _, _ in spans],
        y=[lane + 1 for _, _, _, lane in spans],
        orientation="h",
        name=state.word,
        text=["↻" if trial.retry_of is not None else "" for _, _, trial, _ in spans],
        textposition="inside",
        hovertext=[_story(trial, end - start) for start, end, trial, _ in spans],
        hoverinfo="text",
        width=0.7,
        marker={"color": STATE_COLOURS[state], "line": {"color": NEUTRAL, "width": 0.5}},
    )


def _story(trial: Trial, took: timedelta) -> str:
    """What happened to a trial, in lines."""
    lines = [f"trial {trial.number}: {brief(trial.layout)}", f"{trial.state.word}, {took.total_seconds():.1f} s"]
    if trial.score is not None:
        lines.append(f"{OBJECTIVE} {trial.score:.4f}")
    if trial.retry_of is not None:
        lines.append(f"repeats trial {trial.retry_of}")
    if trial.reason is not None:
        lines.append(escaped(trial.reason))
    return "<br>".join(lines)


def free_lanes(spans: Sequence[tuple[datetime, datetime]]) -> list[int]:
    """The first lane, counted from 0, that is free at each span's start."""
    until: list[datetime] = []
    found = [0] * len(spans)
    for index in sorted(range(len(spans)), key=lambda i: spans[i]):
        start, end = spans[index]
        lane = next((lane for lane, busy in enumerate(until) if busy <= start), len(until))
        until[lane : lane + 1] = [end]
        found[index] = lane
    return found
