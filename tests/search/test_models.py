"""IDLE-Adapter and RA-Rec through the same loop as DARec: searched, killed, resumed, trained, tested, opened."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from dasearch.config import parse_study
from dasearch.errors import SearchSpaceError, StudyError
from dasearch.layout import SERIAL, Layout
from dasearch.search.confirmation import recommended
from dasearch.search.estimate import estimate
from dasearch.search.single import evaluate_saved, train_layout
from dasearch.search.study import Study
from dasearch.training.progress import Epoch
from dasearch.training.recommender import load
from tests.search.conftest import Uninterrupted
from tests.search.test_study import Ears, outcome, run
from tests.training.studies import merged, small_study

KINDS = ("idle", "ra-rec")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Interrupts(Ears):
    """Interrupts at the n-th epoch."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def epoch(self, training: object, epoch: Epoch) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def test_the_whole_loop(kind: str, uninterrupted: Uninterrupted) -> None:
    status, _ = uninterrupted(kind)
    assert status.phase == "done"
    assert len({t.layout for t in status.completed}) == 4
    names = list(dict.fromkeys(r.name for r in status.results))
    assert names == ["winner", "all-serial", "all-parallel", "frozen", "GRU4Rec", "SASRec", "popularity", "Markov"]
    (folder,) = [a.path for a in status.artifacts]
    opened = load(folder)
    assert opened.layout == recommended(status.standings).layout
    record = json.loads((Path(folder) / "layout.json").read_text())
    assert (record["model"], record["prefix"], record["encoder"], record["bottleneck"]) == (kind, 3, "sasrec", None)
    assert len(opened.recommend(["item1", "item3"], k=4)) == 4


@pytest.mark.parametrize("space", ["e4s-rec", "e4s-rec-none"])
def test_the_whole_loop_of_e4s_rec(tmp_path: Path, space: str) -> None:
    changes = {"model": {"kind": "e4s-rec"}, "space": {"name": space}}
    status, _ = run(small_study(tmp_path, **changes, output=str(tmp_path / "whole")))
    assert status.phase == "done"
    assert status.space.size == {"e4s-rec": 16, "e4s-rec-none": 81}[space]
    names = list(dict.fromkeys(r.name for r in status.results))
    assert names == ["winner", "all-serial", "all-parallel", "frozen", "GRU4Rec", "SASRec", "popularity", "Markov"]
    opened = load(status.artifacts[0].path)
    assert opened.layout == recommended(status.standings).layout
    settings = small_study(tmp_path, **changes, output=str(tmp_path / "cut"))
    with pytest.raises(KeyboardInterrupt):
        Study(settings).run(listener=Interrupts(9))
    resumed, _ = run(settings)
    assert outcome(resumed) == outcome(status)


