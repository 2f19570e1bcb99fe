"""Figures of the search: proposals, calibration, and the timeline of trials."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import plotly.graph_objects as go

from dasearch.bayes import Proposal
from dasearch.layout import PLACEMENTS
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
    shortened,
)
from dasearch.report.view import State, StudyView, Trial
from dasearch.search.causes import attempts
from dasearch.search.events import CONFIRMATION, FINAL
from dasearch.search.store import PostSearchTraining
from dasearch.search_space import SearchSpace

WIDE = 1.96  # standard deviations of a normal 95% interval
ROW, FRAME = 20, 100  # pixels
DECIDED = 0.9  # probability
LANE = 44
LEGEND = 22  # two figures in a row on a phone
MILLISECONDS = 1000.0
LATER = {CONFIRMATION: "confirmation", FINAL: "final"}  # phases after the search, as the timeline calls them
NO_WORKER = "not known"  # worker of a training that runs, was interrupted, or ran in the study's own process
HATCHES = {CONFIRMATION: "/", FINAL: "x"}


def probabilities_over_trials(view: StudyView, theme: Theme) -> go.Figure:
    """A heat map of choices (except each site's first) x proposals: the probability where the ascent ended (`Proposal`)."""
    proposals = [proposal for proposal in view.proposals if proposal.probabilities is not None]
    if not proposals:
        return nothing(theme, "No trial has been proposed by the surrogate yet.")
    choices = [(name, k) for name in view.space.free for k in range(len(view.space.choices[name]) - 1)]
    chances = [proposal.probabilities or {} for proposal in proposals]
    trace = go.Heatmap(
        x=[proposal.trial_number for proposal in proposals],
        y=[_row_label(view.space, name, k) for name, k in choices],
        z=[[own[name][k] if name in own else None for own in chances] for name, k in choices],
        colorscale=CHOICE_SCALE,
        zmin=0,
        zmax=1,
        showscale=False,
        hovertemplate="trial %{x}, layer %{y}: %{z:.2f}<extra></extra>",
    )
    says = f"{counted(len(proposals), 'proposal')} of the surrogate; in the last, {_decided(view, proposals[-1])}."
    x, y = counting("trial", proposals[-1].trial_number), {"autorange": "reversed"}
    return drawn(theme, trace, says=says, height=FRAME + ROW * len(choices), xaxis=x, yaxis=y)


def _decided(view: StudyView, proposal: Proposal) -> str:
    """A sentence on how many sites are nearly certain, and how many proposed choices are not the likeliest."""
    chances = [odds(view.space, proposal, name) for name in proposal.probabilities or {} if name in view.space.choices]
    decided = sum(max(own.values()) > DECIDED for own in chances)
    against = len(against_odds(view.space, proposal))
    words = f"trial {proposal.trial_number}, {decided} of {len(chances)} sites are decided (a choice above {DECIDED})"
    return words + (f", and {counted(against, 'choice')} differ from the likeliest ones" if against else "")


def odds(space: SearchSpace, proposal: Proposal, name: str) -> dict[str, float]:
    """The probability of each choice of a site, the first included."""
    others = (proposal.probabilities or {})[name]
    first, *rest = space.choices[name]
    return {first.name: 1 - sum(others), **{choice.name: own for choice, own in zip(rest, others, strict=True)}}


def against_odds(space: SearchSpace, proposal: Proposal) -> list[str]:
    """Number of sites whose proposed choice is not the likeliest."""
    sites = []
    for name in proposal.probabilities or {}:
        if name in space.choices and name in proposal.layout:
            chances = odds(space, proposal, name)
            if chances[str(proposal.layout[name])] < max(chances.values()):
                sites.append(name)
    return sites


def _row_label(space: SearchSpace, name: str, k: int) -> str:
    """``3 context``, with the choice where a site has more than two."""
    choices = space.choices[name]
    return short(name) if len(choices) == len(PLACEMENTS) else f"{short(name)} {choices[k + 1].name}"


class PredictedOutcome(NamedTuple):
    """A trial's predicted mean and sd, noise excluded, and its outcome."""

    trial: Trial
    mean: float
    sd: float
    outcome: float


def foreseen(view: StudyView) -> list[PredictedOutcome]:
    """Every prediction of a trial with an outcome; both are the surrogate's signal."""
    trials = {trial.number: trial for trial in view.completed}
    predictions = []
    for proposal in view.proposals:
        trial = trials.get(proposal.trial_number)
        if trial is None or trial.surrogate_target is None or proposal.mean is None or proposal.sd is None:
            continue
        predictions.append(PredictedOutcome(trial, proposal.mean, proposal.sd, trial.surrogate_target))
    return predictions


def calibration(view: StudyView, theme: Theme) -> go.Figure:
    """Predicted mean ± 95% (posterior sd and the noise of one training) against the outcome, with the coverage in words."""
    predictions = foreseen(view)
    if not predictions:
        return nothing(theme, "No predicted trial is complete yet.")
    noise = 0.0 if view.learned is None else view.learned.noise_sd
    halves = [WIDE * float((one.sd**2 + noise**2) ** 0.5) for one in predictions]
    inside = [abs(one.outcome - one.mean) <= half for one, half in zip(predictions, halves, strict=True)]
    points = go.Scatter(
        x=[one.mean for one in predictions],
        y=[one.outcome for one in predictions],
        error_x={"type": "data", "array": halves, "thickness": 1, "width": 0, "color": NEUTRAL},
        mode="markers",
        name="trial",
        text=[f"trial {one.trial.number}: {brief(one.trial.layout)}" for one in predictions],
        hovertemplate="%{text}<br>predicted %{x:.4f}, outcome %{y:.4f}<extra></extra>",
        marker={
            "size": 9,
            "color": [STATE_COLOURS[State.COMPLETE] if within else BEST for within in inside],
            "symbol": ["circle" if within else "x" for within in inside],
        },
        showlegend=False,
    )
    ends = [min(one.outcome for one in predictions), max(one.outcome for one in predictions)]
    diagonal = go.Scatter(x=ends, y=ends, mode="lines", name="as predicted", line={"color": NEUTRAL, "dash": "dot"})
    x = {"title": {"text": f"predicted {view.metric} (mean of the curve)"}}
    y = {"title": {"text": "came out"}}
    return drawn(theme, diagonal, points, says=coverage(sum(inside), predictions, noise), xaxis=x, yaxis=y)


def coverage(inside: int, found: Sequence[PredictedOutcome], noise: float) -> str:
    """A sentence on the coverage of the 95% intervals and the bias of the predictions."""
    error = sum(one.mean - one.outcome for one in found) / len(found)
    high = "too high" if error > 0 else "too low"
    return (
        f"{inside} of {len(found)} outcomes ({inside / len(found):.0%}; nominal 95%) are within the predicted 95% interval "
        f"of posterior sd and noise (sd {noise:.5f}); predictions were {abs(error):.5f} {high} on average."
    )


class Bar(NamedTuple):
    """A training from start to end.

    Attributes:
        worker: of its last attempt; empty where unknown.
        hatch: a pattern of plotly.
        mark: text inside the bar.
    """

    series: str
    colour: str
    start: datetime
    end: datetime
    story: str
    worker: str = ""
    hatch: str = ""
    mark: str = ""


def timeline(view: StudyView, theme: Theme) -> go.Figure:
    """A timeline with one bar per training and one trace per state.

    Concurrent trainings are in different lanes, by worker if there are several.
    """
    started = [trial for trial in view.trials if trial.started]
    bars = [*_trial_bars(view), *_later_bars(view)]
    if not bars:
        return nothing(theme, "No trial has started yet.")
    lanes, labels = lanes_of(bars)
    series = dict.fromkeys(bar.series for bar in bars)
    traces = [_bars([(b, lane) for b, lane in zip(bars, lanes, strict=True) if b.series == name]) for name in series]
    count = {state: sum(_outcome(trial) is state for trial in started) for state in State}
    retries = sum(trial.retry_of is not None for trial in started)
    shares = ", ".join(f"{number} {state.word}" for state, number in count.items() if number)
    again = f"; {retries} of them repeat a failed one" if retries else ""
    says = f"{counted(len(started), 'trial')}: {shares}{again}.{_later_words(view)}{_workers_words(labels)}"
    lanes_axis = {**_lanes_axis(labels), "autorange": "reversed"}
    height = FRAME + LANE * (max(lanes) + 1) + LEGEND * (len(series) // 2)
    x = {"type": "date"}
    return drawn(theme, *traces, says=says, barmode="overlay", height=height, xaxis=x, yaxis=lanes_axis)


def _trial_bars(view: StudyView) -> list[Bar]:
    """Bars of trials, by state."""
    bars = []
    for trial in sorted(view.trials, key=lambda trial: list(State).index(_outcome(trial))):
        if trial.started:
            end, state = trial.ended or view.read, _outcome(trial)
            story, worker = _story(trial, end - trial.started, view.metric), _last(trial.workers)
            mark = _mark(trial.workers, again=trial.retry_of is not None)
            bars.append(Bar(state.word, STATE_COLOURS[state], trial.started, end, story, worker, mark=mark))
    return bars


def _outcome(trial: Trial) -> State:
    """The state's name; a failed training, which is pruned in Optuna's terms, is named failed."""
    return State.FAIL if trial.failed else trial.state


def _last(workers: Sequence[str]) -> str:
    return workers[-1] if workers else ""


def _mark(workers: Sequence[str], *, again: bool = False) -> str:
    return "↻" if again or len(workers) > 1 else ""


def _later_bars(view: StudyView) -> list[Bar]:
    """Bars of the confirmation and the final phase."""
    bars = []
    for training in view.later_trainings:
        state, end = _later_state(training), training.ended or view.read
        series = LATER[training.phase] + ("" if state is State.COMPLETE else f", {state.word}")
        took = f"{state.word}, {(end - training.began).total_seconds():.1f} s"
        lines = [f"{escaped(training.label)}: {brief(training.layout)}", took, *_causes(training)]
        worker, mark, hatch = _last(training.workers), _mark(training.workers), HATCHES[training.phase]
        bars.append(Bar(series, STATE_COLOURS[state], training.began, end, "<br>".join(lines), worker, hatch, mark))
    return bars


def _later_state(training: PostSearchTraining) -> State:
    if training.ended is None:
        return State.RUNNING
    return State.COMPLETE if training.reason is None else State.FAIL


def _causes(training: Trial | PostSearchTraining) -> list[str]:
    """The workers of a training and the cause of its failure, one line each."""
    return [escaped(line) for line in (attempts(training.workers), training.reason) if line]


def _later_words(view: StudyView) -> str:
    numbers = {phase: sum(t.phase == phase for t in view.later_trainings) for phase in LATER}
    parts = [counted(number, f"{LATER[phase]} training") for phase, number in numbers.items() if number]
    return f" After them {' and '.join(parts)}." if parts else ""


def _bars(placed: Sequence[tuple[Bar, int]]) -> go.Bar:
    """A trace of bars of one series, each with its lane, counted from 0."""
    first, _ = placed[0]
    return go.Bar(
        base=[bar.start.isoformat() for bar, _ in placed],
        x=[(bar.end - bar.start).total_seconds() * MILLISECONDS for bar, _ in placed],
        y=[lane + 1 for _, lane in placed],
        orientation="h",
        name=first.series,
        text=[bar.mark for bar, _ in placed],
        textposition="inside",
        hovertext=[bar.story for bar, _ in placed],
        hoverinfo="text",
        width=0.7,
        marker={
            "color": first.colour,
            "line": {"color": NEUTRAL, "width": 0.5},
            "pattern": {"shape": first.hatch, "size": 6, "fillmode": "overlay", "fgcolor": "#FFFFFF", "fgopacity": 0.7},
        },
    )


def _story(trial: Trial, took: timedelta, metric: str) -> str:
    """The outcome of a trial, one line per fact."""
    lines = [f"trial {trial.number}: {brief(trial.layout)}", f"{trial.state.word}, {took.total_seconds():.1f} s"]
    if trial.score is not None:
        lines.append(f"{metric} {trial.score:.4f}")
    if trial.retry_of is not None:
        lines.append(f"repeats trial {trial.retry_of}")
    return "<br>".join([*lines, *_causes(trial)])


def lanes_of(bars: Sequence[Bar]) -> tuple[list[int], list[str]]:
    """A lane for each bar, counted from 0, and a label for each lane.

    Lanes of one worker are adjacent, the first with its name, if there are several workers; else lanes have no labels.
    """
    first = sorted(bars, key=lambda bar: (not bar.worker, bar.start))  # bars without a known worker come last
    workers = list(dict.fromkeys(bar.worker for bar in first))
    if sum(map(bool, workers)) < 2:
        lanes = free_lanes([(bar.start, bar.end) for bar in bars])
        return lanes, [""] * (max(lanes) + 1)
    lanes, labels = [0] * len(bars), list[str]()
    for worker in workers:
        own = [index for index, bar in enumerate(bars) if bar.worker == worker]
        within = free_lanes([(bars[index].start, bars[index].end) for index in own])
        for index, lane in zip(own, within, strict=True):
            lanes[index] = len(labels) + lane
        labels += [escaped(shortened(worker)) or NO_WORKER, *[""] * max(within)]
    return lanes, labels


def _lanes_axis(labels: Sequence[str]) -> dict[str, Any]:
    """An axis of lanes, counted from 1."""
    if not any(labels):
        return counting("lane", len(labels) - 1)
    named = [lane for lane, label in enumerate(labels) if label]
    return {
        "title": {"text": "worker"},
        "tickvals": [lane + 1 for lane in named],
        "ticktext": [labels[lane] for lane in named],
    }


def _workers_words(labels: Sequence[str]) -> str:
    workers = sum(bool(label) and label != NO_WORKER for label in labels)
    return f" They ran in {counted(workers, 'worker')}." if workers else ""


def free_lanes(spans: Sequence[tuple[datetime, datetime]]) -> list[int]:
    """The first lane, counted from 0, that is free at each span's start."""
    until: list[datetime] = []
    lanes = [0] * len(spans)
    for index in sorted(range(len(spans)), key=lambda i: spans[i]):
        start, end = spans[index]
        lane = next((lane for lane, busy in enumerate(until) if busy <= start), len(until))
        until[lane : lane + 1] = [end]
        lanes[index] = lane
    return lanes
