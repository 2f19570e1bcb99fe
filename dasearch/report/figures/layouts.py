"""Layouts as maps: the best one, the difference of two, and all evaluated ones by their distances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from dasearch.layout import Choice, Layout
from dasearch.report.terminal import symmetric
from dasearch.report.theme import (
    BEST,
    NEUTRAL,
    SCORE_SCALE,
    UNDECIDED,
    Theme,
    brief,
    choice_colours,
    drawn,
    escaped,
    nothing,
)
from dasearch.report.view import StudyView, TrialDifference
from dasearch.search_space import SearchSpace
from dasearch.short_layout import short_text
from dasearch.training.significance import FloatArray

TOP = 5  # layouts whose agreement is shown
ROW, FRAME = 30, 70  # pixels
PALE = 0.25  # strength of a cell that does not change
FULL = 0.999  # fraction of a choice's part of the colour scale; the rest separates it from the next
FEWEST_ON_MAP = 3


def best_layout(view: StudyView, theme: Theme) -> go.Figure:
    """The winner as a layers x sites map; the colour's strength is the agreement of the top layouts."""
    winner, top = view.winner, view.top(TOP)
    if winner is None:
        return nothing(theme, "No layout has been evaluated yet.")
    cells = []
    for layer, group in enumerate(winner.groups):
        agreeing = [sum(layout.groups[layer][site] == choice for layout in top) for site, choice in enumerate(group)]
        named = zip(group, agreeing, strict=True)
        cells.append([_Cell(choice, n / len(top), f"{choice.letter} {n}/{len(top)}") for choice, n in named])
    whole = sum(cell.strength == 1 for row in cells for cell in row)
    agreed = f"all of the top {len(top)} layouts agree on {whole} of its {len(winner.flat)} sites"
    says = f"{short_text(winner)}, the {view.best_word}: {agreed}."
    return _map(view.space, cells, theme, says=says)


def layout_difference(view: StudyView, before: int, after: int, theme: Theme) -> go.Figure:
    """The second trial's layout, with choices that equal the first's in pale colours.

    Raises:
        WrongUse: if there is no such trial, or one has no layout yet.
    """
    difference = view.difference(before, after)
    assert difference.after.layout is not None
    assert difference.before.layout is not None
    cells = []
    for group, before_group in zip(difference.after.layout.groups, difference.before.layout.groups, strict=True):
        pairs = zip(group, before_group, strict=True)
        cells.append(
            [
                _Cell(choice, PALE, choice.letter)
                if choice == other
                else _Cell(choice, 1.0, f"{other.letter} → {choice.letter}")
                for choice, other in pairs
            ]
        )
    return _map(view.space, cells, theme, says=difference_in_words(difference))


def difference_in_words(found: TrialDifference) -> str:
    """A sentence on the number of different sites and the difference in score."""
    sites = "one site differs" if len(found.sites) == 1 else f"{len(found.sites) or 'no'} sites differ"
    parts = [f"From trial {found.before.number} to trial {found.after.number}: {sites}"]
    if found.score is not None:
        parts.append(f"{found.metric} {found.score:+.4f} in one training each")
    if found.confirmed is not None:
        parts.append(f"{symmetric(found.confirmed, '+')} over fresh seeds, paired (95% t interval)")
    elif found.score is not None:
        parts.append("no interval, because not both were confirmed with fresh seeds")
    return "; ".join(parts) + "."


def best_against_serial(view: StudyView, theme: Theme) -> go.Figure:
    """All-serial against the best other layout, by confirmation where there is one."""
    serial = view.trial_of(view.space.all_serial)
    others = [trial for trial in view.completed if serial is not None and trial.layout != serial.layout]
    if serial is None or not others:
        return nothing(theme, "All-serial and another layout have to be evaluated first.")
    confirmed = [trial for standing in view.standings for trial in others if trial.layout == standing.layout]
    best = next(iter(confirmed), None) or max(others, key=lambda trial: trial.score or 0.0)
    return layout_difference(view, serial.number, best.number, theme)


class _Cell(NamedTuple):
    """A site of a map: its colour's strength is in (0, 1]."""

    choice: Choice
    strength: float
    text: str


