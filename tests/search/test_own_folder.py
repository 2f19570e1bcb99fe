"""Folders of killed processes are taken away by the next; those of living ones and of strangers stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dasearch.search.executors.own_folder import PREFIX, OwnFolder

OWNER = "from dasearch.search.executors.own_folder import OwnFolder; own = OwnFolder(); print(own.path, flush=True); input()"


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def owner() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another process with its own folder."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        path = Path(process.stdout.readline().strip())
        (path / "session").mkdir()
        yield process, path
        process.kill()


def test_a_folder_goes_with_its_lock(temporary: Path) -> None:
    own = OwnFolder()
    assert [path.name for path in temporary.iterdir() if path.is_dir()] == [own.path.name]
    assert own.path.stat().st_mode & 0o777 == 0o700
    own.remove()
    assert not list(temporary.iterdir())


def test_the_next_takes_away_what_a_killed_one_left(temporary: Path, owner: tuple[subprocess.Popen[str], Path]) -> None:
    process, left = owner
    first = OwnFolder()
    assert left.is_dir()  # its owner lives
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    second = OwnFolder()
    assert not left.exists()
    assert first.path.is_dir()
    first.remove()
    second.remove()
    assert not list(temporary.iterdir())


def test_folders_of_others_that_are_named_alike_stay(temporary: Path) -> None:
    stranger = temporary / f"{PREFIX}notes"
    stranger.mkdir()
    linked = temporary / "elsewhere"
    linked.mkdir()
    (temporary / f"{PREFIX}link").symlink_to(linked)
    (temporary / f"{PREFIX}link.lock").touch()
    OwnFolder().remove()
    assert stranger.is_dir()
    assert linked.is_dir()
