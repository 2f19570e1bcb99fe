"""The figure's lines are the means of the races."""

from __future__ import annotations

from dasearch.bench.samplers import Race
from dasearch.report.bench import figure


def test_a_line_a_sampler_and_panel() -> None:
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
