"""The test result as a figure, and what is called a winner."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dasearch.layout import Layout
from dasearch.report import figures
from dasearch.report.dashboard.numbers import numbers
from dasearch.report.dashboard.pages import study_sections
from dasearch.report.document import result_figures, results_table, sections
from dasearch.report.theme import BEST, LIGHT, NEUTRAL, SERIAL, words
from dasearch.report.view import State
from dasearch.search.confirmation import ALL_SERIAL
from dasearch.search.store import Result
from tests.report.views import complete, finished, later_trainings, view


def test_the_result_is_the_closing_tables_with_intervals() -> None:
    study = finished()
    serial = Result(ALL_SERIAL, "SSS-SSS", "NDCG@10", 0.15, 0.14, 0.17, seeds=2)
    other = Result("winner", "SPP-PPS", "Recall@10", 0.4, 0.3, 0.5)
    winner, popularity = study.results
    found = figures.results(replace(study, results=(winner, other, serial, popularity)), LIGHT)
    (trace,) = found.data
    assert list(trace.y) == ["winner", "all-serial", "popularity"]
    assert list(trace.x) == [0.2, 0.15, 0.1]
    assert list(trace.error_x.array) == pytest.approx([0.02, 0.02, 0.01])
    assert list(trace.error_x.arrayminus) == pytest.approx([0.02, 0.01, 0.01])
    assert list(trace.marker.symbol) == ["star", "circle", "diamond"]
    assert list(trace.marker.color) == [BEST, SERIAL, NEUTRAL]
    assert found.layout.xaxis.title.text == "test NDCG@10"
    table = numbers(found, "any")
    assert table.headings == ("test NDCG@10", "up to", "down to", "y")
    assert table.rows[1] == ("0.15", "0.17", "0.14", "all-serial")
    assert words(found).startswith("On the test split the winner has NDCG@10 0.2000 [0.1800, 0.2200]. In NDCG@10 the")


def test_a_result_of_another_metric_without_intervals() -> None:
    bare = (Result("winner", "SPP-PPS", "MRR", 0.2, None, None), Result("popularity", None, "MRR", 0.1, None, None))
    study = replace(finished(), results=bare)
    found = figures.results(study, LIGHT)
    assert found.data[0].error_x.array is None
    assert words(found) == "On the test split the winner has MRR 0.2000."
    assert "interval" not in results_table(study).caption
    assert "95% intervals over users" in results_table(finished()).caption


def test_before_the_test_split_was_read() -> None:
    assert words(figures.results(view(), LIGHT)).startswith("The test split has not been read yet")
    assert result_figures(view()) == ()


def test_the_result_comes_first_and_what_is_looked_up_last() -> None:
    study = finished(later_trainings=later_trainings())
    assert sections(study)[0].figures[0] == "results"
    for found in (sections(study), study_sections(study)):
        captions = [table.caption for table in found[-1].tables if table.rows]
        assert captions[0] == "Final trainings on all users"
        assert captions[-1] == "Saved files"
        assert "Trainings after the search" in captions
        others = [table.caption for section in found[:-1] for table in section.tables]
        assert set(others).isdisjoint(captions)


@pytest.mark.parametrize(("phase", "called"), [("search", "best so far"), ("final", "best so far"), ("done", "winner")])
def test_only_a_finished_study_has_a_winner(phase: str, called: str) -> None:
    study = finished(phase=phase)
    assert {trace.name for trace in figures.hamming_map(study, LIGHT).data} == {"evaluated", called, "all-serial"}
    assert f"SPP-PPS, the {called}: all of" in words(figures.best_layout(study, LIGHT))


def test_curves_of_one_epoch_have_marks_that_are_seen() -> None:
    layouts = [Layout.parse(text) for text in ("SSS-SSS", "PPP-PPP", "SPS-SPS")]
    trials = [complete(n, layout, 0.1, curve={0: 0.1}) for n, layout in enumerate(layouts[:2])]
    trials.append(complete(2, layouts[2], 0.05))
    (others, best) = figures.learning_curves(view(trials), LIGHT).data
    assert best.name == "best (trial 0)"
    assert list(best.marker.size) == [8, 0]
    assert others.name == State.COMPLETE.word
    assert list(others.marker.size) == [8, 0, 4, 4, 0]


def test_without_a_second_seed_no_interval_is_drawn_or_said() -> None:
    study = finished()
    alone = replace(study, confirmations=tuple(c for c in study.confirmations if c.seed == 1))
    means = figures.confirmation(alone, LIGHT).data[0]
    assert (means.name, means.error_x.array) == ("mean", None)
    assert figures.confirmation(study, LIGHT).data[0].name == "mean, 95% interval"
    captions = [table.caption for table in sections(alone)[1].tables]
    assert "Confirmation with fresh seeds (gains paired by seed)" in captions


def test_deep_layouts_are_short_where_they_are_read() -> None:
    deep = Layout.parse("-".join(["SPS", "PPS", "SSS"] * 10))
    study = view([complete(0, deep, 0.1)], layers=30)
    whole = str(deep)
    told = [sentence for section in sections(study) for sentence in section.sentences]
    told += [cell for section in sections(study) for table in section.tables for row in table.rows for cell in row]
    told += [words(drawing.draw(study, LIGHT)) for drawing in figures.FIGURES.values()]
    assert any("…" in text for text in told)
    assert not [text for text in told if whole in text]
