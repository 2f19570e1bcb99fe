"""ID models of the results table: the estimate of their time, and events while they train."""

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from dasearch.config import StudySettings
from dasearch.models.id_encoders import IDEncoder
from dasearch.search import id_models, runner
from dasearch.search.events import CONFIRMATION, FINAL, SEARCH, Finished, Listener, Listeners, Training
from dasearch.search.id_models import EncoderTrainings, encoder_seconds, planned_encoders
from dasearch.search.store import open_store
from dasearch.search.study import Study
from dasearch.search.trainings import Trainings
from dasearch.training.shared import Outcome, Passing
from tests.training.studies import materials, small_settings, small_study

HOUR = 3600.0


class Ears(Listener):
    """Records messages and remaining times, in order."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.lefts: list[float] = []
        self.ended: list[Finished] = []

    def says(self, text: str) -> None:
        self.said.append(text)

    def left(self, seconds: float) -> None:
        self.lefts.append(seconds)

    def finished(self, finished: Finished) -> None:
        self.ended.append(finished)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DASEARCH_CACHE", str(tmp_path / "cache"))


def trained(settings: StudySettings, folder: Path, ears: Listener, seconds: list[float]) -> dict[str, list[IDEncoder]]:
    """The ID encoders of a study's final table, trained in this process."""
    own = settings.model_copy(update={"output": str(folder / "runs")})
    with closing(open_store(None, own.output, create=True)) as store:
        trainings = Trainings(own, Study(own).space(), materials(settings), store, ears)
        encoders = EncoderTrainings(trainings, materials(settings), seconds)
        encoders.begin()
        return encoders.ended()


def test_the_seeds_of_an_encoder_are_timed_once_and_what_is_kept_takes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = small_settings(comparison={"encoders": ["sasrec", "gru4rec"], "seeds": 3})
    ready = materials(settings)
    timed: list[str] = []

    def seconds(recipe: Any, _: Any) -> float:
        timed.append(recipe.name)
        return 7.0 if recipe.name == "sasrec" else 11.0

    monkeypatch.setattr(id_models, "training_seconds", seconds)
    assert [one.recipe.name for one in planned_encoders(settings)] == ["sasrec"] * 3 + ["gru4rec"] * 3
    assert len({one.seed for one in planned_encoders(settings)}) == 3
    assert encoder_seconds(settings, ready) == [7.0] * 3 + [11.0] * 3
    assert timed == ["sasrec", "gru4rec"]
    one_seed = small_settings(comparison={"encoders": ["sasrec"], "seeds": 1})
    trained(one_seed, tmp_path, Ears(), [0.0])
    assert encoder_seconds(settings, ready) == [0.0, 7.0, 7.0] + [11.0] * 3


def test_the_time_left_falls_from_one_id_model_to_the_next_and_ends_at_nothing(tmp_path: Path) -> None:
    settings = small_settings(comparison={"encoders": ["sasrec", "gru4rec"], "seeds": 2})
    ears = Ears()
    found = trained(settings, tmp_path, ears, [HOUR] * 4)
    assert {title: len(own) for title, own in found.items()} == {"SASRec": 2, "GRU4Rec": 2}
    assert ears.lefts == [3 * HOUR, 2 * HOUR, HOUR, 0]
    outcomes = [text for text in ears.said if isinstance(text, Outcome)]
    assert [text[:5] for text in outcomes] == ["1/4  ", "2/4  ", "3/4  ", "4/4  "]
    assert all("validation NDCG@10" in text for text in outcomes)
    assert any(isinstance(text, Passing) for text in ears.said)


def heard(study: Study, **options: Any) -> Ears:
    ears = Ears()
    study.run(listener=Listeners(ears), **options)
    return ears


def test_id_models_count_in_the_time_left_from_the_first_trial_to_the_last_final_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "encoder_seconds", lambda settings, materials: [HOUR] * 2)
    ears = heard(Study(small_study(tmp_path)))
    assert {one.training.phase for one in ears.ended} == {SEARCH, CONFIRMATION, FINAL}
    assert all(one.seconds_left >= 2 * HOUR for one in ears.ended if one.training.phase != FINAL)
    assert ears.ended[-1].seconds_left == 0
    assert ears.said[0] == "reading the study and its data"


def test_what_is_recorded_for_readers_is_the_estimate_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "encoder_seconds", lambda settings, materials: [HOUR] * 2)
    study, recorded = Study(small_study(tmp_path)), list[tuple[str, float | None]]()

    class Reads(Listener):
        def started(self, training: Training) -> None:
            with closing(open_store(None, study.settings.output, create=False)) as store:
                ends = store.progress(study.settings.name).ends
            left = None if ends is None else (ends - datetime.now(UTC)).total_seconds()
            recorded.append((training.phase, left))

    ears = Ears()
    study.run(listener=Listeners(ears, Reads()))
    assert recorded[0] == (SEARCH, None)  # before the first estimate
    before_last = [left or 0.0 for phase, left in recorded if phase == CONFIRMATION]
    assert len(before_last) > 1
    told = [one.seconds_left for one in ears.ended if one.training.phase != FINAL]
    assert all(1.5 * HOUR < left < max(told) for left in before_last)
    with closing(open_store(None, study.settings.output, create=False)) as store:
        assert store.progress(study.settings.name).ends is None


def test_no_final_training_counts_where_none_will_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "encoder_seconds", lambda settings, materials: [HOUR] * 2)
    without = heard(Study(small_study(tmp_path)), train=False).ended
    assert {one.training.phase for one in without} == {SEARCH, CONFIRMATION}
    assert without[-1].seconds_left == 0
    assert all(0 < one.seconds_left < HOUR for one in without[:-1])
