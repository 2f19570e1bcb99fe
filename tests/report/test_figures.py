"""Every figure's traces and numbers, from a study made by hand."""

from __future__ import annotations

import statistics
from datetime import timedelta

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

from dasearch.bayes import Choices, Proposal, Surrogate
from dasearch.errors import WrongUse
from dasearch.layout import CHOICES, Choice, Layout
from dasearch.layout import SERIAL as SERIAL_CHOICE
from dasearch.report import figures
from dasearch.report.figures import FIGURES
from dasearch.report.figures.layouts import classical_scaling, hamming_distances
from dasearch.report.figures.search import free_lanes
from dasearch.report.theme import (
    BEST,
    DARK,
    LIGHT,
    OWN_COLOURS,
    PARALLEL,
    SERIAL,
    STATE_COLOURS,
    STATE_SYMBOLS,
    UNDECIDED,
    brief,
    choice_colours,
    words,
)
from dasearch.report.view import State, StudyView, Trial
from dasearch.search.causes import EVALUATED
from dasearch.search.confirmation import t_interval
from dasearch.search_space import load_search_space
from dasearch.short_layout import layout_id
from tests.report.views import BEGUN, LAYOUTS, SCORES, complete, finished, later_trainings, space, view


@pytest.fixture(scope="module")
def study() -> StudyView:
    return finished()


def named(figure: go.Figure) -> dict[str, go.Scatter]:
    return {trace.name: trace for trace in figure.data}


def test_best_layout_shows_the_winner_and_who_agrees(study: StudyView) -> None:
    (trace,) = figures.best_layout(study, LIGHT).data
    top = study.top(5)
    agreeing = np.mean([np.array(layout.z) == np.array([0, 1, 1, 1, 1, 0]) for layout in top], axis=0)
    assert np.array(trace.z).ravel() == pytest.approx(np.array([0, 1, 1, 1, 1, 0]) + 0.999 * agreeing)
    assert trace.text[0][0] == "S 4/5"  # only all-parallel differs there
    assert list(trace.x) == ["causal", "context", "recommendation"]
    assert list(trace.y) == ["layer 1", "layer 2"]
    assert [colour for _, colour in trace.colorscale] == [UNDECIDED, SERIAL, UNDECIDED, PARALLEL, PARALLEL]


def test_every_choice_of_a_space_has_a_colour_of_its_own() -> None:
    own = [Choice(name, name) for name in "xyz"]
    for choices in ([*CHOICES.values(), *own], [*CHOICES.values()], [SERIAL_CHOICE, *own]):
        colours = choice_colours(choices)
        assert set(colours) == {choice.name for choice in choices}
        assert len(set(colours.values())) == len(choices)
    assert list(choice_colours(own).values()) == list(OWN_COLOURS[:3])


def test_main_effects_are_the_surrogates(study: StudyView) -> None:
    found = figures.main_effects(study, LIGHT)
    codes = torch.tensor([Layout.parse(text).z for text in LAYOUTS])
    values = torch.tensor([score - 0.01 for score in SCORES], dtype=torch.float64)  # the mean of the curve
    effects = Surrogate.fit(codes, values, Choices.named(dict.fromkeys(space().free, 2))).main_effects()
    shown = np.array([trace.y for trace in found.data]).T.ravel()  # a panel a site
    assert shown == pytest.approx(effects.mean.numpy())
    assert np.array([trace.error_y.array for trace in found.data]).T.ravel() == pytest.approx(effects.sd.numpy())
    assert [title.text for title in found.layout.annotations] == ["causal", "context", "recommendation"]
    colours = [colour for trace in found.data for colour in trace.marker.color]
    assert colours == [PARALLEL if y > 0 else SERIAL for trace in found.data for y in trace.y]


