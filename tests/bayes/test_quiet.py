"""Optuna's warnings and logs inside and outside `quietly`."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings

import optuna
import pytest
from optuna._experimental import warn_experimental_argument
from optuna.exceptions import ExperimentalWarning

from dasearch.bayes import quietly


def test_only_the_block_is_quiet() -> None:
    filters, level = list(warnings.filters), optuna.logging.get_verbosity()
    with quietly():
        warn_experimental_argument("any")
    assert (warnings.filters, optuna.logging.get_verbosity()) == (filters, level)
    with pytest.warns(ExperimentalWarning):
        warn_experimental_argument("any")


def test_the_level_comes_back_after_an_error_and_is_never_lowered() -> None:
    before = optuna.logging.get_verbosity()
    try:
        optuna.logging.set_verbosity(logging.ERROR)
        with quietly():
            assert optuna.logging.get_verbosity() == logging.ERROR
        with pytest.raises(KeyError), quietly():
            raise KeyError
        assert optuna.logging.get_verbosity() == logging.ERROR
    finally:
        optuna.logging.set_verbosity(before)


def test_other_warnings_pass_through() -> None:
    with pytest.warns(UserWarning, match="mine"), quietly():
        warnings.warn("mine", stacklevel=1)


def test_creating_and_asking_a_study_prints_nothing() -> None:
    """In a separate process, with Python's default filters and Optuna's default log."""
    program = """
import tempfile, pathlib
import dasearch
from tests.report.stored import NAME, empty_study
from dasearch.bayes import quietly
from dasearch.search.loop import give_back
import optuna
store = empty_study(pathlib.Path(tempfile.mkdtemp()))
storage = store.optuna_storage()
give_back(optuna.load_study(study_name=NAME, storage=storage), [], None)
optuna.create_study()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    said = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(said) == 1, done.stderr
    assert "A new study created in memory" in said[0]
