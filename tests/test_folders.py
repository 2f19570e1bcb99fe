"""A folder is there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from dasearch.errors import ExportError
from dasearch.folders import Taken, whole_folder, written_beside


def test_a_finished_folder_takes_its_place(tmp_path: Path) -> None:
    with written_beside(tmp_path / "kind" / "key") as unfinished:
        (unfinished / "file").write_text("x")
        assert not (tmp_path / "kind" / "key").exists()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == [
        "kind",
        "kind/key",
        "kind/key/file",
    ]


def interrupted(folder: Path) -> None:
    with written_beside(folder) as unfinished:
        (unfinished / "file").write_text("x")
        raise KeyboardInterrupt


def test_an_interruption_leaves_none(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "key")
    assert not list(tmp_path.iterdir())


def test_the_faster_process_wins(tmp_path: Path) -> None:
    with written_beside(tmp_path / "key") as slower:
        (slower / "file").write_text("slower")
        with written_beside(tmp_path / "key") as faster:
            (faster / "file").write_text("faster")
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
    assert (tmp_path / "key" / "file").read_text() == "faster"


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("a file")
    with pytest.raises(NotADirectoryError), written_beside(tmp_path / "key"):
        pass


def test_the_later_one_may_replace(tmp_path: Path) -> None:
    for text in ("first", "second"):
        with written_beside(tmp_path / "key", Taken.REPLACED) as unfinished:
            (unfinished / text).touch()
    assert [path.name for path in (tmp_path / "key").iterdir()] == ["second"]
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "key").stat().st_mode == (tmp_path / "plain").stat().st_mode  # open to whom folders here are


def overtaken(out: Path) -> None:
    with whole_folder(out, ExportError):
        out.mkdir()
        (out / "file").touch()


def test_a_place_that_fills_meanwhile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be written"):
        overtaken(tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "file"]
