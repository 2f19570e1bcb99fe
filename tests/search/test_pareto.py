"""Searches with a cost besides the metric: trials with two values, the confirmed front, the picked layout."""

from __future__ import annotations

import dataclasses
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest

from dasearch.bayes import front, knee
from dasearch.cli import run_command
from dasearch.config import Pick, StudySettings, parse_study
from dasearch.errors import StudyError
from dasearch.layout import Layout
from dasearch.layout_file import LayoutFile
from dasearch.models.cost import Cost, SiteCosts
from dasearch.report.dashboard.numbers import numbers
from dasearch.report.dashboard.pages import study_sections
from dasearch.report.dashboard.reading import Snapshot
from dasearch.report.dashboard.records import study_record
from dasearch.report.figures import FIGURES
from dasearch.report.page import as_html, as_markdown
from dasearch.report.terminal import front_in_words
from dasearch.report.theme import LIGHT, words
from dasearch.report.view import read_view
from dasearch.search.confirmation import contenders, standings
from dasearch.search.domain import Domain, Point
from dasearch.search.front import Selection, by_front
from dasearch.search.store import Confirmation, open_store
from dasearch.search.study import Status, Study
from dasearch.search_space import load_search_space
from tests.search.test_batches_of_trials import Stops, stubbed
from tests.search.trainings import Stub
from tests.training.studies import small_settings, small_study

BOTH = {"pareto": ["ndcg@10", "parameters"]}
COSTS = SiteCosts(100, {site: {"serial": 10, "parallel": 10, "none": 0} for site in ("a", "b", "c")}, {})
SERIAL, LIGHTER, LIGHTEST, WORSE = (Layout.parse(text) for text in ("SSS", "SSN", "SNN", "NNN"))


def study(folder: Path, **search: Any) -> StudySettings:
    wanted = {"objective": BOTH, "budget": 7, "batch": 2, **search}
    return small_study(folder, space={"name": "darec-none"}, search=wanted)


def told(status: Status) -> list[tuple[str, float | None]]:
    return [(str(trial.layout), trial.score) for trial in status.completed]


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    found = stubbed(monkeypatch)
    found.curve = lambda layout, seed: [0.05 + 0.01 * sum(c.active for c in layout.flat)] * 2
    return found


