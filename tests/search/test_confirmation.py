"""Standings: gains paired by seed, and a verdict that knows how many layouts were compared."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from dasearch.layout import Layout
from dasearch.report.terminal import verdict
from dasearch.search.confirmation import standings
from dasearch.search.store import Confirmation

BASELINE, FIRST, SECOND = (Layout.parse(text) for text in ("SSS", "SPS", "PPP"))


def confirmed(scores: dict[Layout, list[float]]) -> list[Confirmation]:
    return [
        Confirmation(layout, "candidate", seed, {"MRR": value}, 1.0)
        for layout, values in scores.items()
        for seed, value in enumerate(values, start=1)
    ]


def test_intervals_that_hold_together_are_bonferronis() -> None:
    gains = [0.010, 0.012, 0.015]
    found = standings(
        confirmed({BASELINE: [0.1, 0.2, 0.3], FIRST: [0.110, 0.212, 0.315], SECOND: [0.1, 0.19, 0.3]}), BASELINE
    )
    winner = found[0]
    assert winner.layout == FIRST
    error = math.sqrt(sum((g - sum(gains) / 3) ** 2 for g in gains) / 2 / 3)
    for interval, tail in ((winner.gain, 0.025), (winner.together, 0.0125)):
        assert interval is not None
        assert interval.mean == pytest.approx(sum(gains) / 3)
        assert interval.high - interval.mean == pytest.approx(float(stats.t.ppf(1 - tail, 2)) * error)
    assert next(standing for standing in found if standing.layout == BASELINE).together is None


def test_a_gain_that_only_one_comparison_would_show_is_called_noise() -> None:
    """A fresh best of many that clears its own interval by a hair does not beat the baseline beyond noise."""
    steady = {BASELINE: [0.10, 0.10, 0.10], FIRST: [0.111, 0.114, 0.1175]}
    assert "beats all-serial beyond seed noise" in verdict(standings(confirmed(steady), BASELINE))
    others = {Layout.parse(text): [0.10, 0.101, 0.1] for text in ("PSS", "SSP", "PPS", "PSP", "SPP", "PPP")}
    crowd = standings(confirmed({**steady, **others}), BASELINE)
    assert crowd[0].gain is not None
    assert crowd[0].gain.low > 0
    assert "is within seed noise" in verdict(crowd)
    assert "corrected for 7 comparisons" in verdict(crowd)


def test_all_serial_at_the_top_is_said_plainly() -> None:
    found = standings(confirmed({BASELINE: [0.2, 0.3], FIRST: [0.1, 0.2]}), BASELINE)
    assert verdict(found) == "All-serial itself (SSS) came out best; the search found nothing better."
