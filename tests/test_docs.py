"""Every code block of the documentation runs on a tiny study, or says in its title why it does not and is checked instead."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import yaml

from dasearch import config
from dasearch.cli import run_command
from dasearch.config import StudySettings, changed
from dasearch.search import named, study

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NOT_RUN = "not run here: "
LANGUAGES = ("sh", "python", "yaml", "json", "text")
FENCE = re.compile(r"^( *)```(\S*)[ \t]*(.*)\n((?:.*\n)*?)^\1```[ \t]*$", re.MULTILINE)
TINY = (
    "device=cpu",
    "threads=1",
    "data.max_users=60",
    "backbone.tiny={layers: 2, width: 32, heads: 2, ffn: 64, steps: 10}",
    "encoder.epochs=1",
    "search.candidates=1",
    "search.confirm_seeds=2",
    "comparison.encoders=[]",
    "comparison.variations=[]",
)
AT_MOST = {"search.budget": 3, "trial.epochs": 1, "final.epochs": 1, "comparison.seeds": 1}


class Block(NamedTuple):
    """A fenced block: its language, the title above it, its text, the line it starts on."""

    language: str
    title: str
    body: str
    line: int

    @property
    def runs(self) -> bool:
        return self.language != "text" and not self.title.startswith(NOT_RUN)

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command of a shell block; comments are left out."""
        if self.language != "sh":
            return []
        lines = self.body.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        indent, language, options, body = match.groups()
        title = re.search(r'title="([^"]*)"', options)
        lines = [line.removeprefix(indent) for line in body.splitlines()]
        start = text.count("\n", 0, match.start()) + 1
        found.append(Block(language, title[1] if title else "", "\n".join(lines) + "\n", start))
    return found


def pages() -> dict[str, Path]:
    return {str(path.relative_to(DOCS)): path for path in sorted(DOCS.rglob("*.md"))}


PAGES = pages()
RUNNING = [name for name, path in PAGES.items() if any(block.runs for block in blocks(path))]


def generator() -> ModuleType:
    """docs/generate.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    return generator()


@pytest.fixture(scope="module")
def tiny() -> Iterator[None]:
    """Every study that is loaded becomes one of seconds, whatever the documentation asks of it."""
    load, override = config.load_study, config.overridden

    def shortened(settings: StudySettings) -> StudySettings:
        budget = min(settings.search.budget, AT_MOST["search.budget"])
        return changed(settings, {**AT_MOST, "search.budget": budget}, source="the documentation's test")

    def load_tiny(name: str, overrides: Iterable[str] = ()) -> StudySettings:
        return shortened(load(name, [*TINY, *overrides]))

    with pytest.MonkeyPatch.context() as patch:
        for module in (config, study, named):
            patch.setattr(module, "load_study", load_tiny)
        patch.setattr(named, "overridden", lambda *given, **options: shortened(override(*given, **options)))
        yield


@pytest.fixture(scope="module")
def finished(tiny: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the quickstart was run, made once and copied for each page."""
    folder = tmp_path_factory.mktemp("documentation")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_command(["run"]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNNING)
def test_blocks_run(name: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    shutil.copytree(finished, here)
    monkeypatch.chdir(here)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    variables: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(PAGES[name]):
        if not block.runs:
            continue
        if block.title:
            (here / block.title).parent.mkdir(parents=True, exist_ok=True)
            (here / block.title).write_text(block.body, encoding="utf-8")
        if block.language == "python":
            padded = "\n" * block.line + block.body  # a traceback names the page's own line
            exec(compile(padded, str(PAGES[name]), "exec"), variables)
        for words in block.commands:
            run_words(words)


def run_words(words: list[str]) -> None:
    """One command of a shell block; of pip its extras are looked up and nothing is installed."""
    if words[0] == "dasearch":
        assert run_command(words[1:]) == 0, shlex.join(words)
    elif words[0] == "python":
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, *words[1:]],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"
    else:
        assert words[:2] == ["pip", "install"], f"{shlex.join(words)}: say in the block's title why it is not run"