def test_pair_interactions_are_the_strongest(study: StudyView) -> None:
    (trace,) = figures.pair_interactions(study, LIGHT).data
    sizes = np.abs(trace.x)
    assert len(sizes) == 12
    assert (np.diff(sizes) <= 1e-15).all()
    codes = torch.tensor([Layout.parse(text).z for text in LAYOUTS])
    values = torch.tensor([score - 0.01 for score in SCORES], dtype=torch.float64)
    effects = Surrogate.fit(codes, values, Choices.named(dict.fromkeys(space().free, 2))).pair_effects()
    assert sizes == pytest.approx(effects.mean.abs().sort(descending=True).values[:12].numpy())


def test_best_so_far_climbs_over_the_noise_band(study: StudyView) -> None:
    found = figures.best_so_far(study, LIGHT)
    traces = named(found)
    assert list(traces["best so far"].y) == [0.10, 0.10, 0.13, 0.14, 0.14]
    assert list(traces["evaluation"].y) == list(SCORES)
    assert list(traces["all-serial"].y) == pytest.approx([0.11, 0.11])
    assert traces["all-serial"].line.color == SERIAL
    assert list(traces["all-parallel"].y) == pytest.approx([0.085, 0.085])
    assert traces["all-parallel"].line.color == PARALLEL
    assert "candidate" not in traces
    sd = statistics.stdev([0.10, 0.12])
    band = traces["all-serial ± sd of 2 seeds"]
    assert (max(band.y), min(band.y)) == pytest.approx((0.11 + sd, 0.11 - sd))
    assert "0.1400" in words(found)


def test_learning_curves_mark_what_ended_early(study: StudyView) -> None:
    traces = named(figures.learning_curves(study, LIGHT))
    assert set(traces) == {"complete", "running", "pruned", "failed", "best (trial 3)"}
    best = traces["best (trial 3)"]
    assert list(best.x) == [1, 2, None]
    assert list(best.y)[:2] == pytest.approx([0.12, 0.14])
    assert best.line.color == BEST
    assert sum(value is None for value in traces["complete"].y) == 4  # a gap after each of the other four
    pruned = traces["pruned"]
    assert list(pruned.y) == [0.05, 0.01, None]
    assert pruned.marker.symbol == STATE_SYMBOLS[State.PRUNED]
    assert pruned.marker.size[1] > pruned.marker.size[0]
    assert len({STATE_COLOURS[state] for state in State}) == len({STATE_SYMBOLS[state] for state in State}) == 5


def test_layout_difference_and_its_interval(study: StudyView) -> None:
    found = figures.layout_difference(study, 0, 3, LIGHT)
    (trace,) = found.data
    assert [list(row) for row in trace.text] == [["S", "S → P", "S → P"], ["S → P", "S → P", "S"]]
    assert np.array(trace.z) == pytest.approx(np.array([[0.25, 2, 2], [2, 2, 0.25]]), abs=2e-3)
    gain = t_interval([0.05, 0.04])
    assert f"+0.0400 in one training each; +0.0450 ±{gain.high - gain.mean:.4f} over fresh seeds" in words(found)
    other = figures.layout_difference(study, 3, 2, LIGHT)
    assert "one site differs; MRR -0.0100 in one training each; no interval" in words(other)
    assert other.data[0].text[0][2] == "P → S"
    assert "no sites differ" in words(figures.layout_difference(study, 3, 3, LIGHT))
    assert words(figures.best_against_serial(study, LIGHT)) == words(found)
    with pytest.raises(WrongUse, match="has no trial 99; its trials are 0 to 7"):
        figures.layout_difference(study, 0, 99, LIGHT)


def test_probabilities_are_a_row_a_site(study: StudyView) -> None:
    found = figures.probabilities_over_trials(study, LIGHT)
    (trace,) = found.data
    assert list(trace.x) == [2, 3, 4]
    assert list(trace.y)[:2] == ["1 causal", "1 context"]
    assert np.array(trace.z)[1].tolist() == [0.95, 0.95, 0.95]
    assert np.array(trace.z)[2].tolist() == [0.15, 0.95, 0.15]
    assert "in the last, trial 4, 2 of 6 sites are decided (a choice above 0.9)." in words(found)


