"""Optuna's own tools open a study's database: optuna-dashboard and `optuna.visualization`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.request import urlopen
from wsgiref.simple_server import WSGIRequestHandler, make_server

import optuna
import optuna_dashboard
import pytest
from plotly.graph_objects import Figure

from dasearch.config import StudySettings
from dasearch.search import objective
from dasearch.search.events import SEARCH, Listener, Training
from dasearch.search.store import open_store
from dasearch.search.study import Status, Study
from dasearch.training.progress import Epoch
from tests.training.studies import small_study

SITES = [f"layer0{layer}.{site}" for layer in (1, 2) for site in ("causal", "context", "recommendation")]
BROKEN, BUDGET = 2, 4  # the second layout is interrupted after an epoch and then breaks: one failed trial, one pruned


class Interrupts(Listener):
    def epoch(self, training: Training, epoch: Epoch) -> None:
        if training.phase == SEARCH and training.index == BROKEN:
            raise KeyboardInterrupt


def breaks_first() -> Callable[..., Any]:
    """Training whose first call raises an error."""
    calls, train = count(1), objective.train_together

    def broken(*args: Any, **keywords: Any) -> Any:
        if next(calls) == 1:
            raise ValueError("no such thing")
        return train(*args, **keywords)

    return broken


class Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not printed."""


@contextmanager
def dashboard(storage: str) -> Iterator[Callable[[str], Any]]:
    """optuna-dashboard on a free port of loopback; yields a function that fetches the JSON of an address."""
    server = make_server("127.0.0.1", 0, optuna_dashboard.wsgi(storage), handler_class=Quiet)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()

    def ask(address: str) -> Any:
        with urlopen(f"http://127.0.0.1:{server.server_port}{address}", timeout=60) as answer:
            return json.loads(answer.read())

    try:
        yield ask
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def url(settings: StudySettings) -> str:
    return f"sqlite:///{settings.output}/dasearch.db"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> StudySettings:
    """A study with four complete trials, a failed and a pruned one."""
    settings = small_study(tmp_path_factory.mktemp("ecosystem"), search={"batch": 1})
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with pytest.raises(KeyboardInterrupt):
            Study(settings).run(listener=Interrupts())
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(objective, "train_together", breaks_first())
            Study(settings).run(train=False)
    told = [str(one.message) for one in heard]
    assert not [text for text in told if "xperimental" in text or "Heartbeat" in text]
    return settings


@pytest.fixture(scope="module")
def status(settings: StudySettings) -> Status:
    return Study(settings).status()


@pytest.fixture(scope="module")
def study(settings: StudySettings) -> optuna.Study:
    return optuna.load_study(study_name=settings.name, storage=url(settings))


def test_dashboard_shows_our_numbers(settings: StudySettings, status: Status) -> None:
    with dashboard(url(settings)) as ask:
        (listed,) = ask("/api/studies")["study_summaries"]
        assert (listed["study_name"], listed["directions"]) == ("toy", ["maximize"])
        found = ask(f"/api/studies/{listed['study_id']}")
        importances = ask(f"/api/studies/{listed['study_id']}/param_importances")["param_importances"]
        plots = [ask(f"/api/studies/{listed['study_id']}/plot/{name}") for name in ("slice", "timeline", "edf")]
    assert [trial["state"].lower() for trial in found["trials"]] == [trial.state for trial in status.trials]
    assert [t["values"][0] for t in found["trials"] if t["state"] == "Complete"] == [t.score for t in status.completed]
    assert status.best is not None
    assert [trial["number"] for trial in found["best_trials"]] == [status.best.number]
    assert found["objective_names"] == ["MRR"]
    assert sorted(one["name"] for one in found["intersection_search_space"]) == SITES
    assert sorted(one["name"] for one in importances[0]) == SITES
    assert all(plot["data"] for plot in plots)


def test_dashboard_shows_each_trials_layout_and_curve(settings: StudySettings, status: Status) -> None:
    with dashboard(url(settings)) as ask:
        trials = ask("/api/studies/1")["trials"]
    store = open_store(None, settings.output, create=False)
    space = Study(settings).space()
    for shown, ours in zip(trials, status.trials, strict=True):
        assert space.decode({p["name"]: p["param_external_value"] for p in shown["params"]}) == ours.layout
        curve = {one["step"]: one["value"] for one in shown["intermediate_values"]}
        if ours.state == "complete":
            epochs = store.epochs("toy", f"trial/{ours.layout}")
            assert curve == {epoch.number: epoch.metrics["MRR"] for epoch in epochs}
            attributes = {one["key"]: one["value"] for one in shown["user_attrs"]}
            assert float(attributes["seconds"]) == ours.seconds
    store.close()


def test_dashboard_watches_a_study_that_runs(tmp_path: Path) -> None:
    settings = small_study(tmp_path, search={"batch": 1})
    seen: list[tuple[list[str], list[int]]] = []

    class Watches(Listener):
        def epoch(self, training: Training, epoch: Epoch) -> None:
            with dashboard(url(settings)) as ask:
                trials = ask("/api/studies/1")["trials"]
            seen.append(([t["state"] for t in trials], [one["step"] for one in trials[-1]["intermediate_values"]]))
            if len(seen) == 4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Study(settings).run(listener=Watches())
    assert seen[:2] == [(["Running"], [0]), (["Running"], [0, 1])]
    assert seen[2:] == [(["Complete", "Running"], [0]), (["Complete", "Running"], [0, 1])]


def test_history_curves_and_timeline_have_a_point_a_trial(study: optuna.Study, status: Status) -> None:
    scores = [trial.score for trial in status.completed if trial.score is not None]
    assert status.best is not None
    history = optuna.visualization.plot_optimization_history(study)
    assert list(history.data[0].y) == scores
    assert history.data[1].y[-1] == status.best.score == max(scores)
    curves = optuna.visualization.plot_intermediate_values(study)
    epochs = {trial.number: 1 if trial.state == "pruned" else 2 for trial in status.trials if trial.state != "fail"}
    assert {line.name: len(line.y) for line in curves.data} == {f"Trial{number}": n for number, n in epochs.items()}
    timeline = optuna.visualization.plot_timeline(study)
    assert {bars.name.lower(): len(bars.y) for bars in timeline.data if bars.y is not None and len(bars.y)} == {
        "complete": BUDGET,
        "fail": 1,
        "pruned": 1,
    }


def test_importances_and_coordinates_are_of_the_sites(study: optuna.Study) -> None:
    importances = optuna.visualization.plot_param_importances(study)
    assert sorted(importances.data[0].y) == SITES
    assert sum(importances.data[0].x) == pytest.approx(1)
    coordinates = optuna.visualization.plot_parallel_coordinate(study)
    lines = [line for line in coordinates.data if line.mode == "lines"]
    assert [len(line.y) for line in lines] == [1 + len(SITES)] * BUDGET


@pytest.mark.parametrize("name", ["plot_slice", "plot_contour", "plot_edf", "plot_rank"])
def test_the_other_figures_are_drawn(study: optuna.Study, name: str) -> None:
    options = {"params": SITES[:2]} if name in ("plot_contour", "plot_rank") else {}
    figure = getattr(optuna.visualization, name)(study, **options)
    assert isinstance(figure, Figure)
    assert figure.data
