"""Layouts as maps: the best one, the difference of two, and all evaluated ones by their distances."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from dasearch.layout import CHOICES, PARALLEL, SERIAL, Layout
from dasearch.report.terminal import symmetric
from dasearch.report.theme import BEST, CHOICE_SCALE, NEUTRAL, SCORE_SCALE, Theme, brief, drawn, escaped, nothing
from dasearch.report.view import StudyView, TrialDifference
from dasearch.search.confirmation import OBJECTIVE
from dasearch.search_space import SearchSpace
from dasearch.training.significance import FloatArray

TOP = 5  # layouts whose agreement is shown
ROW, FRAME = 30, 70  # pixels
PALE = 0.25  # strength of a cell that does not change
FEWEST_ON_MAP = 3


def best_layout(view: StudyView, theme: Theme) -> go.Figure:
    """The winner as a layers x sites map; z is -1 (serial) or 1 (parallel) times the share of the top layouts that agree."""
    winner, top = view.winner, view.top(TOP)
    if winner is None:
        return nothing(theme, "No layout has been evaluated yet.")
    bits = np.array(winner.bits)
    agreeing = np.array([np.array(layout.bits) == bits for layout in top]).sum(0)
    letters = np.where(bits == 1, PARALLEL, SERIAL)
    text = [
        [f"{letter} {n}/{len(top)}" for letter, n in zip(*row, strict=True)]
        for row in zip(letters, agreeing, strict=True)
    ]
    z = (2 * bits - 1) * agreeing / len(top)
    whole = int((agreeing == len(top)).sum())
    says = f"{winner}: all of the top {len(top)} layouts agree on {whole} of its {bits.size} sites."
    return _map(view.space, z.tolist(), text, theme, says=says)


def layout_difference(view: StudyView, before: int, after: int, theme: Theme) -> go.Figure:
    """From one trial's layout to another's; z is ±1 (the second's choice) where they differ and pale where they do not.

    Raises:
        WrongUse: if there is no such trial, or one has no layout yet.
    """
    found = view.difference(before, after)
    assert found.after.layout is not None
    changed = {(d.layer, d.site): f"{_letter(d.before)} → {_letter(d.after)}" for d in found.sites}
    z, text = [], []
    for layer, group in enumerate(found.after.layout.bits):
        z.append([(2 * bit - 1) * (1.0 if (layer, site) in changed else PALE) for site, bit in enumerate(group)])
        text.append([changed.get((layer, site), (SERIAL, PARALLEL)[bit]) for site, bit in enumerate(group)])
    return _map(view.space, z, text, theme, says=difference_in_words(found))


def difference_in_words(found: TrialDifference) -> str:
    """How many sites differ, and what that is worth."""
    sites = "one site differs" if len(found.sites) == 1 else f"{len(found.sites) or 'no'} sites differ"
    parts = [f"From trial {found.before.number} to trial {found.after.number}: {sites}"]
    if found.score is not None:
        parts.append(f"{OBJECTIVE} {found.score:+.4f} in one training each")
    if found.confirmed is not None:
        parts.append(f"{symmetric(found.confirmed, '+')} over fresh seeds, paired (95% t interval)")
    elif found.score is not None:
        parts.append("no interval, for not both were confirmed with fresh seeds")
    return "; ".join(parts) + "."


def best_against_serial(view: StudyView, theme: Theme) -> go.Figure:
    """From all-serial to the best other layout, by confirmation where there is one."""
    serial = view.trial_of(view.space.all_serial)
    others = [trial for trial in view.completed if serial is not None and trial.layout != serial.layout]
    if serial is None or not others:
        return nothing(theme, "All-serial and another layout have to be evaluated first.")
    confirmed = [trial for standing in view.standings for trial in others if trial.layout == standing.layout]
    best = next(iter(confirmed), None) or max(others, key=lambda trial: trial.score or 0.0)
    return layout_difference(view, serial.number, best.number, theme)


def _letter(choice: str) -> str:
    return (SERIAL, PARALLEL)[CHOICES.index(choice)]


def _map(space: SearchSpace, z: list[list[float]], text: list[list[str]], theme: Theme, *, says: str) -> go.Figure:
    trace = go.Heatmap(
        x=[escaped(site) for site in space.sites],
        y=[f"layer {layer + 1}" for layer in space.replaced],
        z=z,
        text=text,
        texttemplate="%{text}",
        hovertemplate="%{y}, %{x}: %{text}<extra></extra>",
        colorscale=CHOICE_SCALE,
        zmin=-1,
        zmax=1,
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
    hover = [f"trial {t.number}: {brief(t.layout)}<br>{OBJECTIVE} {t.score:.4f}" for t in trials]
    scores = {"title": {"text": OBJECTIVE}, "thickness": 10}
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
    marked = _marked(layouts, points, {"winner": winner, "all-serial": view.space.all_serial})
    says = f"{len(trials)} evaluated layouts; the plane keeps {share:.0%} of the spread of their distances."
    bare = {"showticklabels": False, "zeroline": False}
    even = {**bare, "scaleanchor": "x"}
    return drawn(theme, evaluated, *marked, says=says, xaxis=bare, yaxis=even, height=440)


def _marked(layouts: list[Layout], points: FloatArray, named: dict[str, Layout | None]) -> list[go.Scatter]:
    """Rings round layouts by name."""
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
    """Shape ``(n, n)``."""
    bits = np.array([layout.flat for layout in layouts], dtype=np.float64)
    return np.asarray(bits @ (1 - bits).T + (1 - bits) @ bits.T, dtype=np.float64)


def classical_scaling(distances: FloatArray) -> tuple[FloatArray, float]:
    """Points in the plane with nearly these distances, and the share of the positive spread that they keep (Torgerson 1952).

    Shapes: ``(n, n)``, n at least 2 -> ``(n, 2)``. Of each axis the coordinate farthest from zero is positive.
    """
    squared = distances**2
    centred = -0.5 * (squared - squared.mean(0) - squared.mean(1)[:, None] + squared.mean())
    values, vectors = np.linalg.eigh(centred)
    values = values.clip(min=0)
    points = (vectors * np.sqrt(values))[:, :-3:-1]
    farthest = points[np.abs(points).argmax(0), [0, 1]]
    spread = float(values.sum())
    return points * np.where(farthest < 0, -1.0, 1.0), float(values[-2:].sum()) / spread if spread > 0 else 1.0