def test_prefix_models_take_the_papers_two_choices_alone(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "space.yaml"
    shipped = Path(f"search_spaces/{kind}.yaml").read_text()
    file.write_text(shipped.replace("choices: [serial, parallel]", "choices: [serial, parallel, none]"))
    with pytest.raises(SearchSpaceError, match=f"{kind} has no choice 'none'; serial, parallel"):
        Study(small_study(tmp_path, model={"kind": kind}, space={"name": str(file)})).run()


@pytest.mark.parametrize("after", [3, 9, 13])
def test_interrupted_in_any_phase_it_ends_the_same(
    tmp_path: Path, kind: str, after: int, uninterrupted: Uninterrupted
) -> None:
    whole, _ = uninterrupted(kind)
    settings = small_study(tmp_path, model={"kind": kind})
    with pytest.raises(KeyboardInterrupt):
        Study(settings).run(listener=Interrupts(after))
    resumed, _ = run(settings)
    assert outcome(resumed) == outcome(whole)


def test_an_estimate_writes_nothing(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASEARCH_CACHE", str(tmp_path / "cache"))
    found = estimate(Study(small_study(tmp_path, model={"kind": kind}, search={"batch": 3})))
    assert found.layouts == 64
    assert found.trained_parameters > 0
    assert found.seconds > 0
    assert (found.side_by_side, found.finals_side_by_side) == (3, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy"]


def test_a_space_of_another_model(tmp_path: Path, kind: str) -> None:
    settings = small_study(tmp_path, model={"kind": kind}, space={"name": "darec"})
    with pytest.raises(
        SearchSpaceError, match=f"search space darec is of darec and model.kind is {kind}; set space.name={kind}"
    ):
        Study(settings).run()


@pytest.mark.parametrize(
    ("changes", "site"),
    [
        ({"model": {"kind": "idle", "refine": "concat"}}, "refinement"),
        ({"model": {"kind": "idle"}, "losses": {"mmd": 0}}, "alignment"),
        ({"model": {"kind": "ra-rec", "instruction": False}}, "instruction"),
    ],
)
def test_a_site_that_changes_nothing(tmp_path: Path, changes: dict, site: str) -> None:
    study = Study(small_study(tmp_path, **changes))
    for begins in (study.run, lambda: estimate(study)):
        with pytest.raises(SearchSpaceError, match=f"leaves the site {site} nothing to choose"):
            begins()


@pytest.mark.parametrize("kind", KINDS)
def test_the_strict_space_holds_the_third_site(tmp_path: Path, kind: str) -> None:
    settings = small_study(tmp_path, model={"kind": kind}, space={"name": f"{kind}-strict"})
    status, _ = run(settings, train=False)
    assert {t.layout.groups[k][2] for t in status.completed if t.layout for k in range(2)} == {SERIAL}


@pytest.mark.parametrize("kind", KINDS)
def test_the_frozen_model_alone_is_trained_without_a_search(tmp_path: Path, kind: str) -> None:
    settings = small_study(tmp_path, model={"kind": kind, "variation": "frozen"})
    with pytest.raises(StudyError, match=r"model.variation=frozen leaves nothing to search; use `dasearch train`"):
        Study(settings).run()
    folder, trained = train_layout(Study(settings), "all-serial")
    assert trained.parameters == (0 if kind == "ra-rec" else 40 * 17)
    opened = load(folder)
    assert opened.layout_file.model == f"{kind}, frozen"
    assert evaluate_saved(opened) == trained.metrics


def test_a_study_begun_before_a_setting_existed_goes_on(tmp_path: Path) -> None:
    """Settings that a stored study does not name are at their defaults."""
    settings = small_study(tmp_path)
    run(settings, train=False)
    database = sqlite3.connect(tmp_path / "runs" / "dasearch.db")
    (stored,) = database.execute("select settings from dasearch_study").fetchone()
    content = json.loads(stored)
    del content["examples"], content["model"]["kind"]
    content["space"]["name"] = "darec"  # the default of then
    database.execute("update dasearch_study set settings = ?", (json.dumps(content),))
    database.commit()
    database.close()
    status, _ = run(settings, train=False)
    assert len(status.completed) == 4


def test_too_few_examples_for_mmd(tmp_path: Path) -> None:
    settings = small_study(tmp_path, model={"kind": "idle"}, data={"bo_fraction": 0.1}, examples={"per_user": 1})
    with pytest.raises(
        StudyError, match=r"have 6 training examples and MMD compares samples of at least 16; raise data.bo"
    ):
        Study(settings).run()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"encoder": {"file": "nowhere"}}, "there is no ID encoder file nowhere"),
        ({"encoder": {"name": "sasrek"}}, "did you mean sasrec"),
        ({"examples": {"per_user": 1}, "data": {"bo_fraction": 0.1}}, "have 6 training examples"),
    ],
)
def test_a_refused_study_leaves_nothing_behind(tmp_path: Path, wrong: dict, sentence: str) -> None:
    """Errors that only preparation detects leave no study behind, so that corrected settings may begin it."""
    with pytest.raises(StudyError, match=sentence):
        Study(small_study(tmp_path, **merged({"model": {"kind": "idle"}}, wrong))).run()
    status, _ = run(small_study(tmp_path, model={"kind": "idle"}), train=False)
    assert len(status.trials) == 4


def test_a_study_with_trials_is_never_withdrawn(tmp_path: Path) -> None:
    settings = small_study(tmp_path, model={"kind": "idle"})
    run(settings, budget=2, train=False)
    with pytest.raises(StudyError, match=r"began with another encoder.file"):
        Study(small_study(tmp_path, model={"kind": "idle"}, encoder={"file": "nowhere"})).run()
    assert len(Study(settings).status().completed) == 2


def test_examples_reach_training(tmp_path: Path) -> None:
    """RA-Rec's data construction serves DARec too."""
    everything, _ = run(small_study(tmp_path, output=str(tmp_path / "a")), train=False)
    few = small_study(tmp_path, output=str(tmp_path / "b"), examples={"per_user": 1})
    chosen, _ = run(few, train=False)
    assert [t.score for t in chosen.completed[:2]] != [t.score for t in everything.completed[:2]]


def test_parsed_back(kind: str, tmp_path: Path) -> None:
    settings = small_study(tmp_path, model={"kind": kind})
    assert parse_study(settings.model_dump(mode="json")) == settings
    assert Study(settings).space().all_serial == Layout.parse("SSS-SSS")
