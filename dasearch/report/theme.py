"""The colours of every figure and page, safe for colour vision deficiency, in light and dark.

Colours: Okabe & Ito 2008, "Color Universal Design". A colour that carries meaning is the same in both themes, and every
state also has its own symbol. A theme only sets the background and the text colours, which belong to a figure's layout:
its traces are the same under every theme, so that a page can switch themes without redrawing.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import plotly.graph_objects as go

from dasearch.layout import CHOICES, LOW_RANK, NONE, PARALLEL_SUM, Choice, Layout
from dasearch.report.view import State
from dasearch.search.confirmation import ALL_PARALLEL, ALL_SERIAL
from dasearch.short_layout import short_text

SERIAL, PARALLEL = "#0072B2", "#E69F00"
UNDECIDED = "#DFE3E8"  # between serial and parallel
NEUTRAL = "#8A8F98"  # contrast of at least 3:1 against both backgrounds
BEST = "#D55E00"
CHOICE_SCALE = [[0.0, SERIAL], [0.5, UNDECIDED], [1.0, PARALLEL]]
SCORE_SCALE = "Cividis"  # optimised for colour vision deficiency (Nuñez et al. 2018)
CHOICE_COLOURS = {
    "serial": SERIAL,
    "parallel": PARALLEL,
    NONE.name: NEUTRAL,
    PARALLEL_SUM.name: "#CC79A7",
    LOW_RANK.name: "#56B4E9",
}
OWN_COLOURS = ("#009E73", "#56B4E9", "#D55E00", "#F0E442")  # of choices that a space defines, in their order
DARK_COLOURS = (SERIAL, "#D55E00")  # colours that need white text
ROLE_COLOURS = {ALL_SERIAL: SERIAL, ALL_PARALLEL: PARALLEL}
STATE_COLOURS = {
    State.COMPLETE: "#009E73",
    State.RUNNING: "#56B4E9",
    State.WAITING: NEUTRAL,
    State.PRUNED: "#CC79A7",
    State.FAIL: BEST,
}
STATE_SYMBOLS = {
    State.COMPLETE: "circle",
    State.RUNNING: "triangle-right",
    State.WAITING: "circle-open",
    State.PRUNED: "diamond",
    State.FAIL: "x",
}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"
HEIGHT = 380  # pixels
LINE = 44  # characters per line of a sentence on a phone
TICKS = 15  # maximum number of integers with a tick each
written = lru_cache(maxsize=4096)(short_text)  # uncached, 1,000 layouts of thirty layers take 0.4 s at each display
BRIEF = 23  # characters of a layout of 6 layers with 3 sites


@dataclass(frozen=True)
class Theme:
    """Background and text colours."""

    name: str
    paper: str
    ink: str
    faint: str

    @property
    def template(self) -> go.layout.Template:
        """The plotly template of the theme's colours and fonts."""
        axis = {
            "gridcolor": self.faint,
            "zerolinecolor": self.faint,
            "linecolor": self.faint,
            "automargin": True,
            "exponentformat": "none",
            "title": {"standoff": 8},
        }
        return go.layout.Template(
            layout={
                "paper_bgcolor": self.paper,
                "plot_bgcolor": self.paper,
                "font": {"family": FONT, "size": 13, "color": self.ink},
                "hoverlabel": {"bgcolor": self.paper, "font": {"color": self.ink}, "bordercolor": self.faint},
                "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
                "margin": {"l": 50, "r": 16, "t": 30, "b": 50},
                "colorway": [NEUTRAL],
                "xaxis": axis,
                "yaxis": axis,
            }
        )


LIGHT = Theme("light", paper="#FFFFFF", ink="#1F2328", faint="#E2E6EA")
DARK = Theme("dark", paper="#14171C", ink="#E6E8EB", faint="#30363D")
THEMES = {theme.name: theme for theme in (LIGHT, DARK)}


def drawn(theme: Theme, *traces: Any, says: str, height: int = HEIGHT, **layout: Any) -> go.Figure:
    """Attach to a figure one or two sentences on what it shows (`words`), as its text alternative."""
    figure = go.Figure(list(traces))
    return finished(figure, theme, says=says, height=height, **layout)


def finished(figure: go.Figure, theme: Theme, *, says: str, height: int = HEIGHT, **layout: Any) -> go.Figure:
    """The figure with its theme and its text alternative."""
    return figure.update_layout(template=theme.template, height=height, meta={"says": says}, **layout)


def nothing(theme: Theme, sentence: str) -> go.Figure:
    """An empty figure that shows a sentence."""
    hidden = {"visible": False}
    lines = "<br>".join(textwrap.wrap(escaped(sentence), LINE))
    said = {"text": lines, "showarrow": False, "xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5}
    return drawn(theme, says=sentence, height=120, annotations=[said], xaxis=hidden, yaxis=hidden)


def counting(title: str, most: int) -> dict[str, Any]:
    """An axis of integers up to ``most``."""
    return {"title": {"text": title}, "dtick": 1 if most <= TICKS else None}


def choice_colours(choices: Sequence[Choice]) -> dict[str, str]:
    """A colour for each choice, by name; shipped choices have fixed colours, others take unused ones."""
    own = [choice.name for choice in choices if choice.name not in CHOICES]
    taken = {CHOICE_COLOURS[choice.name] for choice in choices if choice.name in CHOICES}
    left = [colour for colour in OWN_COLOURS if colour not in taken]
    return {
        choice.name: CHOICE_COLOURS.get(choice.name) or left[own.index(choice.name) % len(left)] for choice in choices
    }


def ink_on(colour: str) -> str:
    """Text colour with good contrast on a choice's colour."""
    return LIGHT.paper if colour in DARK_COLOURS else LIGHT.ink


def words(figure: go.Figure) -> str:
    """The text alternative of a figure."""
    meta: Mapping[str, str] = figure.layout.meta
    return meta["says"]


def escaped(text: object) -> str:
    """Escape a name, because plotly interprets tags in texts."""
    return html.escape(str(text), quote=False)


def brief(layout: Layout | None) -> str:
    """A layout as a label: a long one as its id and abbreviated text."""
    return "" if layout is None else written(layout, BRIEF)


def shortened(text: str) -> str:
    """A long label with its middle elided."""
    if len(text) <= BRIEF:
        return text
    half = BRIEF // 2
    return f"{text[:half]}…{text[-half:]}"
