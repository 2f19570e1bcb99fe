"""Ablations: the variants, their shared inputs, resumption after an interruption, and their table."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from dasearch.config import changed
from dasearch.data import LeaveOneOut
from dasearch.errors import StudyError
from dasearch.layout import Layout
from dasearch.report.ablation import ablation_figure, ablation_record, ablation_table
from dasearch.search import objective
from dasearch.search.ablation import WHOLE, Ablation, load_variants
from dasearch.search.confirmation import t_interval
from dasearch.search.events import Finished, Listener
from dasearch.search.executors import Workers
from dasearch.search.study import Study
from tests.training.studies import small_study

PLAN = {
    "model": "darec",
    "groups": {
        "parts": {"LLMRec": {"model.variation": "llmrec"}, "all serial": {"layout": "all-serial"}},
        "r": {"r = 2": {"space.replace_every": 2}},
        "weights": {"no alignment": {"losses.align": 0}},
    },
}


class Ears(Listener):
    def __init__(self, *, stop_after: int | None = None) -> None:
        self.labels: list[str] = []
        self.said: list[str] = []
        self.stop_after = stop_after

    def says(self, text: str) -> None:
        self.said.append(text)

    def remarks(self, text: str) -> None:
        self.said.append(text)

    def finished(self, finished: Finished) -> None:
        self.labels.append(finished.training.label)
        if len(self.labels) == self.stop_after:
            raise KeyboardInterrupt


@pytest.fixture
def plan(tmp_path: Path) -> str:
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(PLAN, sort_keys=False))
    return str(path)


def study(tmp_path: Path, **changes: object) -> Study:
    return Study(small_study(tmp_path, **changes))


def test_variants_of_a_layout(tmp_path: Path, plan: str) -> None:
    found = {variant.name: variant for variant in load_variants(study(tmp_path), plan, layout="SPS-PPS")}
    assert list(found) == [WHOLE, "LLMRec", "all serial", "r = 2", "no alignment"]
    assert {str(found[name].layout) for name in (WHOLE, "LLMRec", "no alignment")} == {"SPS-PPS"}
    assert found["all serial"].layout == Layout.parse("SSS-SSS")
    assert found["r = 2"].layout == Layout.parse("PPS")  # the second layer's own group
    assert found["no alignment"].settings.losses.align == 0  # type: ignore[attr-defined]
    everywhere = study(tmp_path, space={"replace_every": 2})
    denser = load_variants(everywhere, _with(plan, {"r": {"r = 1": {"space.replace_every": 1}}}), layout="PPS")
    assert denser[1].layout == Layout.parse("SSS-PPS")  # the study leaves the first layer plain


def _with(plan: str, groups: dict[str, object]) -> str:
    path = Path(plan).with_name("other.yaml")
    path.write_text(yaml.safe_dump({"model": "darec", "groups": groups}))
    return str(path)


@pytest.mark.parametrize(
    ("kind", "file"), [("darec", None), ("idle", None), ("ra-rec", None), ("darec", "darec-recipes")]
)
def test_the_shipped_files_fit_their_models(tmp_path: Path, kind: str, file: str | None) -> None:
    changes = {"model": {"kind": kind}} if kind != "darec" else {}
    found = load_variants(study(tmp_path, **changes, backbone={"tiny": {"layers": 4}}), file)
    assert len(found) > 3
    assert len({variant.title for variant in found}) == len(found)


def test_scores_are_those_of_the_trainings_and_twins_are_trained_once(tmp_path: Path, plan: str) -> None:
    own, ears = study(tmp_path), Ears()
    scored = Ablation(own, load_variants(own, plan), 2, listener=ears).run()
    assert len(ears.labels) == 8  # all serial is the study itself
    assert ears.labels[:2] == [f"{WHOLE}, seed 1", f"{WHOLE}, seed 2"]
    assert ears.said.count("finding hard negatives") == 1  # nothing that preparation reads differs
    by_name = {score.variant.name: score for score in scored}
    assert by_name["all serial"].metrics == by_name[WHOLE].metrics
    assert by_name["all serial"].gain.mean == 0
    assert by_name["LLMRec"].parameters < by_name["r = 2"].parameters < by_name[WHOLE].parameters
    again = Ears()
    assert Ablation(own, load_variants(own, plan), 2, listener=again).run() == scored
    assert again.labels == []


@pytest.mark.slow
def test_workers_find_what_one_process_finds(tmp_path: Path, plan: str) -> None:
    """To the last digit; with a variant that prepares other data, and one that trains in another way."""
    if find_spec("ray") is None:  # not imported here: the executor does so, with its token
        pytest.skip("workers run on Ray, which is not installed")
    groups = {
        "parts": PLAN["groups"]["parts"],  # type: ignore[index]
        "r": PLAN["groups"]["r"],  # type: ignore[index]
        "data": {"other Data_BO": {"data.bo_fraction": 0.6}, "fewer items a row": {"data.max_items": 4}},
    }
    wanted = _with(plan, groups)
    one, many = (study(tmp_path, output=str(tmp_path / name), search={"batch": 1}) for name in ("one", "many"))
    expected = Ablation(one, load_variants(one, wanted), 1, short=True).run()
    ears = Ears()
    found = Ablation(many, load_variants(many, wanted), 1, short=True, listener=ears, workers=Workers(2, cpus=1)).run()
    assert ablation_record(found) == ablation_record(expected)
    assert "starting the workers" in ears.said
    assert not (many.folder / "prepared").exists()
    assert not (many.folder / "ablation-checkpoints").exists()


def test_what_fails_ends_the_ablation_when_the_others_are_kept(
    tmp_path: Path, plan: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, original = study(tmp_path, search={"batch": 1}), objective.train_together

    def breaks(settings: Any, *given: Any, **options: Any) -> Any:
        if settings.losses.align == 0:
            raise ValueError("no such thing")
        return original(settings, *given, **options)

    reordered = _with(plan, {"weights": PLAN["groups"]["weights"], "r": PLAN["groups"]["r"]})  # type: ignore[index]
    monkeypatch.setattr(objective, "train_together", breaks)
    with pytest.raises(ValueError, match="no such thing"):
        Ablation(own, load_variants(own, reordered), 1).run()
    monkeypatch.undo()
    ears = Ears()
    Ablation(own, load_variants(own, reordered), 1, listener=ears).run()
    assert ears.labels == ["weights: no alignment, seed 1"]


def test_gains_are_paired_by_seed(tmp_path: Path, plan: str) -> None:
    own = study(tmp_path)
    three = Ablation(own, load_variants(own, plan, only=["weights"]), 3).run()
    one = [Ablation(own, load_variants(own, plan, only=["weights"]), n).run() for n in (1, 2, 3)]
    assert one[2] == three
    whole, other = three
    assert whole.gain is None
    assert other.gain.mean == pytest.approx(whole.metrics["MRR"].mean - other.metrics["MRR"].mean)
    sums = [[n * score.metrics["MRR"].mean for score in found] for n, found in enumerate(one, start=1)]
    singles = [sums[0], *([b - a for a, b in zip(sums[n - 1], sums[n], strict=True)] for n in (1, 2))]
    expected = t_interval([mine - theirs for mine, theirs in singles])
    assert tuple(other.gain) == pytest.approx(tuple(expected))


@pytest.mark.parametrize("stop_after", [1, 2])
def test_goes_on_where_it_was_interrupted(tmp_path: Path, plan: str, stop_after: int) -> None:
    """Also where the first remaining training is of a variation, which alone would prepare less than the others need."""
    own, other = study(tmp_path), study(tmp_path, output=str(tmp_path / "elsewhere"))
    with pytest.raises(KeyboardInterrupt):
        Ablation(own, load_variants(own, plan), 1, listener=Ears(stop_after=stop_after)).run()
    ears = Ears()
    resumed = Ablation(own, load_variants(own, plan), 1, listener=ears).run()
    assert len(ears.labels) == 4 - stop_after
    assert [said for said in ears.said if "resuming" in said] == [
        f"resuming at training {stop_after + 1} of 4; {stop_after} done"
    ]
    assert ablation_record(resumed) == ablation_record(Ablation(other, load_variants(other, plan), 1).run())
    assert not (own.folder / "ablation-checkpoints").exists()


def test_another_recipe_is_another_ablation(tmp_path: Path, plan: str) -> None:
    own, changed = study(tmp_path), study(tmp_path, final={"epochs": 1})
    first = Ablation(own, load_variants(own, plan, only=["weights"]), 1).run()
    ears = Ears()
    second = Ablation(changed, load_variants(changed, plan, only=["weights"]), 1, listener=ears).run()
    assert len(ears.labels) == 2
    assert first[0].metrics != second[0].metrics
    short = Ablation(own, load_variants(own, plan, only=["weights"]), 1, short=True).run()
    assert short[0].metrics not in (first[0].metrics, second[0].metrics)


def test_a_variant_may_be_trained_in_another_way(tmp_path: Path, plan: str) -> None:
    """It is a separate training, not the study itself under another name."""
    own, ears = study(tmp_path), Ears()
    longer = _with(plan, {"length": {"three epochs": {"final.epochs": 3}, "trials alone": {"trial.epochs": 3}}})
    scored = Ablation(own, load_variants(own, longer), 1, listener=ears).run()
    assert ears.labels == [
        f"{WHOLE}, seed 1",
        "length: three epochs, seed 1",
    ]  # how trials are trained says nothing here
    assert scored[1].metrics != scored[0].metrics == scored[2].metrics
    short = load_variants(own, longer, short=True)
    assert [variant.recipe is None for variant in short] == [True, True, False]


def test_the_test_split_stays_closed(tmp_path: Path, plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LeaveOneOut, "open_test", lambda self: pytest.fail("the test split was opened"))
    own = study(tmp_path)
    Ablation(own, load_variants(own, plan, only=["weights"]), 1).run()


@pytest.mark.parametrize(
    ("content", "only", "message"),
    [
        ({"model": "idle", "groups": {}}, [], "the ablations are of idle and the study of darec"),
        ({"model": "darec", "groups": {"a": {"b": {"model.bottelneck": 4}}}}, [], "did you mean bottleneck"),
        ({"model": "darec"}, [], "groups: field required"),
        (PLAN, ["nothing"], "there is no group 'nothing' of ablations; choose among parts; r; weights"),
    ],
)
def test_what_is_refused(tmp_path: Path, content: object, only: list[str], message: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(StudyError, match=message):
        load_variants(study(tmp_path), str(path), only=only)


def test_unknown_names_and_parts(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="there is no ablation file 'darek'; did you mean darec"):
        load_variants(study(tmp_path), "darek")
    with pytest.raises(StudyError, match="is already a variation"):
        load_variants(study(tmp_path, model={"variation": "llmrec"}))


def test_table_and_figure_say_the_scores(tmp_path: Path, plan: str) -> None:
    own = study(tmp_path)
    scored = Ablation(own, load_variants(own, plan), 2).run()
    wide, narrow = ablation_table(scored, 160), ablation_table(scored, 60)
    assert wide.row_count == 5 + 3  # a heading a group
    headings = [column.header for column in wide.columns]
    assert headings == ["", "MRR", "Recall@10", "NDCG@10", "parameters", "gain in MRR"]
    assert [column.header for column in narrow.columns] == ["", "MRR", "gain in MRR"]
    figure = ablation_figure(scored, title="toy")
    assert len(figure.data) == 3  # a panel a group
    assert list(figure.data[0].y) == [WHOLE, "LLMRec", "all serial"]
    assert figure.data[0].x[1] == scored[1].metrics["MRR"].mean
    half = scored[1].metrics["MRR"].high - scored[1].metrics["MRR"].mean
    assert figure.data[0].error_x.array[1] == pytest.approx(half)
    _in_the_metric_that_the_study_chooses_by(own, plan)


def _in_the_metric_that_the_study_chooses_by(own: Study, plan: str) -> None:
    chosen = Study(changed(own.settings, {"search.objective": "ndcg@10"}, source="--set"))
    ears = Ears()
    scored = Ablation(chosen, load_variants(chosen, plan), 2, listener=ears).run()
    assert ears.labels == []  # the same trainings
    assert [column.header for column in ablation_table(scored, 60).columns] == ["", "NDCG@10", "gain in NDCG@10"]
    gain, whole, other = scored[1].gain, *(score.metrics["NDCG@10"].mean for score in scored[:2])
    assert gain is not None
    assert gain.mean == pytest.approx(whole - other)
    assert ablation_figure(scored, title="toy").data[0].x[0] == whole
    assert {record["metric"] for record in ablation_record(scored)} == {"NDCG@10"}
