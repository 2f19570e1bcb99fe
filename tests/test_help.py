"""The help in a terminal of 80 columns, and other information of the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from dasearch.cli import app, run_command
from dasearch.version import __version__

ROOT = Path(__file__).parents[1]
COLUMNS = 80
PAGES = """
from dasearch.cli import run_command
for words in {pages!r}:
    print("PAGE", *words, flush=True)
    assert run_command([*words, "--help"]) == 0
"""


def commands(group: Any, *words: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and group by the words that name it."""
    yield words, group
    for name, one in getattr(group, "commands", {}).items():
        yield from commands(one, *words, name)


def in_terminal(code: str) -> str:
    """What a process prints in a pseudo-terminal of 80 columns."""
    fcntl, pty, struct, termios = (pytest.importorskip(name) for name in ("fcntl", "pty", "struct", "termios"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "TERMINAL_WIDTH")}
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, **streams) as process:
        os.close(theirs)
        found = b""
        while chunk := read(ours):
            found += chunk
    os.close(ours)
    assert process.returncode == 0, found.decode()
    return found.decode().replace("\r\n", "\n")


def read(terminal: int) -> bytes:
    """What comes next; nothing at its end, of which Linux says that it is an error."""
    try:
        return os.read(terminal, 1 << 16)
    except OSError:
        return b""


def closed(text: str) -> str:
    """Without the places where lines may be broken."""
    return "".join(text.split())


def test_no_sentence_of_the_help_is_cut_off_in_80_columns() -> None:
    every = dict(commands(typer.main.get_command(app)))
    assert {("run",), ("data", "stats"), ("bench", "samplers")} <= set(every)
    _, *pages = in_terminal(PAGES.format(pages=list(every))).split("PAGE")
    assert len(pages) == len(every)
    for (words, command), page in zip(every.items(), pages, strict=True):
        assert max(map(len, page.splitlines())) <= COLUMNS, words
        for paragraph in command.help.split("\n\n"):
            assert closed(paragraph) in closed(page), words
        for parameter in command.params:
            assert closed(parameter.help) in closed(page), (words, parameter.name)
        for name, one in getattr(command, "commands", {}).items():
            sentence = one.help.split("\n\n")[0]
            assert closed(name + sentence[: sentence.find(". ") + 1 or None]) in closed(page), (words, name)
        assert "[[" not in page


@pytest.mark.parametrize("group", [[], ["data"], ["bench"]])
def test_a_group_alone_prints_its_help(group: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(group) == 0
    alone = capsys.readouterr()
    assert run_command([*group, "--help"]) == 0
    assert alone.out == capsys.readouterr().out
    assert "Commands:" in alone.out
    assert not alone.err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--version"]) == 0
    assert capsys.readouterr().out == f"dasearch {__version__}\n"


def test_a_wrong_use_is_none_of_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--verison"]) == 2
    found = capsys.readouterr()
    assert not found.out
    assert "No such option: --verison" in found.err


def test_as_a_module_and_before_anything_heavy_is_imported() -> None:
    code = (
        "import sys, runpy\n"
        "sys.argv = ['dasearch', '--version']\n"
        "try:\n    runpy.run_module('dasearch', run_name='__main__')\n"
        "except SystemExit as done:\n    assert not done.code\n"
        "assert not {'torch', 'optuna', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"dasearch {__version__}\n"), done.stderr
