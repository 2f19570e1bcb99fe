"""Two trials, and two studies, side by side."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from rich.console import Console

from dasearch.config import parse_study
from dasearch.errors import WrongUse
from dasearch.layout import Layout
from dasearch.report.compare import (
    compare_studies,
    show_study_difference,
    show_trial_difference,
    study_difference_record,
    trial_difference_record,
)
from dasearch.report.view import State, StudyView, Trial
from dasearch.search.confirmation import t_interval
from tests.report.views import complete, finished, view


def shown(before: StudyView, after: StudyView) -> str:
    out = StringIO()
    show_study_difference(Console(file=out, width=160), compare_studies(before, after))
    return out.getvalue()


def test_two_studies() -> None:
    other = finished(
        name="[bold]other[/bold]",
        settings=parse_study({"name": "other", "output": "elsewhere", "search": {"budget": 7}, "trial": {"epochs": 9}}),
        confirmations=(),
        results=(),
    )
    text = shown(finished(), other)
    assert "[bold]other[/bold]" in text
    assert "(2 seeds, 95% t interval)" in text
    assert "0.1400 (one training)" in text
    assert "Both have the same winner." in text
    assert "0.2000 ±0.0100 [0.1800, 0.2200]" in text
    assert "Their data differ" not in text
    found = compare_studies(finished(), other)
    assert found.settings["search.budget"] == (5, 7)
    assert found.settings["trial.epochs"][1] == 9
    assert set(found.settings) == {"search.budget", "trial.epochs"}
    record = json.loads(json.dumps(study_difference_record(found), allow_nan=False))
    assert [study["winner"] for study in record["studies"]] == ["SPP-PPS", "SPP-PPS"]
    interval = t_interval([0.15, 0.16])
    assert record["studies"][0]["confirmed"] == {**interval._asdict(), "seeds": 2}
    assert record["studies"][1]["confirmed"] is None
    assert record["sites"] == []


def test_winners_that_differ_are_named_site_by_site() -> None:
    serial = view([complete(0, Layout.parse("SSS-SSS"), 0.3)], name="serial", dataset={"fingerprint": "other"})
    text = shown(finished(), serial)
    assert "The winners differ at 4 of 6 sites." in text
    assert "Their data differ, so their scores do not compare." in text
    lines = [line.split() for line in text.splitlines() if line.strip().startswith("layer")]
    assert lines == [
        [site, "parallel", "serial"]
        for site in ("layer01.context", "layer01.recommendation", "layer02.causal", "layer02.context")
    ]
    assert "Their settings are the same." in text


def test_studies_of_other_shapes_and_without_a_winner() -> None:
    deep = view([complete(0, Layout.all_serial(4), 0.3)], layers=4)
    for other in (deep, view()):
        assert "cannot be compared site by site" in shown(finished(), other)
        assert study_difference_record(compare_studies(finished(), other))["sites"] is None


def test_two_trials() -> None:
    study = finished()
    out = StringIO()
    found = study.difference(0, 3)
    show_trial_difference(Console(file=out, width=160), study, found)
    assert "SPP-PPS" in out.getvalue()
    assert "MRR +0.0400 in one training each; +0.0450 ±" in out.getvalue()
    record = json.loads(json.dumps(trial_difference_record(study, found), allow_nan=False))
    assert record["score"] == pytest.approx(0.04)
    assert record["confirmed"]["mean"] == pytest.approx(0.045)
    assert record["sites"][0] == {"site": "layer01.context", "before": "serial", "after": "parallel"}
    assert [trial["number"] for trial in record["trials"]] == [0, 3]
    lost = trial_difference_record(study, study.difference(0, 5))
    assert (lost["score"], lost["confirmed"], lost["trials"][1]["state"]) == (None, None, "fail")


def test_one_seed_leaves_the_interval_open() -> None:
    study = finished()
    single = finished(confirmations=tuple(c for c in study.confirmations if c.seed == 1))
    record = trial_difference_record(single, single.difference(0, 3))
    assert record["confirmed"] == {"mean": pytest.approx(0.05), "low": None, "high": None}


def test_a_trial_without_a_layout_is_refused() -> None:
    study = view([complete(0, Layout.parse("SSS-SSS"), 0.1), Trial(1, State.RUNNING)])
    with pytest.raises(WrongUse, match="trial 1 of 'toy' has no layout yet; choose another"):
        study.difference(0, 1)
    with pytest.raises(WrongUse, match="has no trial 0; it has no trials yet"):
        view().trial(0)