def _map(space: SearchSpace, cells: list[list[_Cell]], theme: Theme, *, says: str) -> go.Figure:
    """A heat map: z is the index of the choice in the space's alphabet plus the strength of its colour."""
    alphabet = space.file.alphabet
    n, colours = len(alphabet), choice_colours(alphabet)
    z = [[alphabet.index(cell.choice) + FULL * cell.strength for cell in row] for row in cells]
    scale = [
        stop
        for place, choice in enumerate(alphabet)
        for stop in ([place / n, UNDECIDED], [(place + FULL) / n, colours[choice.name]])
    ]
    scale.append([1.0, colours[alphabet[-1].name]])
    trace = go.Heatmap(
        x=[escaped(site) for site in space.sites],
        y=[f"layer {layer + 1}" for layer in space.replaced],
        z=z,
        text=[[cell.text for cell in row] for row in cells],
        texttemplate="%{text}",
        customdata=[[cell.choice.name for cell in row] for row in cells],
        hovertemplate="%{y}, %{x}: %{customdata} (%{text})<extra></extra>",
        colorscale=scale,
        zmin=0,
        zmax=n,
        xgap=2,
        ygap=2,
        showscale=False,
    )
    rows = {"autorange": "reversed", "showgrid": False}
    return drawn(theme, trace, says=says, height=FRAME + ROW * len(z), yaxis=rows, xaxis={"showgrid": False})


def hamming_map(view: StudyView, theme: Theme) -> go.Figure:
    """Evaluated layouts in the plane, by classical scaling of their Hamming distances, coloured by score."""
    trials = view.completed
    if len(trials) < FEWEST_ON_MAP:
        return nothing(theme, f"A map needs {FEWEST_ON_MAP} evaluated layouts; {len(trials)} so far.")
    layouts = [trial.layout for trial in trials if trial.layout is not None]
    points, share = classical_scaling(hamming_distances(layouts))
    winner = view.winner
    hover = [f"trial {t.number}: {brief(t.layout)}<br>{view.metric} {t.score:.4f}" for t in trials]
    scores = {"title": {"text": view.metric}, "thickness": 10}
    evaluated = go.Scatter(
        x=points[:, 0],
        y=points[:, 1],
        mode="markers",
        name="evaluated",
        text=hover,
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
        marker={
            "size": 10,
            "color": [trial.score for trial in trials],
            "colorscale": SCORE_SCALE,
            "colorbar": scores,
            "line": {"color": NEUTRAL, "width": 1},
        },
    )
    marked = _marked(layouts, points, {view.best_word: winner, "all-serial": view.space.all_serial})
    says = f"{len(trials)} evaluated layouts; the plane keeps {share:.0%} of the spread of their distances."
    bare = {"showticklabels": False, "zeroline": False}
    even = {**bare, "scaleanchor": "x"}
    return drawn(theme, evaluated, *marked, says=says, xaxis=bare, yaxis=even, height=440)


def _marked(layouts: list[Layout], points: FloatArray, named: dict[str, Layout | None]) -> list[go.Scatter]:
    """Rings around named layouts."""
    symbols = ("star-open", "square-open")
    return [
        go.Scatter(
            x=points[[layouts.index(layout)], 0],
            y=points[[layouts.index(layout)], 1],
            mode="markers",
            name=name,
            hoverinfo="skip",
            marker={"symbol": symbol, "size": 19, "color": BEST, "line": {"width": 2}},
        )
        for symbol, (name, layout) in zip(symbols, named.items(), strict=True)
        if layout in layouts
    ]


def hamming_distances(layouts: Sequence[Layout]) -> FloatArray:
    """Hamming distances of layouts, ``(n, n)``."""
    places = {choice: place for place, choice in enumerate(dict.fromkeys(c for layout in layouts for c in layout.flat))}
    codes = np.array([[places[choice] for choice in layout.flat] for layout in layouts])
    return np.asarray((codes[:, None] != codes).sum(-1), dtype=np.float64)


def classical_scaling(distances: FloatArray) -> tuple[FloatArray, float]:
    """Classical scaling to the plane, and the fraction of the positive spread that it preserves (Torgerson 1952).

    Shapes: ``(n, n)``, n at least 2 -> ``(n, 2)``. On each axis the coordinate farthest from zero is positive.
    """
    squared = distances**2
    centred = -0.5 * (squared - squared.mean(0) - squared.mean(1)[:, None] + squared.mean())
    values, vectors = np.linalg.eigh(centred)
    values = values.clip(min=0)
    points = (vectors * np.sqrt(values))[:, :-3:-1]
    farthest = points[np.abs(points).argmax(0), [0, 1]]
    spread = float(values.sum())
    return points * np.where(farthest < 0, -1.0, 1.0), float(values[-2:].sum()) / spread if spread > 0 else 1.0
