"""Warm start: the file, its formats, mapping to another depth, whole studies."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from dasearch.errors import LayoutError, StoreError, StudyError
from dasearch.layout import Layout
from dasearch.layout_file import LayoutFile, Metric
from dasearch.search.prior import TrialsFile, prior_trials, read_trials, write_trials
from dasearch.search.store import open_store
from dasearch.search.study import Study
from tests.report.stored import empty_study, evaluate, give_up
from tests.search.older import before_versions
from tests.search.test_study import Ears, outcome, run, space
from tests.training.studies import small_study

DEEP = {"SSS-SSS-SPS-SPS": 0.30, "PPS-PPS-SSS-SSS": 0.10, "SSP-SSP-PSS-PSS": 0.20, "SSS-SSS-PPP-PPP": 0.25}

SCORED = {"layout": "SSS-SSS-SPS-SPS", "score": 0.3}


def record(scores: dict[str, float] = DEEP, **changes: Any) -> dict[str, Any]:
    """A `trials.json` of a DARec study, four layers by default."""
    layers = len(next(iter(scores)).split("-"))
    return {
        "schema_version": "1.0",
        "model": "darec",
        "sites": ["causal", "context", "recommendation"],
        "layers": layers,
        "replaced": list(range(1, layers + 1)),
        "metric": "MRR",
        "study": "deep",
        "dataset": "other purchases",
        "seed": 3,
        "trials": [{"layout": layout, "score": score} for layout, score in scores.items()],
        **changes,
    }


def written(folder: Path, content: dict[str, Any], name: str = "trials.json") -> str:
    path = folder / name
    path.write_text(json.dumps(content))
    return str(path)


def pairs(found: Sequence[Any]) -> list[tuple[str, float]]:
    return [(str(layout), value) for layout, value, _ in found]


def test_a_study_writes_what_another_reads(tmp_path: Path) -> None:
    with closing(empty_study(tmp_path, source="toy purchases")) as store:
        for layout, score in (("SPS-PPS", 0.4), ("SSS-SSS", 0.1)):
            evaluate(store, layout, score)
        path = write_trials(store, "toy", tmp_path / "new" / "trials.json")
    content = json.loads(path.read_text())
    mean = pytest.approx(0.39)  # of .38 and .40
    assert content["trials"][0] == {"layout": "SPS-PPS", "score": 0.4, "signal": mean}
    assert {k: content[k] for k in ("schema_version", "model", "layers", "replaced", "dataset", "seed")} == {
        "schema_version": "1.4",
        "model": "darec",
        "layers": 2,
        "replaced": [1, 2],
        "dataset": "toy purchases",
        "seed": 0,
    }
    database = str(tmp_path / "dasearch.db")
    assert read_trials(str(path)) == read_trials(database) == read_trials(f"{database}:toy")
    here = prior_trials(str(path), space(2))
    assert pairs(here) == [("SPS-PPS", pytest.approx(0.39)), ("SSS-SSS", pytest.approx(0.09))]
    assert here[0].source == "study toy (toy purchases, 2 layers, seed 0)"


def test_a_database_of_several_studies_wants_a_name(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with closing(empty_study(tmp_path, name=name)) as store:
            evaluate(store, "SPS-PPS", 0.4, name)
    database = tmp_path / "dasearch.db"
    with pytest.raises(
        LayoutError, match=r"does not hold exactly one study; name it as in .*db:STUDY \(studies there: one, two\)"
    ):
        read_trials(str(database))
    assert read_trials(f"{database}:two").study == "two"
    with pytest.raises(StoreError, match="there is no study 'tow'"):
        read_trials(f"{database}:tow")
    empty_study(tmp_path, name="fresh").close()
    with pytest.raises(LayoutError, match="study 'fresh' has no complete trial yet; run it first"):
        read_trials(f"{database}:fresh")


def layout_file(**changes: Any) -> LayoutFile:
    fields: dict[str, Any] = {
        "model": "both-causal",
        "backbone": "tiny-opt",
        "layers": 4,
        "replaced": [2, 4],
        "sites": ["causal", "context", "recommendation"],
        "layout": "SPS-PPS",
        "metric": Metric(name="MRR", value=0.3),
        "study": "a",
        "seed": 1,
        "versions": {},
    }
    return LayoutFile(**{**fields, **changes})


def test_a_trained_models_layout_is_one_trial(tmp_path: Path) -> None:
    path = tmp_path / "layout.json"
    path.write_text(layout_file().model_dump_json())
    for source in (path, tmp_path):
        assert pairs(prior_trials(str(source), space(4))) == [("SPS-SPS-PPS-PPS", 0.3)]
    path.write_text(layout_file(metric=Metric(name="MRR", value=0.3, split="test")).model_dump_json())
    assert pairs(prior_trials(str(path), space(4))) == [("SPS-SPS-PPS-PPS", 0.0)]  # no search reads a test score
    path.write_text(layout_file(metric=None).model_dump_json())
    with pytest.raises(LayoutError, match="has no metric, so its layout has no score"):
        read_trials(str(path))


def test_layouts_are_carried_to_the_depth_and_into_the_space(tmp_path: Path) -> None:
    source = written(tmp_path, record())
    assert [layout for layout, _ in pairs(prior_trials(source, space(2)))] == [
        "SSS-SPS",
        "PPS-SSS",
        "SSP-PSS",
        "SSS-PPP",
    ]
    held = prior_trials(source, space(2, fixed={"layer02.*": "parallel"}))
    assert [layout for layout, _ in pairs(held)] == ["SSS-PPP", "PPS-PPP", "SSP-PPP", "SSS-PPP"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": "idle", "sites": ["injection", "refinement", "alignment"]}, "give --warm-start a study of darec"),
        ({"sites": ["a", "b", "c"]}, r"holds layouts of darec \[a, b, c\] and this study searches those of darec"),
        ({"schema_version": "2.0"}, "has schema version 2.0 and this dasearch reads 1.x; update dasearch"),
        ({"colour": "red"}, "version 1.0 has no field 'colour'; remove it"),
        ({"trials": []}, "trials: List should have at least 1 item"),
        (
            {"trials": [{"layout": "SPS", "score": 1}]},
            "the layout SPS has 1 layers of 3 sites and the model has 4 of 3",
        ),
        ({"trials": [{"layout": "SPX", "score": 1}]}, "a layout is written with S, P and -"),
        ({"trials": [{"layout": "SSS", "score": "nan"}]}, "trials.0.score: Input should be a finite number"),
        ({"replaced": [1, 2, 4, 3]}, "replaced must ascend from 1 to at most 4"),
        ({"replaced": [2, 3, 4, 5]}, "replaced must ascend"),
    ],
)
def test_what_is_refused(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(LayoutError, match=sentence):
        prior_trials(written(tmp_path, record(**changes)), space(2))


def test_a_study_writes_what_failed_and_not_where_it_was_trained(tmp_path: Path) -> None:
    """The file is made to be passed on: no machine's name is in it."""
    with closing(empty_study(tmp_path)) as store:
        evaluate(store, "SPS-PPS", 0.4, workers=["a-machine:1", "b-machine:2"])
        give_up(store, "PPP-PPP", "its worker was lost, 3 times", ["a-machine:1", "b-machine:2", "b-machine:3"])
        path = write_trials(store, "toy", tmp_path / "trials.json")
    content = json.loads(path.read_text())
    assert "machine" not in path.read_text()
    assert content["failed"] == [{"layout": "PPP-PPP", "reason": "its worker was lost, 3 times"}]
    jsonschema.validate(content, TrialsFile.json_schema())
    assert pairs(prior_trials(str(path), space(2))) == [("SPS-PPS", pytest.approx(0.39))]


