"""The public interface at a Python prompt: names, short reprs, progress of a run, and silent imports."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from transformers.utils import logging

from dasearch.bayes import Choices, Surrogate
from dasearch.search.events import Listener
from dasearch.search.progress import heard
from dasearch.search.study import Study
from dasearch.training.recommender import load
from tests.training.studies import small_study

LONGEST = 160  # letters of a repr: two lines of a terminal


@pytest.mark.parametrize("package", ["dasearch", "dasearch.bayes", "dasearch.models"])
def test_dir_shows_the_public_names_alone(package: str) -> None:
    module = import_module(package)
    assert dir(module) == sorted(module.__all__)
    assert all(getattr(module, name) is not None for name in dir(module))
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nonsense'"):
        _ = module.nonsense


def test_imports_say_nothing() -> None:
    code = (
        "import importlib, sys, dasearch, dasearch.bayes, dasearch.models\n"
        "for module in (dasearch, dasearch.bayes, dasearch.models):\n"
        "    [getattr(module, name) for name in dir(module)]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_in_a_notebook_a_run_speaks_on_stderr_as_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # as ipykernel's says
    with heard(None, progress=True) as listener:
        listener.says("loading the language model")
        listener.remarks("study toy goes on")
    assert capsys.readouterr() == ("", "loading the language model\nstudy toy goes on\n")


def test_reprs_are_short_and_a_run_says_how_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = Study(small_study(tmp_path))
    capsys.readouterr()
    status = study.run(budget=4)
    said = capsys.readouterr()
    assert said.out == ""
    assert "Search: validation" in said.err
    assert [line.split()[0] for line in said.err.splitlines() if "/4  " in line] == ["1/4", "2/4", "3/4", "4/4"]
    assert "\r" not in said.err
    assert "\x1b" not in said.err

    assert [proposal.trial_number for proposal in study.proposals()] == [trial.number for trial in status.trials]
    assert status.best is not None
    curve = study.epochs()[f"trial/{status.best.layout}"]
    assert max(epoch.metrics[status.metric] for epoch in curve) == status.best.score

    monkeypatch.setattr(logging, "_tqdm_active", True)  # conftest.py has them off
    monkeypatch.setattr(logging, "enable_progress_bar", lambda: setattr(logging, "_tqdm_active", True))
    recommender = load(study.folder / "model")
    assert capsys.readouterr() == ("", "")
    assert logging.is_progress_bar_enabled()
    surrogate = Surrogate.fit(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([0.0, 1.0]))
    records = (study, status, study.settings, study.space(), study.dataset(), recommender, surrogate)
    for record in records:
        shown = repr(record)
        assert shown.startswith(f"{type(record).__name__}(")
        assert "\n" not in shown
        assert len(shown) - len(str(tmp_path)) <= LONGEST
    assert repr(status).startswith(f"Status({study.settings.name!r}: done, 4 of 4 trials complete, best ")
    assert repr(recommender.layout) == f"Layout('{recommender.layout}')"
    assert repr(Choices((2, 2, 3))) == "Choices(2 of 2, 1 of 3)"


@pytest.mark.parametrize("silent", [{"progress": False}, {"listener": Listener()}], ids=["argument", "listener"])
def test_a_run_can_be_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str], silent: dict[str, object]) -> None:
    study = Study(small_study(tmp_path))
    capsys.readouterr()
    study.run(budget=4, train=False, **silent)
    assert capsys.readouterr() == ("", "")


def test_a_fresh_study_has_a_repr_without_trials(tmp_path: Path) -> None:
    status = Study(small_study(tmp_path)).run(budget=3, train=False, progress=False)
    assert "trials complete, best" in repr(status)
    empty = type(status)(**{**vars(status), "trials": []})
    assert repr(empty) == f"Status({status.name!r}: {status.phase}, 0 of {status.budget} trials complete)"