@pytest.mark.parametrize("name", PAGES)
def test_blocks_are_of_a_kind_that_is_checked(name: str) -> None:
    for block in blocks(PAGES[name]):
        where = f"{name}:{block.line}"
        assert block.language in LANGUAGES, f"{where}: begin the block with one of {', '.join(LANGUAGES)}"
        if block.title.startswith(NOT_RUN):
            assert len(block.title) > len(NOT_RUN), f"{where}: say why the block is not run"
        if block.language == "yaml":
            assert block.title, f"{where}: give the block its file's name as title, so that commands find it"
            yaml.safe_load(block.body)
        if block.language == "json":
            json.loads(block.body)
        if block.language == "python" and not block.runs:
            compile(block.body, where, "exec")


def shell_lines() -> list[tuple[str, list[str]]]:
    return [(f"{name}:{b.line}", words) for name, path in PAGES.items() for b in blocks(path) for words in b.commands]


def own_words(words: list[str]) -> list[str] | None:
    """What follows ``dasearch``, however it is started; None of other commands."""
    for start in (["dasearch"], ["-m", "dasearch"]):
        for at in range(len(words) - len(start) + 1):
            if words[at : at + len(start)] == start and (at == 0 or words[0] in ("torchrun", "python", "nohup")):
                return [word for word in words[at + len(start) :] if word != "&"]
    return None


def test_commands_and_options_exist(generate: ModuleType) -> None:
    known = dict(generate.commands())
    checked = 0
    for where, words in shell_lines():
        rest = own_words(words)
        if rest is None:
            continue
        path = " ".join(rest[:2]) if " ".join(rest[:2]) in known else rest[0]
        assert path in known, f"{where}: there is no command {path}"
        known[path].make_context(path, rest[len(path.split()) :])  # raises for an unknown or malformed option
        checked += 1
    assert checked > 40


def test_settings_of_commands_exist(generate: ModuleType) -> None:
    keys = {one.key for kind in config.STUDIES.values() for one in generate.settings_of(kind)}
    for where, words in shell_lines():
        for option, value in pairwise(words):
            if option == "--set":
                key = value.partition("=")[0]
                known = key in keys or any(one.startswith(f"{key}.") for one in keys)
                assert known or key.rpartition(".")[0] in keys, f"{where}: there is no setting {key}"


def test_extras_of_pip_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for where, words in shell_lines():
        for extras in (re.fullmatch(r"(?:\.|dasearch)\[(.+)\]", word) for word in words if words[0] == "pip"):
            for extra in extras[1].split(",") if extras else ():
                assert extra in project["optional-dependencies"], f"{where}: there is no extra {extra}"


def test_every_setting_is_described(generate: ModuleType) -> None:
    page = generate.settings_page()
    for kind, settings in config.STUDIES.items():
        found = list(generate.settings_of(settings))
        assert len(found) > 60
        for one in found:
            assert one.description, f"{kind}: {one.key} has no description; write one in its model"
            assert f"| `{one.key}` |" in page


def test_settings_say_values_bounds_and_defaults(generate: ModuleType) -> None:
    found = {one.key: one for one in generate.settings_of(config.DARecStudy)}
    assert found["data.bo_fraction"][1:3] == ("number, > 0, ≤ 1", "`0.2`")
    assert found["data.ties"][1:3] == ("`shuffle`, `one`, `keep`", "`shuffle`")
    assert found["trial.epochs"].default == "`3`"
    assert found["final.epochs"].default == "`40`"
    assert found["name"].default == "required"
    assert found["search.batch"].values == "whole number or `auto`"
    assert found["trial.rates"].values == "mapping of `adapters`, `ids`, `cf`, `head` to number"


def test_every_command_and_option_is_on_its_page(generate: ModuleType) -> None:
    page = generate.commands_page()
    for path, command in generate.commands():
        assert f"## dasearch {path}\n" in page
        for parameter in command.params:
            for name in (*parameter.opts, *parameter.secondary_opts):
                assert name == "--help" or parameter.param_type_name == "argument" or f"`{name}`" in page


def test_every_public_name_is_on_a_page(generate: ModuleType) -> None:
    import dasearch
    import dasearch.bayes

    for package in (dasearch, dasearch.bayes):
        page = generate.package_page(package.__name__, "", "")
        assert all(f"::: {package.__name__}.{name}\n" in page for name in package.__all__ if name[0] != "_")
    page = generate.models_page()
    files = [path for path in (ROOT / "dasearch" / "models").rglob("*.py") if path.name != "__init__.py"]
    assert page.count("\n::: ") == len(files)
