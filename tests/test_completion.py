"""Shell completion, requested as by bash."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_help import ROOT


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with two studies, one of them with a trained model, and a study file."""
    for study in ("alpha", "Beta"):
        (tmp_path / "runs" / study).mkdir(parents=True)
    (tmp_path / "runs" / "alpha" / "model").mkdir()
    (tmp_path / "runs" / "alpha" / "model" / "config.json").touch()
    (tmp_path / "runs" / "dasearch.db").touch()
    (tmp_path / "other" / "gamma").mkdir(parents=True)
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "notes.txt").touch()
    return tmp_path


def asked(folder: Path, *words: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """``dasearch`` with the environment of a completion request."""
    return subprocess.run(
        [sys.executable, "-m", "dasearch", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        capture_output=True,
        text=True,
    )


def completed(folder: Path, line: str) -> list[str]:
    """The completions of a line whose last word is being typed."""
    words = line.split(" ")
    shell = {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1), "_DASEARCH_COMPLETE": "complete_bash"}
    found = asked(folder, environment=shell)
    assert not found.stderr
    return found.stdout.split()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("dasearch re", ["resume", "report", "recommend"]),
        ("dasearch status ", ["Beta", "alpha"]),
        ("dasearch status B", ["Beta"]),
        ("dasearch run al", ["alpha"]),
        ("dasearch run quickstart-", ["quickstart-paper"]),
        ("dasearch run min", ["mine.yaml"]),
        ("dasearch evaluate ", ["alpha"]),
        ("dasearch report --output other ", ["gamma"]),
        ("dasearch run othe", ["other/"]),
        ("dasearch train --layout b", ["best"]),
        ("dasearch run --no-t", ["--no-train"]),
    ],
)
def test_completion(here: Path, line: str, words: list[str]) -> None:
    assert completed(here, line) == words


def test_the_script_of_a_shell_asks_for_dasearch(here: Path) -> None:
    shown = asked(here, environment={"_DASEARCH_COMPLETE": "source_bash"})
    assert shown.returncode == 0
    assert "_DASEARCH_COMPLETE=complete_bash" in shown.stdout
    assert shown.stdout.rstrip().endswith("dasearch")
