"""Folders and files are written atomically."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dasearch.errors import ExportError
from dasearch.folders import IfExists, whole_file, whole_folder, write_text, written_beside
from dasearch.training.checkpoints import save_tensors


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
        with written_beside(tmp_path / "key", IfExists.REPLACED) as unfinished:
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


def write(path: Path, text: str) -> None:
    with whole_file(path) as unfinished:
        unfinished.write_text(text)


def test_a_file_is_written_through_links(tmp_path: Path) -> None:
    real, link, second = tmp_path / "there" / "real.txt", tmp_path / "link.txt", tmp_path / "second.txt"
    link.symlink_to(real)
    second.symlink_to("link.txt")
    for text in ("the target is not there yet", "replaced"):
        write(second, text)
        assert real.read_text() == text
        assert [path.name for path in real.parent.iterdir()] == ["real.txt"]
    assert link.is_symlink()
    assert second.is_symlink()


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def mask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> set[int]:
    return {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}


def weights(path: Path) -> None:
    save_file({"x": torch.zeros(2)}, path)


@pytest.mark.parametrize("taken", [IfExists.KEPT, IfExists.REPLACED])
def test_the_umask_says_who_reads_a_folder(tmp_path: Path, mask: int, taken: IfExists) -> None:
    with written_beside(tmp_path / "model", taken) as unfinished:
        (unfinished / "deeper").mkdir()
        weights(unfinished / "deeper" / "model.safetensors")
        (unfinished / "config.json").touch()
    assert modes(tmp_path) == {0o666 & ~mask}


def test_the_umask_says_who_reads_a_file(tmp_path: Path, mask: int) -> None:
    with whole_file(tmp_path / "model.safetensors") as unfinished:
        weights(unfinished)
    save_tensors(tmp_path / "there" / "checkpoint.safetensors", {"x": torch.zeros(2)}, {})
    write_text(tmp_path / "page.html", "text")
    assert modes(tmp_path) == {0o666 & ~mask}


def test_a_file_that_is_replaced_keeps_its_mode(tmp_path: Path, mask: int) -> None:
    write_text(tmp_path / "private.html", "old")
    (tmp_path / "private.html").chmod(0o600)
    write_text(tmp_path / "private.html", "new")
    assert (tmp_path / "private.html").read_text() == "new"
    assert modes(tmp_path) == {0o600}


def interrupted_file(path: Path) -> None:
    with whole_file(path) as unfinished:
        unfinished.write_text("half")
        raise KeyboardInterrupt


def test_an_interrupted_file_leaves_the_old_one(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "old")
    with pytest.raises(KeyboardInterrupt):
        interrupted_file(tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_pipe_and_a_device_stay_what_they_are(tmp_path: Path) -> None:
    pipe, link, heard = tmp_path / "pipe", tmp_path / "null.html", list[str]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: heard.append(pipe.read_text()))
    reader.start()
    write(pipe, "through the pipe")
    reader.join(10)
    assert heard == ["through the pipe"]
    assert pipe.is_fifo()
    link.symlink_to(os.devnull)
    write(link, "gone")
    assert link.is_symlink()
    assert Path(os.devnull).is_char_device()


def test_a_descriptor_is_written_where_it_is_open(tmp_path: Path) -> None:
    with (tmp_path / "redirected").open("w+") as file:
        write(Path(f"/dev/fd/{file.fileno()}"), "as of a shell")
        file.seek(0)
        assert file.read() == "as of a shell"


@pytest.mark.parametrize("taken", list(IfExists))
def test_a_folder_is_written_through_a_link(tmp_path: Path, taken: IfExists) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    with written_beside(link, taken) as unfinished:
        (unfinished / "file").touch()
    assert link.is_symlink()
    assert [path.name for path in real.iterdir()] == ["file"]
    with whole_folder(tmp_path / "link" / "new", ExportError) as unfinished:
        (unfinished / "file").touch()
    assert (real / "new" / "file").is_file()
