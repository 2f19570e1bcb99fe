"""The time estimate of a dry run."""

from pathlib import Path

import pytest

from dasearch.search.estimate import estimate
from dasearch.search.study import Study
from tests.training.studies import ENCODER, small_study


def test_an_estimate_counts_what_will_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASEARCH_CACHE", str(tmp_path / "cache"))
    study = Study(
        small_study(
            tmp_path, model={"encoder_scores": 0.5}, encoder=ENCODER, comparison={"encoders": ["gru4rec", "fdsa"]}
        )
    )
    whole, short = estimate(study), estimate(study, train=False)
    for found in (whole, short):
        assert min(found.preparation_seconds, found.search_seconds, found.confirmation_seconds) > 0
        assert found.seconds == pytest.approx(
            found.preparation_seconds
            + found.search_seconds
            + found.confirmation_seconds
            + found.final_seconds
            + found.id_model_seconds
        )
    assert min(whole.final_seconds, whole.id_model_seconds) > 0
    assert (short.final_seconds, short.id_model_seconds) == (0, 0)
    study.run()
    after = estimate(study)
    assert (after.preparation_seconds, after.id_model_seconds) == (0, 0)
    assert after.final_seconds > 0
