"""The figure's lines are the means of the races."""

from __future__ import annotations

import io

from rich.console import Console

from dasearch.bench.samplers import Race, scores
from dasearch.report.bench import figure, show_costs


def test_one_line_per_sampler_and_panel() -> None:
    races = [
        Race("a/36", "PRSampler", 0, [0.1, 0.5], 0.1),
        Race("a/36", "PRSampler", 1, [0.3, 0.7], 0.1),
        Race("a/36", "TPE", 0, [0.2, 0.2], 0.1),
        Race("b/36", "TPE", 0, [0.4, 0.4], 0.1),
    ]
    found = figure(races)
    lines = {(trace.name, trace.xaxis): list(trace.y) for trace in found.data}
    assert lines["PRSampler", "x"] == [0.2, 0.6]
    assert lines["TPE", "x"] == [0.2, 0.2]
    assert lines["TPE", "x2"] == [0.4, 0.4]
    assert [annotation.text for annotation in found.layout.annotations] == ["a/36", "b/36"]
    assert [trace.showlegend for trace in found.data] == [True, True, False]  # each sampler once


def test_batch_sizes_have_separate_lines() -> None:
    races = [Race("a/36", "PRSampler", 0, [0.1, 0.5], 0.1), Race("a/36", "PRSampler", 0, [0.3, 0.7], 0.1, 4)]
    lines = {trace.name: list(trace.y) for trace in figure(races).data}
    assert lines == {"PRSampler": [0.1, 0.5], "PRSampler, 4 at a time": [0.3, 0.7]}


def test_costs_are_shown_where_there_are_batches() -> None:
    races = [Race("a/36", "PRSampler", seed, [0.5 + seed / 10] * 10, 0.1) for seed in range(2)]
    shown = io.StringIO()
    console = Console(file=shown, width=120)
    show_costs(console, scores(races), 10)
    assert shown.getvalue() == ""
    show_costs(console, scores([*races, *(Race("a/36", "PRSampler", s, [0.5] * 10, 0.1, 4) for s in range(2))]), 10)
    assert "+0.050 ± 0.050" in shown.getvalue()
