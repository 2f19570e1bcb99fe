"""Command lines of every command, with options that do not fit; data sets stay closed, so that nothing is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

import click
import pytest
import typer
from hypothesis import strategies as st

from dasearch.cli import app, run_command
from dasearch.errors import DataError
from tests.fuzz.holding import TIMES, fuzz, require_sentence
from tests.fuzz.mutations import NUMBERS, WORDS

OPEN = ("--help",)
USELESS = {"dashboard", "samplers"}  # they serve and race on any options that fit


def commands(group: Any, before: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every command by the words that call it."""
    found = {}
    for name, command in group.commands.items():
        inner = commands(command, (*before, name)) if hasattr(command, "commands") else {(*before, name): command}
        found |= inner
    return found


COMMANDS = {words: one for words, one in commands(typer.main.get_command(app)).items() if words[-1] not in USELESS}
VALUES = st.one_of(
    WORDS.filter(lambda word: "\0" not in word and "\ud800" not in word),  # which no command line can hold
    NUMBERS.map(str),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6),
    st.sampled_from(
        ["quickstart", "nowhere", "file.json", "folder", "seed=1", "trial.epochs=x", "layout", "hf", "md", "1,2"]
    ),
)


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    """A command with some of its options, right and wrong, and words in between."""
    words = draw(st.sampled_from(sorted(COMMANDS)))
    options = [one.opts[-1] for one in COMMANDS[words].params if one.opts and one.opts[-1].startswith("-")]
    found = [*words]
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["option", "option", "flag", "word", "misspelt"]))
        if kind == "word":
            found.append(draw(VALUES))
            continue
        option = draw(st.sampled_from(options)) if options else "--x"
        found.append(option if kind != "misspelt" else option[:-1])
        if kind == "option":
            found.append(draw(VALUES))
    return found


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> NoReturn:
        raise DataError("data sets stay closed here; nothing is trained")

    monkeypatch.setattr("dasearch.search.study.Study.dataset", refuse)
    monkeypatch.setattr("dasearch.search.study.load_dataset", refuse)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.json").write_text(json.dumps({"schema_version": "1.2", "layout": 3}))
    (tmp_path / "folder").mkdir()


@TIMES
@pytest.mark.usefixtures("closed")
def test_command_lines(times: int, capsys: pytest.CaptureFixture[str]) -> None:
    def check(line: list[str]) -> bool:
        code = run_command(line)
        said = capsys.readouterr()
        assert code in (0, 2), (code, said.err)
        if code:
            require_sentence(said.err)
            assert said.err.startswith("dasearch: ") or "Usage" in said.err, said.err
        return code == 0

    fuzz(check, 250 * times, line=lines())


def test_every_command_is_there() -> None:
    assert {words[0] for words in COMMANDS} >= {
        "run",
        "resume",
        "status",
        "report",
        "train",
        "evaluate",
        "recommend",
        "export",
        "data",
    }
    assert all(isinstance(one, click.Command) or hasattr(one, "params") for one in COMMANDS.values())
