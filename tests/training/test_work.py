"""Threads of a training, from the rows that it really makes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dasearch import threads
from dasearch.data import LeaveOneOut
from dasearch.search.study import Study
from dasearch.training.loop import objective_hash
from dasearch.training.preparation import prepare_study
from dasearch.training.work import step_work, training_threads
from tests.training.studies import small_study


@pytest.mark.parametrize("kind", ["darec", "idle", "ra-rec"])
def test_work_is_that_of_the_rows(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study(small_study(tmp_path, model={"kind": kind}))
    settings, dataset = study.settings, study.dataset()
    materials = prepare_study(settings, dataset, LeaveOneOut(dataset).development)
    generator = torch.Generator().manual_seed(0)
    batches = list(materials.method.batches(materials, settings.trial.batch_size, generator))
    tokens = sum(int(batch.rows.real.sum()) for batch in batches) / sum(len(batch.users) for batch in batches)
    expected = settings.trial.batch_size * tokens * settings.backbone.tiny.width
    assert step_work(materials, settings.trial) == pytest.approx(expected, rel=0.5)  # examples cut histories anywhere
    four = step_work(materials, settings.trial, candidates=4)
    assert four == pytest.approx(4 * step_work(materials, settings.trial), abs=4)

    monkeypatch.setattr(threads, "WORK_OF_A_THREAD", four // 2)
    monkeypatch.setattr(threads, "cores", lambda: 8)
    with threads.using(8):
        assert training_threads(settings, materials, settings.trial) == 1
        assert training_threads(settings, materials, settings.trial, candidates=4) == 2
        assert training_threads(settings, materials, settings.trial, candidates=400) == 8
        asked = settings.model_copy(update={"threads": 3})
        assert training_threads(asked, materials, settings.trial, candidates=4) == 3


def test_threads_are_no_part_of_the_objective(tmp_path: Path) -> None:
    """They may change of a study that has begun, as its device may."""
    settings = small_study(tmp_path)
    assert objective_hash(settings.model_copy(update={"threads": 2})) == objective_hash(settings)
