"""The results table: its rows, its means and standard deviations, and its records in the store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dasearch.errors import StudyError
from dasearch.layout import Layout
from dasearch.search.events import Listener
from dasearch.search.final import Model, final_rows
from dasearch.search.store import open_store
from dasearch.search.study import Study
from dasearch.training.encoders import EncoderTraining
from dasearch.training.shared import Passing
from tests.training.studies import small_settings, small_study

SERIAL, PARALLEL = Layout.parse("SSS-SSS"), Layout.parse("PPP-PPP")


def test_rows_of_a_table(tmp_path: Path) -> None:
    settings = small_study(tmp_path)
    space = Study(settings).space()
    winner = Layout.parse("SPS-SSS")
    assert final_rows(settings, space, winner) == {
        "winner": Model(winner),
        "all-serial": Model(SERIAL),
        "all-parallel": Model(PARALLEL),
        "llmrec": Model(SERIAL, "llmrec"),
        "darec-base": Model(SERIAL, "darec-base"),
    }
    more = small_study(tmp_path, comparison={"random": True, "variations": ["both-causal"]})
    assert list(final_rows(more, space, winner)) == ["winner", "all-serial", "all-parallel", "random", "both-causal"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"comparison": {"variations": ["frozen"]}},
            "darec has no variation 'frozen'; choose among darec, variation-2",
        ),
        ({"model": {"kind": "idle"}, "comparison": {"variations": ["llmrec"]}}, "idle has no variation 'llmrec'"),
        ({"comparison": {"encoders": ["sasrek"]}}, "there is no ID encoder 'sasrek'; did you mean sasrec"),
    ],
)
def test_unknown_rows_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        small_settings(**changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = Study(small_study(tmp_path_factory.mktemp("final")))
    study.run()
    return study


def test_means_and_spreads_are_those_of_the_trainings(finished: Study) -> None:
    store = open_store(None, finished.settings.output, create=False)
    results, trainings = store.results("toy"), store.final_trainings("toy")
    store.close()
    assert {training.seed for training in trainings} == {0, 1}
    for result in results:
        own = [training.metrics[result.metric] for training in trainings if training.name == result.name]
        if own:
            assert result.value == pytest.approx(np.mean(own))
            assert result.sd == pytest.approx(np.std(own, ddof=1))
            assert result.seeds == 2
    winner = {result.metric: result for result in results if result.name == "winner"}
    for result in results:
        if result.layout == winner[result.metric].layout:  # the winner under each of its names
            assert result.lead is None
            assert result.p is None
            continue
        assert result.lead is not None
        assert result.lead.mean == pytest.approx(winner[result.metric].value - result.value)
        assert result.lead.low <= result.lead.mean <= result.lead.high
        assert 0 <= result.p <= 1
    seeds = {result.name: result.seeds for result in results}
    assert (seeds["GRU4Rec"], seeds["NCF"], seeds["Markov"]) == (2, 1, 1)


def test_seeds_differ_and_variations_are_smaller(finished: Study) -> None:
    store = open_store(None, finished.settings.output, create=False)
    trainings = {(training.name, training.seed): training for training in store.final_trainings("toy")}
    store.close()
    assert trainings["all-serial", 0].metrics != trainings["all-serial", 1].metrics
    assert trainings["llmrec", 0].parameters < trainings["darec-base", 0].parameters
    assert trainings["darec-base", 0].parameters < trainings["all-serial", 0].parameters
    assert trainings["llmrec", 0].layout is None


class Stopped(Exception):
    """The study was killed, for all it knows."""


class Encoders(Listener):
    """Hears epochs of ID encoders, and breaks off after so many."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.epochs: list[str] = []
        self.said: list[str] = []
        self.stop_after = stop_after

    def says(self, text: str) -> None:
        self.said.append(text)
        if isinstance(text, Passing) and "ID encoder" in text:
            self.epochs.append(text)
            if len(self.epochs) == self.stop_after:
                raise Stopped


def compared(folder: Path) -> Study:
    """A study whose table has an ID encoder of three epochs and two seeds, and little else."""
    encoder = {"width": 8, "epochs": 3, "patience": 3, "history": 6}
    comparison = {"seeds": 2, "encoders": ["gru4rec"], "encoder": encoder, "variations": []}
    short = {"epochs": 1}
    return Study(small_study(folder, comparison=comparison, trial=short, final=short, search={"budget": 3}))


def test_an_interrupted_encoder_goes_on_from_its_last_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASEARCH_CACHE", str(tmp_path / "first"))
    whole = Encoders()
    expected = compared(tmp_path / "whole").run(listener=whole)
    monkeypatch.setenv("DASEARCH_CACHE", str(tmp_path / "second"))
    first, second = Encoders(stop_after=4), Encoders()
    with pytest.raises(Stopped):
        compared(tmp_path / "stopped").run(listener=first)
    found = compared(tmp_path / "stopped").run(listener=second)
    assert len(whole.epochs) == 6
    assert [*first.epochs, *second.epochs] == whole.epochs
    assert found.results == expected.results
    assert not (tmp_path / "stopped/runs/toy/checkpoints").exists()


def test_an_encoder_that_fails_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASEARCH_CACHE", str(tmp_path / "cache"))

    def broken(self: EncoderTraining) -> None:
        raise ValueError("no such thing")

    monkeypatch.setattr(EncoderTraining, "epoch", broken)
    ears = Encoders()
    status = compared(tmp_path).run(listener=ears)
    assert "final without GRU4Rec, seed 0: ValueError: no such thing" in ears.said
    assert "GRU4Rec" not in {result.name for result in status.results}
    assert status.phase == "done"
