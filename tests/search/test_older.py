"""What 1e032b9 wrote keeps opening: a study interrupted in its third trial, and a trained model."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest

from dasearch.config import parse_study
from dasearch.layout import Layout
from dasearch.layout_file import LayoutFile
from dasearch.search.store import open_store
from dasearch.search.study import Study
from dasearch.training.loop import objective_hash
from dasearch.training.recommender import load
from tests.training.studies import small_study

WRITTEN = Path(__file__).parents[1] / "data_of_1e032b9"


def test_an_older_study_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = {"batch_size": 8}  # as it was written
    settings = small_study(Path(), trial=recipe, final=recipe)
    Path("runs").mkdir()
    Path("runs/dasearch.db").write_bytes(gzip.decompress((WRITTEN / "dasearch.db.gz").read_bytes()))
    before = Study(settings).status()
    assert [trial.state for trial in before.trials].count("complete") == 2
    status = Study(settings).run(train=False)
    assert len(status.completed) == settings.search.budget
    assert {trial.layout for trial in before.completed} <= {trial.layout for trial in status.completed}
    scores = {trial.layout: trial.score for trial in status.completed}
    assert all(scores[trial.layout] == trial.score for trial in before.completed)
    store = open_store(None, "runs", create=False)
    assert all(len(store.epochs("toy", f"trial/{layout}")) == 2 for layout in scores)
    store.close()


def test_an_older_model_opens(tmp_path: Path) -> None:
    folder = shutil.copytree(WRITTEN / "model", tmp_path / "model")
    recommender = load(folder, device="cpu")
    assert LayoutFile.read(folder).parsed() == recommender.layout == Layout.parse("SPS-PPS")
    answer = recommender.recommend(["item1", "item2"], k=3)
    assert len(answer) == 3
    assert [one.score for one in answer] == sorted((one.score for one in answer), reverse=True)


@pytest.mark.parametrize(
    ("kind", "identity"), [("darec", "40978a560660b757"), ("idle", "9956008c00df2b11"), ("ra-rec", "4d4572bd25d9f93b")]
)
def test_a_study_of_printed_readings_keeps_its_identity(kind: str, identity: str) -> None:
    """Else checkpoints and ablations written by 1e032b9 would be trained again."""
    recipe = {"batch_size": 16}
    study = parse_study({"name": "toy", "trial": recipe, "final": recipe, "model": {"kind": kind}})
    assert objective_hash(study) == identity