def test_what_is_decided_is_a_probability(study: StudyView) -> None:
    """Of three choices the first has what the others leave."""
    three = load_search_space("darec-none", backbone_layers=1)
    names = three.free
    shares = {names[0]: [0.04, 0.05], names[1]: [0.08, 0.08], names[2]: [0.02, 0.95]}
    layout = {names[0]: "none", names[1]: "none", names[2]: "serial"}
    proposed = Proposal(0, "reparameterization", layout, shares, -2.0, 0.1, 0.01, 0.1)
    found = figures.probabilities_over_trials(view(space=three, proposals=(proposed,)), LIGHT)
    assert [row[0] for row in found.data[0].z] == [0.04, 0.05, 0.08, 0.08, 0.02, 0.95]
    assert "2 of 3 sites are decided (a choice above 0.9), and 3 choices differ from the likeliest ones" in words(found)


def test_hamming_map(study: StudyView) -> None:
    found = figures.hamming_map(study, LIGHT)
    traces = named(found)
    assert list(traces["evaluated"].marker.color) == list(SCORES)
    winner, serial = traces["winner"], traces["all-serial"]
    assert (winner.x[0], winner.y[0]) == (traces["evaluated"].x[3], traces["evaluated"].y[3])
    assert (serial.x[0], serial.y[0]) == (traces["evaluated"].x[0], traces["evaluated"].y[0])


def test_classical_scaling_keeps_distances_that_fit_in_a_plane() -> None:
    path = [Layout.parse(text) for text in ("SSS", "PSS", "PPS", "PPP")]  # 0, 1, 2, 3 steps along a line
    distances = hamming_distances(path)
    assert distances.tolist() == [[a.distance(b) for b in path] for a in path]
    points, share = classical_scaling(distances)
    again = np.linalg.norm(points[:, None] - points[None], axis=-1)
    assert again == pytest.approx(distances)
    assert share == pytest.approx(1.0)


def test_calibration_counts_what_lies_inside(study: StudyView) -> None:
    found = figures.calibration(study, LIGHT)
    points = found.data[1]
    assert list(points.x) == [0.10, 0.12, 0.30]
    assert list(points.y) == pytest.approx([0.12, 0.13, 0.11])  # means of the curves
    assert study.learned is not None
    half = 1.96 * np.hypot(0.01, study.learned.noise_sd)
    assert list(points.error_x.array) == pytest.approx([half] * 3)
    assert half < 0.19
    inside = sum(abs(x - y) <= half for x, y in zip(points.x, points.y, strict=True))
    assert f"{inside} of 3 outcomes" in words(found)
    assert points.marker.symbol[2] == "x"
    assert "0.05333 too high on average" in words(found)  # (-.02 - .01 + .19) / 3


def test_confirmation_is_ordered_and_has_intervals(study: StudyView) -> None:
    found = figures.confirmation(study, LIGHT)
    means, seeds = found.data
    assert list(means.x) == pytest.approx([0.155, 0.11, 0.085])
    assert [label.split("<br>")[0] for label in means.y] == ["candidate", "all-serial", "all-parallel"]
    interval = t_interval([0.15, 0.16])
    assert means.error_x.array[0] == pytest.approx(interval.high - interval.mean)
    assert sorted(seeds.x) == [0.08, 0.09, 0.10, 0.12, 0.15, 0.16]
    assert "within seed noise" in words(found)


def test_one_seed_has_no_interval(study: StudyView) -> None:
    first = tuple(c for c in study.confirmations if c.seed == 1)
    found = figures.confirmation(finished(confirmations=first), LIGHT)
    assert found.data[0].error_x.array is None
    assert "all-serial ± sd" not in str(list(named(figures.best_so_far(finished(confirmations=first), LIGHT))))


def test_score_against_cost(study: StudyView) -> None:
    found = figures.score_against_cost(study, LIGHT)
    seconds, parameters = found.data
    assert list(seconds.x) == [8.0, 9.0, 10.0, 11.0, 12.0]
    assert list(parameters.x) == [1000, 1001, 1002, 1003, 1004]
    assert list(seconds.y) == list(parameters.y) == list(SCORES)
    assert "8.0 to 12.0 s of training each, 50 s in all" in words(found)


