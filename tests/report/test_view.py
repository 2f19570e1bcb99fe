"""A study as it is read from its database."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import optuna
import pytest

from dasearch.bayes import curve_mean
from dasearch.errors import LayoutError, StoreError, WrongUse
from dasearch.layout import PLACEMENTS, Layout
from dasearch.report.figures import FIGURES
from dasearch.report.learned import FEWEST, MOST, learn
from dasearch.report.theme import LIGHT
from dasearch.report.view import State, read_view
from dasearch.search.confirmation import by_posterior_mean
from dasearch.search.domain import Domain, Point
from dasearch.search.store import RETRY, Confirmation, open_store
from dasearch.search.study import status
from tests.report.stored import (
    NAME,
    empty_study,
    evaluate,
    evaluate_elsewhere,
    large_study,
    later_space,
    optuna_study,
    proposal,
)
from tests.report.views import LAYOUTS, SCORES, complete, finished, later_trainings, space, view
from tests.search.older import before_versions

NAMES = [choice.name for choice in PLACEMENTS]


def test_trials_are_read_as_optuna_reads_them(tmp_path: Path) -> None:
    store = empty_study(tmp_path)
    evaluate(store, "SPS-PPS", 0.3)
    study = optuna_study(store)
    choice = dict.fromkeys(space().free, optuna.distributions.CategoricalDistribution(NAMES))
    lost = study.ask(choice)
    lost.report(0.1, 0)
    lost.report(float("nan"), 1)
    study.tell(lost, state=optuna.trial.TrialState.FAIL)
    RETRY(study, study.trials[1])
    study.ask()  # takes the retry, and has no parameter yet
    study.enqueue_trial(space().encode(Layout.parse("PPP-SSS")))
    found, theirs = store.trials(NAME), optuna_study(store).trials
    assert [t.state for t in found] == ["complete", "fail", "running", "waiting"]
    for ours, other in zip(found, theirs, strict=True):
        assert (ours.number, ours.state, ours.score) == (other.number, other.state.name.lower(), other.value)
        assert ours.attributes == other.user_attrs
        assert ours.curve == {step: value for step, value in other.intermediate_values.items() if value == value}
        for mine, stored in ((ours.started, other.datetime_start), (ours.ended, other.datetime_complete)):
            assert (mine is None) == (stored is None)
            if mine is not None and stored is not None:
                assert abs(mine.astimezone().timestamp() - stored.astimezone().timestamp()) < 0.001
    assert found[0].params == theirs[0].params
    assert [t.retry_of for t in found] == [None, None, 1, None]
    assert space().decode(found[3].params) == Layout.parse("PPP-SSS")
    store.close()


def test_everything_of_a_trial(tmp_path: Path) -> None:
    store = empty_study(tmp_path)
    for layout, score in zip(LAYOUTS, SCORES, strict=True):
        evaluate(store, layout, score)
    store.add_proposal(NAME, proposal(0, Layout.parse(LAYOUTS[0])))
    store.add_confirmation(NAME, Confirmation(Layout.parse(LAYOUTS[0]), "all-serial", 1, {"MRR": 0.2}, 3.0))
    found = read_view(store, NAME)
    store.close()
    trial = found.trials[2]
    assert (str(trial.layout), trial.score, trial.seconds, trial.parameters) == ("SPS-PPS", 0.13, 8.5, 1234)
    assert trial.curve == pytest.approx({0: 0.11, 1: 0.13})
    assert [epoch.losses for epoch in trial.epochs] == [{"total": 3.0}, {"total": 2.0}]
    assert trial.surrogate_target == pytest.approx(0.12)
    assert trial.started is not None
    assert trial.ended is not None
    assert timedelta() < trial.ended - trial.started < timedelta(minutes=5)
    assert abs(trial.ended - found.read) < timedelta(minutes=5)  # both are UTC
    assert found.best is found.trials[3]
    assert found.winner == Layout.parse(LAYOUTS[0])  # what is confirmed stands above what scored best
    assert [p.trial_number for p in found.proposals] == [0]
    assert found.versions == {"dasearch": "0.1.0"}
    with pytest.raises(WrongUse, match="has no trial 9; its trials are 0 to 4"):
        found.trial(9)


def test_times_of_trainings_after_the_search(tmp_path: Path) -> None:
    store = empty_study(tmp_path)
    first, second, final = later_trainings()
    versions = [store.progress(NAME).version]

    def changed() -> bool:
        versions.append(store.progress(NAME).version)
        return versions[-1] != versions[-2]

    for training in (first, second):
        assert training.ended is not None
        store.begin_training(NAME, training._replace(began=training.began - timedelta(hours=1)))
        assert changed()
        store.begin_training(NAME, training)  # goes on after it was interrupted
        store.end_training(NAME, training.run, training.ended)
        assert changed()
    store.begin_training(NAME, first._replace(began=final.began))  # ended before: its checkpoint is read
    store.end_training(NAME, first.run, final.began)
    assert not changed()
    store.begin_training(NAME, final)
    assert read_view(store, NAME).later_trainings == later_trainings()
    store.close()
    before_versions(tmp_path / "dasearch.db", without=("dasearch_training",))
    old = open_store(None, str(tmp_path), create=False)
    assert read_view(old, NAME).later_trainings == ()
    assert old.progress(NAME).phase == "search"
    old.close()
    again = open_store(None, str(tmp_path), create=True)
    again.begin_training(NAME, final)
    assert read_view(again, NAME).later_trainings == (final,)
    again.close()


def test_a_training_that_failed_may_begin_again(tmp_path: Path) -> None:
    """It runs again then; the workers of both attempts are known."""
    store = empty_study(tmp_path)
    first, _, _ = later_trainings()
    again = first.began + timedelta(minutes=1)
    store.begin_training(NAME, first)
    store.end_training(NAME, first.run, first.began, workers=["a:1", "b:2"], reason="its worker was lost")
    failed = first._replace(ended=first.began, workers=("a:1", "b:2"), reason="its worker was lost")
    assert store.later_trainings(NAME) == [failed]
    store.begin_training(NAME, first._replace(began=again))
    assert store.later_trainings(NAME) == [failed._replace(began=again, ended=None, reason=None)]
    store.end_training(NAME, first.run, again, workers=["b:3"])
    assert store.later_trainings(NAME) == [first._replace(began=again, ended=again, workers=("a:1", "b:2", "b:3"))]
    store.close()


def test_the_signal_is_the_searchs(tmp_path: Path) -> None:
    store = empty_study(tmp_path)
    evaluate(store, "SPS-PPS", 0.3)
    (frozen,), (trial,) = optuna_study(store).trials, read_view(store, NAME).trials
    assert trial.surrogate_target == pytest.approx(curve_mean(frozen))
    store.close()


def test_no_such_study(tmp_path: Path) -> None:
    store = empty_study(tmp_path)
    with pytest.raises(StoreError, match=r"there is no study 'nothing' in .*dasearch\.db; studies there: toy"):
        read_view(store, "nothing")
    store.close()


def test_reasons(tmp_path: Path) -> None:
    store = empty_study(tmp_path)
    study = optuna_study(store)
    choice = dict.fromkeys(space().free, optuna.distributions.CategoricalDistribution(NAMES))
    broken, diverged, known, lost = (study.ask(choice) for _ in range(4))
    broken.set_user_attr("broken", True)
    study.tell(broken, state=optuna.trial.TrialState.FAIL)
    diverged.set_user_attr("reason", "the loss is nan")
    study.tell(diverged, state=optuna.trial.TrialState.PRUNED)
    study.tell(known, state=optuna.trial.TrialState.PRUNED)
    study.tell(lost, state=optuna.trial.TrialState.FAIL)
    study.tell(study.ask(), state=optuna.trial.TrialState.FAIL)
    reasons = [trial.reason for trial in read_view(store, NAME).trials]
    store.close()
    assert reasons == [
        "its training raised an error",
        "the loss is nan",
        "its layout was evaluated before",
        "it was interrupted, or its process was lost",
        "no layout was left to propose, or its process ended before one was",
    ]


def test_choices_from_elsewhere_make_no_layout(tmp_path: Path) -> None:
    store = empty_study(tmp_path)
    evaluate_elsewhere(store)
    found, told = read_view(store, NAME), status(store, NAME)
    with pytest.raises(ValueError, match="does not support dynamic value space"):  # Optuna's own guard
        evaluate(store, "SPS-PPS", 0.3)
    store.close()
    assert [t.layout for t in found.trials] == [t.layout for t in told.trials] == [None]
    assert found.trials[0].reason == "layer01.causal is 'none', which is not a choice of this search space"
    assert (found.completed, found.best) == ((), None)
    with pytest.raises(LayoutError, match=r"layer01\.causal is 'none'; give one of serial, parallel"):
        space().decode(dict.fromkeys(space().free, "none"))


def test_a_search_space_of_a_later_version(tmp_path: Path) -> None:
    store = empty_study(tmp_path)
    later_space(tmp_path)
    begun = r"it began with dasearch 0\.1\.0, which can"
    sentence = rf"the search space of study 'toy' cannot be read \(there is no choice 'sideways'.*\); {begun}"
    for read in (read_view, status):
        with pytest.raises(StoreError, match=sentence):
            read(store, NAME)
    assert store.progress(NAME).phase == "search"
    store.close()


def test_top_is_by_posterior_mean() -> None:
    study = finished()
    evaluated = [trial for trial in study.completed if trial.layout and trial.surrogate_target]
    signals = {Point(trial.layout): trial.surrogate_target for trial in evaluated}
    assert study.top(3) == by_posterior_mean(study.domain, signals)[:3]
    few = view([complete(n, Layout.parse(t), s) for n, (t, s) in enumerate(zip(LAYOUTS[:3], SCORES, strict=False))])
    assert few.learned is None
    assert [str(layout) for layout in few.top(2)] == ["SPS-PPS", "SSS-SSS"]


def test_learning_needs_a_few_evaluations_and_takes_a_share_of_many() -> None:
    signals = {Point(Layout.from_bits([int(b) for b in f"{n:06b}"], sites=3)): 0.1 * (n % 7) for n in range(64)}
    few = dict(list(signals.items())[: FEWEST - 1])
    assert learn(Domain(space(), {}), few) is None
    found = learn(Domain(space(), {}), signals)
    assert found is not None
    assert (found.fitted, found.evaluated) == (64, 64)
    assert len(found.main) == 6
    many = {Point(Layout.from_bits([int(b) for b in f"{n:09b}"], sites=3)): 0.1 * (n % 2) for n in range(512)}
    shared = learn(Domain(space(3), {}), many)
    assert shared is not None
    assert (shared.fitted, shared.evaluated, len(shared.predicted)) == (MOST, 512, 512)
    assert shared.main[-1].mean == pytest.approx(0.1, abs=0.02)  # the last bit decides


def test_a_thousand_trials_of_thirty_layers(tmp_path: Path) -> None:
    store = large_study(tmp_path, trials=1000, layers=30)
    found = read_view(store, NAME)
    store.close()
    assert len(found.completed) == 1000
    assert len(found.trials[999].epochs) == 3
    for drawing in FIGURES.values():
        assert drawing.draw(found, LIGHT).to_json(), drawing.title
    assert found.trials[0].state is State.COMPLETE
