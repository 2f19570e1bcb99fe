"""README: short enough to be read, and true as far as a test can tell."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from dasearch.cli import app

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
MOST_WORDS = 900


def test_it_is_short() -> None:
    assert len(TEXT.split()) <= MOST_WORDS


@pytest.mark.parametrize("place", sorted(set(re.findall(r"\]\(([^)#:]+)\)", TEXT))))
def test_what_it_links_to_is_there(place: str) -> None:
    assert (ROOT / place).exists()


def test_its_commands_exist() -> None:
    command = get_command(app)
    lines = re.findall(r"^dasearch .*$", TEXT, re.MULTILINE)
    assert len(lines) > 4
    for line in lines:
        name, *rest = shlex.split(re.split(r"   ", line)[0])[1:]
        command.commands[name].make_context(name, rest)  # raises for an unknown or malformed option