def test_equal_costs_have_no_panel() -> None:
    alike = [complete(n, Layout.parse(text), 0.1 + n, parameters=7) for n, text in enumerate(LAYOUTS)]
    (seconds,) = figures.score_against_cost(view(alike), LIGHT).data
    assert list(seconds.x) == [8.0, 9.0, 10.0, 11.0, 12.0]
    assert "all with 7 trained parameters" in words(figures.score_against_cost(view(alike), LIGHT))
    assert len(figures.score_against_cost(view(alike[:1]), LIGHT).data) == 2


def test_timeline_has_a_bar_a_trial(study: StudyView) -> None:
    found = figures.timeline(study, LIGHT)
    traces = named(found)
    assert list(traces["complete"].x) == [8000.0] * 5
    assert traces["complete"].base[1] == "2026-01-01T00:00:10+00:00"
    assert found.layout.xaxis.type == "date"
    failed = traces["failed"]
    assert failed.marker.color == STATE_COLOURS[State.FAIL]
    assert list(failed.text) == ["", "↻"]
    assert "it was interrupted" in failed.hovertext[0]
    assert "repeats trial 5" in failed.hovertext[1]
    assert "loss &lt;b&gt;nan&lt;/b&gt;" in failed.hovertext[1]
    assert found.layout.yaxis.title.text == "lane"
    assert list(traces["running"].y) == [2]  # it began while trial 6 ran
    assert list(traces["running"].x) == [3540_000.0]  # until the study was read
    assert "8 trials: 5 complete, 1 running, 2 failed; 1 of them repeat" in words(found)


def test_timeline_goes_on_after_the_search() -> None:
    found = figures.timeline(finished(later_trainings=later_trainings()), LIGHT)
    traces = named(found)
    confirmed, final = traces["confirmation"], traces["final, running"]
    assert list(confirmed.x) == [8000.0] * 2
    assert list(confirmed.base) == ["2026-01-01T00:01:40+00:00", "2026-01-01T00:01:50+00:00"]
    assert list(final.x) == [3480_000.0]  # until the study was read
    assert confirmed.marker.color == STATE_COLOURS[State.COMPLETE]
    assert final.marker.color == STATE_COLOURS[State.RUNNING]
    hatches = [traces[name].marker.pattern.shape for name in ("complete", "confirmation", "final, running")]
    assert len(set(hatches)) == 3
    assert hatches[0] == ""
    assert final.hovertext[0].startswith("winner &lt;b&gt;, seed 0: SSS-SSS<br>running, 3480.0 s")
    assert words(found).endswith("After them 2 confirmation trainings and 1 final training.")


def test_timeline_tells_an_evaluated_layout_from_a_failure() -> None:
    layout = Layout.parse(LAYOUTS[0])
    again = complete(1, layout, 0.1, state=State.PRUNED, reason=EVALUATED)
    found = figures.timeline(view([complete(0, layout, 0.1), again]), LIGHT)
    assert named(found)["pruned"].marker.color == STATE_COLOURS[State.PRUNED]


