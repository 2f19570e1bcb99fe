"""Settings searched besides the layout: the posterior of the best layout under each of their values."""

from __future__ import annotations

import plotly.graph_objects as go

from dasearch.report.learned import SettingValue
from dasearch.report.theme import BEST, NEUTRAL, STATE_COLOURS, Theme, drawn, nothing
from dasearch.report.view import State, StudyView
from dasearch.search.domain import number, settings_text


def settings(view: StudyView, theme: Theme) -> go.Figure:
    """Values of each setting side by side: mean ± one posterior sd, a star at the best value."""
    if not view.domain.also:
        return nothing(theme, "This study searches only layouts; search.also may add settings.")
    if view.learned is None:
        return nothing(theme, "Too few trials are complete to learn from.")
    by_key = {key: [one for one in view.learned.settings if one.key == key] for key in view.domain.also}
    traces = [_values(key, found) for key, found in by_key.items()]
    says = f"Under the best layout so far, {settings_text(view.settings_found)} has the best predicted {view.metric}."
    y = {"title": {"text": f"predicted {view.metric} (mean of the curve)"}}
    return drawn(theme, *traces, says=says, xaxis={"type": "category", "tickangle": -45}, yaxis=y)


def _values(key: str, found: list[SettingValue]) -> go.Scatter:
    return go.Scatter(
        x=[f"{key} {number(one.value)}" for one in found],
        y=[one.predicted.mean for one in found],
        mode="markers",
        name=key,
        error_y={"type": "data", "array": [one.predicted.sd for one in found], "thickness": 1.5, "color": NEUTRAL},
        hovertemplate="%{x}: %{y:.4f}<extra></extra>",
        marker={
            "size": [15 if one.found else 8 for one in found],
            "symbol": ["star" if one.found else "circle" for one in found],
            "color": [BEST if one.found else STATE_COLOURS[State.COMPLETE] for one in found],
        },
        showlegend=False,
    )
