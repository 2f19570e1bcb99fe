"""Every public class and function has an example in its docstring, which runs as it stands, wherever it is pasted."""

from __future__ import annotations

import doctest
import inspect
from pathlib import Path

import pytest

import dasearch
import dasearch.bayes
import dasearch.models

PACKAGES = (dasearch, dasearch.bayes, dasearch.models)


def every() -> set[str]:
    return {f"{package.__name__}.{name}" for package in PACKAGES for name in package.__all__}


PUBLIC = {
    f"{package.__name__}.{name}": found
    for package in PACKAGES
    for name in package.__all__
    if inspect.isclass(found := getattr(package, name)) or inspect.isfunction(found)
}


def test_all_that_is_public_is_looked_at() -> None:
    others = {name.rpartition(".")[2] for name in every() - set(PUBLIC)}
    assert others == {"CHOICES", "MODELS", "NAMED", "__version__", "threads"}


@pytest.mark.parametrize("name", PUBLIC)
def test_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = doctest.DocTestFinder(recurse=False).find(PUBLIC[name], name, globs={"__name__": "__main__"})
    assert example.examples, f"{name} has no example; write one in its docstring"
    said: list[str] = []
    runner = doctest.DocTestRunner()
    runner.run(example, out=said.append)
    assert not runner.failures, "".join(said)
    assert not list(tmp_path.iterdir())
