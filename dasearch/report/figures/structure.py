"""The surrogate's posterior: the effect of each site, and the strongest interactions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dasearch.bayes.choices import LAYERED_NAME
from dasearch.layout import Choice
from dasearch.report.learned import FEWEST, Effect, Learned
from dasearch.report.theme import NEUTRAL, Theme, choice_colours, counting, drawn, finished, nothing
from dasearch.report.view import StudyView

TOO_FEW = f"The surrogate needs {FEWEST} complete trials before effects are shown."
PANEL, ROW, FRAME = 150, 42, 110  # pixels
BESIDE = 0.18  # fraction of a layer's width, between the choices of a site
CLEAR = 2.0  # sd from zero at which an effect is called clear


def main_effects(view: StudyView, theme: Theme) -> go.Figure:
    """Effects of each choice instead of the site's first with ± sd, one panel per site, by layer."""
    learned = view.learned
    if learned is None:
        return nothing(theme, TOO_FEW)
    placed = [(_place(effect.sites[0]), effect) for effect in learned.main]
    sites = [site for site in view.space.sites if any(at[1] == site for at, _ in placed)]
    colours = choice_colours(view.space.file.alphabet)
    figure = make_subplots(
        rows=len(sites), cols=1, shared_xaxes=True, shared_yaxes="all", subplot_titles=sites, vertical_spacing=0.09
    )
    for row, site in enumerate(sites, start=1):
        chosen = [(layer, effect) for (layer, own), effect in placed if own == site]
        figure.add_trace(_effects(chosen, colours), row=row, col=1)
    axis = counting("layer", view.space.backbone_layers)
    figure.update_xaxes(dtick=axis["dtick"])
    figure.update_xaxes(axis, row=len(sites), col=1)
    figure.update_yaxes(zeroline=True, zerolinewidth=2)
    return finished(figure, theme, says=_main_words(learned, view.metric), height=FRAME + PANEL * len(sites))


def _effects(placed: list[tuple[int, Effect]], colours: Mapping[str, str]) -> go.Scatter:
    """The colour of a point: with two choices that of the better one, with more that of its choice."""
    effects = [effect for _, effect in placed]
    most = max(Counter(effect.sites[0] for effect in effects).values())
    places = Counter[str]()
    x = []
    for layer, effect in placed:
        beside = places[effect.sites[0]] - (most - 1) / 2
        x.append(layer + BESIDE * beside)
        places[effect.sites[0]] += 1
    return go.Scatter(
        x=x,
        y=[effect.mean for effect in effects],
        error_y={"type": "data", "array": [effect.sd for effect in effects], "thickness": 1.5, "color": NEUTRAL},
        mode="markers+text" if most > 1 else "markers",
        showlegend=False,
        text=[effect.choices[0].letter for effect in effects],
        textposition="middle right",
        customdata=[
            f"{effect.sites[0]}, {effect.choices[0].name} instead of {effect.first[0].name}" for effect in effects
        ],
        hovertemplate="%{customdata}: %{y:+.5f} ± %{error_y.array:.5f}<extra></extra>",
        marker={"size": 9, "color": [colours[_told(effect, most).name] for effect in effects]},
    )


def _told(effect: Effect, most: int) -> Choice:
    return effect.choices[0] if most > 1 else _better(effect)


def _better(effect: Effect) -> Choice:
    return effect.choices[0] if effect.mean > 0 else effect.first[0]


def _main_words(learned: Learned, metric: str) -> str:
    strongest = max(learned.main, key=lambda effect: abs(effect.mean))
    clear = sum(abs(effect.mean) > CLEAR * effect.sd for effect in learned.main)
    better, other = (strongest.choices[0], strongest.first[0])[:: 1 if strongest.mean > 0 else -1]
    part = (
        ""
        if learned.fitted == learned.evaluated
        else f", fitted to {learned.fitted} of {learned.evaluated} evaluations"
    )
    return (
        f"The strongest effect is at {strongest.sites[0]}, which favours {better.name} over {other.name}: "
        f"{strongest.mean:+.5f} {metric} (sd {strongest.sd:.5f}){part}. "
        f"{clear} of {len(learned.main)} effects are more than {CLEAR:.0f} sd from zero."
    )


def pair_interactions(view: StudyView, theme: Theme) -> go.Figure:
    """The strongest interactions with ± sd, the strongest on top."""
    learned = view.learned
    if learned is None:
        return nothing(theme, TOO_FEW)
    if not learned.pairs:
        return nothing(theme, "One free site has nothing to interact with.")
    trace = go.Scatter(
        x=[effect.mean for effect in learned.pairs],
        y=[" ×<br>".join(_labels(effect)) for effect in learned.pairs],
        error_x={"type": "data", "array": [effect.sd for effect in learned.pairs], "thickness": 1.5, "color": NEUTRAL},
        mode="markers",
        marker={"size": 9, "color": NEUTRAL},
        hovertemplate="%{y}: %{x:+.5f} ± %{error_x.array:.5f}<extra></extra>",
    )
    strongest = learned.pairs[0]
    named = zip(strongest.sites, strongest.choices, strict=True)
    says = (
        f"The strongest interaction is {' with '.join(f'{site} {choice.name}' for site, choice in named)}: "
        f"{strongest.mean:+.5f} {view.metric} (sd {strongest.sd:.5f})."
    )
    x = {"title": {"text": f"interaction in {view.metric}"}, "zeroline": True, "zerolinewidth": 2, "nticks": 5}
    height = FRAME + ROW * len(learned.pairs)
    return drawn(theme, trace, says=says, height=height, xaxis=x, yaxis={"autorange": "reversed"})


def _labels(effect: Effect) -> list[str]:
    """The sites with the letters of their choices."""
    return [f"{short(site)} {choice.letter}" for site, choice in zip(effect.sites, effect.choices, strict=True)]


def short(name: str) -> str:
    """``3 context`` for ``layer03.context``."""
    layer, site = _place(name)
    return f"{layer} {site}"


def _place(name: str) -> tuple[int, str]:
    """Layer, counted from 1, and site of ``layer03.context``."""
    match = LAYERED_NAME.match(name)
    assert match is not None, name  # `layout.site_names` creates all names
    return int(match["layer"]), match["site"]
