"""Standings: gains paired by seed, and a verdict that knows how many layouts were compared."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from dasearch.layout import Layout
from dasearch.report.terminal import cheapest_in_words, verdict
from dasearch.search.confirmation import cheapest, standings
from dasearch.search.store import Confirmation
from dasearch.search.study import TrialView

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
    for interval, tail in ((winner.gain, 0.025), (winner.simultaneous_interval, 0.0125)):
        assert interval is not None
        assert interval.mean == pytest.approx(sum(gains) / 3)
        assert interval.high - interval.mean == pytest.approx(float(stats.t.ppf(1 - tail, 2)) * error)
    assert next(standing for standing in found if standing.layout == BASELINE).simultaneous_interval is None


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


def test_the_cheapest_layout_that_is_not_worse() -> None:
    lighter, lightest, worse = (Layout.parse(text) for text in ("SSN", "SNN", "NNN"))
    scores = {
        BASELINE: [0.200, 0.210, 0.205],
        lighter: [0.2001, 0.2099, 0.2052],
        lightest: [0.1999, 0.2101, 0.2049],
        worse: [0.180, 0.1901, 0.1852],
        FIRST: [0.2001, 0.2101, 0.2051],
    }
    found = standings(confirmed(scores), BASELINE)
    parameters = {BASELINE: 1000, FIRST: 1000, lighter: 900, lightest: 750, worse: 500}
    best = cheapest(found, parameters, 0.02)
    assert best is not None
    assert best.layout == lightest
    assert cheapest(found, dict.fromkeys(parameters, 1000), 0.02) is None
    assert cheapest(found, {layout: n for layout, n in parameters.items() if layout != BASELINE}, 0.02) is None
    assert cheapest(found, parameters, 1e-6) is None  # no one is so close beyond noise
    trials = [TrialView(k, layout, "complete", 0.2, 1.0, parameters[layout]) for k, layout in enumerate(parameters)]
    said = cheapest_in_words(found, trials, 0.02)
    assert said is not None
    assert said.startswith("SNN trains 25.0% fewer parameters than all-serial and is at most 2% behind it, if at all: ")
    assert said.endswith("corrected for 4 comparisons.")
    assert cheapest_in_words(found, trials[:2], 0.02) is None