def test_a_file_that_says_where_its_trials_were_trained_is_read(tmp_path: Path) -> None:
    """As version 1.3 wrote it; it is not written any more."""
    failed = [{"layout": "PPP-PPP", "reason": "diverged", "workers": ["a:1"]}]
    source = record(schema_version="1.3", trials=[{**SCORED, "workers": ["a:1", "b:2"]}], failed=failed)
    found = read_trials(written(tmp_path, source))
    assert found.trials[0].workers == ["a:1", "b:2"]
    assert "a:1" not in found.text()


def test_a_newer_minor_version_is_read(tmp_path: Path) -> None:
    source = written(tmp_path, record(schema_version="1.7", colour="red", trials=[{**SCORED, "colour": "red"}]))
    assert len(read_trials(source).trials) == 1


def test_what_is_no_file_of_trials_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    for name in ("notes.txt", written(tmp_path, {"a": 1}, "a.json")):
        with pytest.raises(
            LayoutError, match=r"is not a trials.json, layout.json or study database; check --warm-start"
        ):
            read_trials(str(tmp_path / name))
    with pytest.raises(
        LayoutError, match=r"nowhere.json cannot be read \(No such file or directory\); check --warm-start"
    ):
        read_trials(str(tmp_path / "nowhere.json"))


def test_its_json_schema_describes_the_file() -> None:
    schema = TrialsFile.json_schema()
    jsonschema.validate(json.loads(TrialsFile.model_validate(record()).text()), schema)
    jsonschema.validate({**record(), "schema_version": "1.4", "colour": "red"}, schema)
    for wrong in ({"model": "sasrec"}, {"trials": []}, {"replaced": "all"}, {"schema_version": "2.0"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**record(), **wrong}, schema)