def test_timeline_has_lanes_of_each_worker() -> None:
    """Trial 2 began in b, together with trial 1, and ended in a; the worker of trial 3 is unknown."""
    a, b, c = "node:1", "node:2", "a-machine-with-a-long-name:3"
    layouts = [Layout.parse(text) for text in LAYOUTS]
    trials = [
        complete(0, layouts[0], 0.1, workers=(a,)),
        complete(1, layouts[1], 0.1, workers=(b,), started=BEGUN, ended=BEGUN + timedelta(seconds=5)),
        complete(2, layouts[2], 0.1, workers=(b, a), started=BEGUN + timedelta(seconds=4)),
        complete(3, layouts[3], 0.1),
    ]
    first, second, _ = later_trainings()
    failed = second._replace(workers=(c,), reason="its worker was <lost>")
    found = figures.timeline(view(trials, later_trainings=(first._replace(workers=(c, c)), failed)), LIGHT)
    traces, axis = named(found), found.layout.yaxis
    assert list(traces["complete"].y) == [1, 3, 2, 5]
    assert list(traces["confirmation"].y) == list(traces["confirmation, failed"].y) == [4]
    assert list(axis.tickvals) == [1, 3, 4, 5]
    assert list(axis.ticktext) == [a, b, "a-machine-w…long-name:3", "not known"]
    assert axis.title.text == "worker"
    stories = traces["complete"].hovertext
    assert stories[0].endswith("in node:1")
    assert stories[2].endswith("attempt 1 in node:2, attempt 2 in node:1")
    assert list(traces["complete"].text) == ["", "", "↻", ""]
    assert traces["confirmation, failed"].marker.color == STATE_COLOURS[State.FAIL]
    assert traces["confirmation, failed"].hovertext[0].endswith(f"in {c}<br>its worker was &lt;lost&gt;")
    assert words(found).endswith("They ran in 3 workers.")


def test_one_worker_has_the_lanes_of_one_process() -> None:
    trials = [complete(n, Layout.parse(LAYOUTS[n]), 0.1, workers=("node:1",)) for n in range(2)]
    found = figures.timeline(view(trials), LIGHT)
    assert list(found.data[0].y) == [1, 1]
    assert found.layout.yaxis.title.text == "lane"
    assert found.data[0].hovertext[0].endswith("in node:1")


def test_lanes_are_reused() -> None:
    ends = [(0, 10), (2, 4), (4, 12), (11, 13)]
    spans = [(BEGUN.replace(second=a), BEGUN.replace(second=b)) for a, b in ends]
    assert free_lanes(spans) == [0, 1, 1, 0]


@pytest.mark.parametrize("key", FIGURES)
def test_a_theme_changes_paper_and_ink_alone(study: StudyView, key: str) -> None:
    light, dark = (FIGURES[key].draw(study, theme).to_plotly_json() for theme in (LIGHT, DARK))
    assert str(light["data"]) == str(dark["data"])
    papers = [found["layout"].pop("template")["layout"]["paper_bgcolor"] for found in (light, dark)]
    assert papers == [LIGHT.paper, DARK.paper]
    assert str(light["layout"]) == str(dark["layout"])


FEW = {
    "no trials": (),
    "one": (complete(0, Layout.parse("SSS-SSS"), 0.1),),
    "two": (complete(0, Layout.parse("SSS-SSS"), 0.1), complete(1, Layout.parse("PPP-PPP"), 0.2)),
    "failed alone": tuple(Trial(n, State.FAIL, reason="<script>") for n in range(3)),
    "running without a layout": (Trial(0, State.RUNNING, started=BEGUN),),
    "all alike": tuple(complete(n, Layout.parse(text), 0.1) for n, text in enumerate(LAYOUTS)),
}
SENTENCES = {  # figures that have something to say from how many complete trials on
    "layout": 1, "best-so-far": 1, "curves": 1, "cost": 1, "difference": 2, "hamming": 3, "main-effects": 4, "pairs": 4,
}  # fmt: skip


@pytest.mark.parametrize("trials", FEW.values(), ids=FEW)
@pytest.mark.parametrize("key", FIGURES)
def test_with_little_to_show_a_figure_is_a_sentence(trials: tuple[Trial, ...], key: str) -> None:
    found = view(trials)
    figure = FIGURES[key].draw(found, LIGHT)
    if key in SENTENCES:
        assert bool(figure.data) == (len(found.completed) >= SENTENCES[key])
    if not figure.data:
        (note,) = figure.layout.annotations
        assert note.text.replace("<br>", " ") == words(figure)
    assert words(figure).endswith(".")


def test_long_layouts_become_labels() -> None:
    assert brief(Layout.all_serial(6)) == "SSS-SSS-SSS-SSS-SSS-SSS"
    assert brief(Layout.all_serial(30)) == f"{layout_id(Layout.all_serial(30))} SSS*30"
    assert brief(None) == ""