def test_a_whole_run_by_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = study(tmp_path, candidates=3)
    (tmp_path / "toy.yaml").write_text(settings.yaml())
    assert run_command(["run", "toy.yaml"]) == 0
    out = capsys.readouterr().out
    assert "Search: validation NDCG@10 on Data_BO" in out
    assert "confirmed layouts are on the front of NDCG@10 and trained parameters; its knee is " in out
    with closing(open_store(None, settings.output, create=False)) as store:
        view = read_view(store, "toy")
        progress = store.progress("toy")
    assert progress.states == {"complete": 7}
    answered = study_record(Snapshot(progress, view))["confirmation"]
    assert [one["layout"] for one in answered if one["picked"]] == [str(view.winner)]
    assert progress.best == max(trial.score for trial in view.completed if trial.score is not None)
    space, found = view.space, view.standings
    _trials_have_exact_costs(settings, view)
    assert {str(s.layout) for s in found} >= {"SSS-SSS", "PPP-PPP"}
    costs = [view.costs[Cost.PARAMETERS].of(standing.layout) for standing in found]
    picked = found[knee([standing.score.mean for standing in found], costs)].layout
    assert view.winner == picked
    (trained,) = {t.parameters for t in view.final_trainings if t.name == "winner"}
    assert trained == view.costs[Cost.PARAMETERS].of(picked)
    _reports_show_the_front(view)
    _exports_follow_the_pick(tmp_path, picked, capsys)
    assert run_command(["status", "toy", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [one["layout"] for one in record["confirmation"] if one["picked"]] == [str(picked)]
    assert [one["cost"] for one in record["confirmation"]] == costs
    layout_json = json.loads((tmp_path / "runs" / "toy" / "model" / "layout.json").read_text())
    assert (layout_json["metric"]["name"], layout_json["layout"]) == ("NDCG@10", str(picked))
    assert space.size == 3**6


def _trials_have_exact_costs(settings: StudySettings, view: Any) -> None:
    stored = optuna.load_study(study_name="toy", storage=f"sqlite:///{settings.output}/dasearch.db")
    values = [trial.values for trial in stored.trials]
    assert [cost for _, cost in values] == [trial.parameters for trial in view.trials]  # as the trained models counted
    assert [score for score, _ in values] == [trial.score for trial in view.trials]
    assert all(len(trial.curve) == 2 for trial in view.trials)
    on_front = {trial.number for trial in stored.best_trials}
    assert set(front(*zip(*values, strict=True))) <= on_front  # of equal trials Optuna keeps all


def _reports_show_the_front(view: Any) -> None:
    html, markdown = as_html(view), as_markdown(view)
    sentence = front_in_words(view.standings, "NDCG@10", view.selection)
    assert sentence in markdown
    assert "The front of NDCG@10 and trained parameters, confirmed" in html
    drawn = FIGURES["front"].draw(view, LIGHT)
    assert words(drawn) == sentence
    star = drawn.data[-1]
    assert (star.marker.symbol, list(star.x)) == ("star", [view.selection.costs.of(view.winner)])
    assert len(drawn.data[0].x) == len(view.completed)
    assert len(numbers(drawn, "front").rows) == len(view.completed) + len(view.standings)
    pages = study_sections(view)
    assert any("front" in section.figures for section in pages)
    rows = {
        row[0]: row
        for section in pages
        for table in section.tables
        for row in table.rows
        if "The front" in table.caption
    }
    assert rows[str(view.winner)][-2:] == ("yes", "knee")
    assert [row[0] for row in rows.values()][-1] in ("SSS-SSS", "PPP-PPP")  # the dearest last


def _exports_follow_the_pick(folder: Path, picked: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(open_store(None, str(folder / "runs"), create=False)) as store:
        view = read_view(store, "toy")
    assert view.selection is not None
    cheap = dataclasses.replace(view.selection, pick=Pick.CHEAPEST, worth=1e9)(view.standings)
    best = dataclasses.replace(view.selection, pick=Pick.BEST)(view.standings)
    for pick, layout in (("knee", picked), ("best", best.layout)):
        assert run_command(["export", "toy", "--pick", pick, "--out", pick]) == 0
        file = LayoutFile.read(folder / pick)
        assert file.parsed() == layout
        assert file.metric is not None
        assert file.metric.split == ("test" if layout == picked else "validation")
    capsys.readouterr()
    assert run_command(["export", "toy", "--pick", "knee", "--format", "torch"]) == 0
    capsys.readouterr()
    other = next((s.layout for s in (best, cheap) if s.layout != picked), None)
    if other == best.layout:
        assert run_command(["export", "toy", "--pick", "best", "--format", "torch", "--out", "none"]) == 2
        assert f"train it with `dasearch train toy --layout {other}`" in capsys.readouterr().err
        assert not (folder / "none").exists()
    for arguments, sentence in (
        (["--pick", "nee"], "there is no pick 'nee'; did you mean knee?"),
        (["--pick", "knee", "--format", "trials"], "describes a whole study, so --pick does not apply"),
    ):
        assert run_command(["export", "toy", *arguments, "--out", "wrong"]) == 2
        assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(("place", "epoch"), [(4, 0), (5, None)])
def test_an_interrupted_study_goes_on_as_if_it_had_not_been(
    tmp_path: Path, stub: Stub, place: int, epoch: int | None
) -> None:
    whole = Study(study(tmp_path / "whole", budget=8)).run(train=False)
    settings = study(tmp_path / "parts", budget=8)
    with pytest.raises(KeyboardInterrupt):
        Study(settings).run(train=False, listener=Stops(place, epoch))
    assert told(Study(settings).run(train=False)) == told(whole)
    larger = Study(settings).run(budget=10, train=False)
    assert told(larger)[:8] == told(whole)
    assert len(larger.completed) == 10


def test_a_study_keeps_its_objective_and_may_pick_anew(tmp_path: Path, stub: Stub) -> None:
    Study(study(tmp_path)).run(train=False)
    for objective in ("ndcg@10", {"pareto": ["mrr", "parameters"]}):
        with pytest.raises(StudyError, match=r"began with another search\.objective"):
            Study(study(tmp_path, objective=objective)).run(train=False)
    assert Study(study(tmp_path, pick="best")).run(train=False).selection.pick is Pick.BEST  # type: ignore[union-attr]


def test_a_search_with_a_cost_finds_cheap_layouts_and_never_stops_as_flat(tmp_path: Path, stub: Stub) -> None:
    stub.curve = lambda layout, seed: [0.1, 0.1]
    status = Study(study(tmp_path, budget=12)).run(train=False)
    assert len(status.completed) == 12
    assert status.selection is not None
    cheapest = min(status.selection.costs.of(trial.layout) for trial in status.completed if trial.layout)
    assert cheapest == status.selection.costs.of(Layout.parse("NNN-NNN"))


def test_another_metric_alone_is_searched_by(tmp_path: Path, stub: Stub) -> None:
    settings = small_study(tmp_path, search={"objective": "recall@10"})
    status = Study(settings).run(train=False)
    assert status.metric == "Recall@10"
    assert status.selection is None
    stored = optuna.load_study(study_name="toy", storage=f"sqlite:///{settings.output}/dasearch.db")
    assert [trial.value for trial in stored.trials] == [trial.score for trial in status.trials]
    with closing(open_store(None, settings.output, create=False)) as store:
        assert store.costs("toy") == {}
        assert "front" not in as_markdown(read_view(store, "toy")).lower()


@pytest.mark.parametrize("kind", ["darec", "idle", "ra-rec"])
def test_layouts_that_cost_the_same_have_no_front(tmp_path: Path, kind: str) -> None:
    settings = small_study(tmp_path, model={"kind": kind}, search={"objective": BOTH})
    fix = "choose a space with none or widths" if kind == "darec" else "set it to the metric alone"
    with pytest.raises(
        StudyError, match=f"has the same trained parameters, so search.objective has no front to find; {fix}"
    ):
        Study(settings).run()


@pytest.mark.parametrize(
    ("objective", "sentence"),
    [
        ("ndgc@10", "there is no metric 'ndgc@10'; did you mean ndcg@10?"),
        ({"pareto": ["mrr", "parameter"]}, "there is no cost 'parameter'; did you mean parameters?"),
        ({"pareto": ["mrr"]}, "an objective is a metric"),
        (3, "an objective is a metric"),
    ],
)
def test_objectives_that_there_are_not(objective: object, sentence: str) -> None:
    with pytest.raises(StudyError, match=sentence.replace("?", r"\?")):
        small_settings(search={"objective": objective})
    with pytest.raises(StudyError, match="pick=knee chooses from a front"):
        small_settings(search={"pick": "knee"})


def test_the_default_objective_is_what_it_always_was() -> None:
    found = small_settings().search
    assert (found.objective, found.metric, found.cost, found.pick) == ("mrr", "MRR", None, None)
    both = small_settings(search={"objective": {"pareto": ["NDCG@10", "MADDS"]}})
    assert (both.search.metric, both.search.cost) == ("NDCG@10", Cost.MADDS)
    assert parse_study(both.model_dump(mode="json")) == both


def ranked(scores: dict[Layout, list[float]]) -> Any:
    return standings(
        [
            Confirmation(layout, "candidate", seed, {"MRR": value}, 1.0)
            for layout, values in scores.items()
            for seed, value in enumerate(values)
        ],
        SERIAL,
    )


def test_picks_of_a_confirmed_front() -> None:
    found = ranked(
        {
            SERIAL: [0.200, 0.210, 0.205],
            LIGHTER: [0.1999, 0.2101, 0.2049],
            LIGHTEST: [0.195, 0.2052, 0.2001],
            WORSE: [0.150, 0.1603, 0.1549],
        }
    )

    def picked(pick: Pick, worth: float = 0.02) -> Layout:
        return Selection(Cost.PARAMETERS, COSTS, pick, worth)(found).layout

    selection = Selection(Cost.PARAMETERS, COSTS, Pick.KNEE, 0.02)
    assert [standing.layout for standing in selection.front(found)] == [WORSE, LIGHTEST, LIGHTER, SERIAL]
    assert picked(Pick.KNEE) == LIGHTEST
    assert picked(Pick.BEST) == SERIAL  # no other beats it beyond noise
    assert picked(Pick.CHEAPEST) == LIGHTER
    assert picked(Pick.CHEAPEST, 0.05) == LIGHTEST
    assert picked(Pick.CHEAPEST, 1e-6) == SERIAL
    says = front_in_words(found, "MRR", selection)
    assert says.startswith("4 of 4 confirmed layouts are on the front of MRR and trained parameters; its knee is SNN: ")
    assert "110 trained parameters, 15.4% fewer than all-serial, gain over it -0.0049" in says


def test_the_front_is_confirmed_its_knee_first_and_all_serial_always() -> None:
    space = load_search_space("darec-none", backbone_layers=2)
    costs = SiteCosts(100, {site: {"serial": 10, "parallel": 10, "none": 0} for site in space.sites}, {"context": 5})
    texts = {"SSS-SSS": 0.50, "SSN-NNN": 0.45, "NNN-NNN": 0.10, "SSN-SNN": 0.47, "PPP-PPP": 0.30, "SSS-NNN": 0.20}
    signals = {Point(space.parse(text)): value for text, value in texts.items()}

    def order(one: Any, known: Any) -> list[Layout]:
        return by_front(one, known, costs, 3)

    found = contenders(Domain(space, {}), signals, candidates=3, seed=0, order=order)
    best = [str(contender.layout) for contender in found[:3]]
    assert best[0] == "SSN-NNN"
    assert "PPP-PPP" not in best
    assert "SSS-SSS" in [str(contender.layout) for contender in found]