def test_a_warm_study_begins_with_the_others_best(tmp_path: Path) -> None:
    settings = small_study(tmp_path, search={"startup": None, "batch": 2})
    ears = Ears()
    said: list[str] = []
    ears.says = said.append  # type: ignore[method-assign]
    status = Study(settings).run(train=False, listener=ears, warm_start=written(tmp_path, record()))
    assert [str(t.layout) for t in status.trials[:2]] == ["SSS-SPS", "SSS-SSS"]
    assert len(status.trials) == len(status.completed) == 4  # the other study's trials are none of this one's
    assert len({t.layout for t in status.trials}) == 4
    assert "warm start: study deep (other purchases, 4 layers, seed 3), layouts: 4" in said
    with closing(open_store(None, settings.output, create=False)) as store:
        assert [p.source for p in store.proposals("toy")] == ["warm start", "startup"] + ["reparameterization"] * 2
        assert [value for _, value in pairs(store.prior("toy"))] == list(DEEP.values())


def test_interrupted_a_warm_study_ends_the_same(tmp_path: Path) -> None:
    source = written(tmp_path, record())
    whole, _ = run(small_study(tmp_path, output=str(tmp_path / "whole")), train=False, warm_start=source)

    class Interrupts(Ears):
        def epoch(self, training: Any, epoch: Any) -> None:
            if training.phase == "search" and training.index == 3:
                raise KeyboardInterrupt

    settings = small_study(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        Study(settings).run(train=False, listener=Interrupts(), warm_start=source)
    Path(source).unlink()  # the study has its own copy
    resumed, _ = run(settings, train=False)
    assert outcome(resumed) == outcome(whole)
    cold, _ = run(small_study(tmp_path, output=str(tmp_path / "cold")), train=False)
    assert outcome(cold) != outcome(whole)


def test_a_begun_study_keeps_the_warm_start_it_has_or_has_not(tmp_path: Path) -> None:
    source = written(tmp_path, record())
    settings = small_study(tmp_path)
    run(settings, budget=1, train=False, warm_start=source)
    moved = written(tmp_path, record(), "moved.json")
    assert len(run(settings, budget=2, train=False, warm_start=moved)[0].completed) == 2  # the same under another name
    other = written(tmp_path, record({"SPS-SSS": 0.1}), "other.json")
    with pytest.raises(StudyError, match=r"began with another warm start, study deep \(.*\); remove --warm-start"):
        run(settings, budget=3, train=False, warm_start=other)
    cold = small_study(tmp_path, name="cold")
    run(cold, budget=1, train=False)
    with pytest.raises(
        StudyError, match="study 'cold' began without a warm start; remove --warm-start to resume it, or"
    ):
        run(cold, budget=2, train=False, warm_start=source)


def test_a_refused_file_leaves_no_study_behind(tmp_path: Path) -> None:
    source = written(tmp_path, record(model="idle", sites=["injection", "refinement", "alignment"]))
    with pytest.raises(LayoutError, match="holds layouts of idle"):
        run(small_study(tmp_path), warm_start=source)
    assert not (tmp_path / "runs").exists()


def test_a_database_without_the_table_stays_readable(tmp_path: Path) -> None:
    with closing(empty_study(tmp_path)) as store:
        evaluate(store, "SPS-PPS", 0.4)
    before_versions(tmp_path / "dasearch.db", without=("dasearch_prior",))
    with closing(open_store(None, str(tmp_path), create=False)) as store:
        assert store.prior("toy") == []
        assert store.trials("toy")[0].score == 0.4


def test_withdrawn_with_its_study(tmp_path: Path) -> None:
    source = written(tmp_path, record())
    prior = prior_trials(source, space(2))
    with closing(empty_study(tmp_path)) as store:
        fields = store.begun("toy")
        kept = {k: getattr(fields, k) for k in ("settings", "space", "space_hash", "dataset", "versions")}
        store.begin("warm", **kept, prior=prior)
        assert store.prior("warm") == prior
        store.delete_study("warm")
        assert store.study_names() == ["toy"]
    with sqlite3.connect(tmp_path / "dasearch.db") as connection:
        assert connection.execute("select count(*) from dasearch_prior").fetchone() == (0,)


def test_layouts_of_equal_depth_come_back_as_they_are(tmp_path: Path) -> None:
    source = written(tmp_path, record({"SPS-PPS": 0.1, "PPP-SSS": 0.3}))
    assert pairs(prior_trials(source, space(2))) == [("SPS-PPS", 0.1), ("PPP-SSS", 0.3)]
    assert prior_trials(source, space(2))[1].layout == Layout.parse("PPP-SSS")
