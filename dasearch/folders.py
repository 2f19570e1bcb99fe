"""Folders and files written atomically: filled under a temporary name, then renamed.

A symbolic link is kept and its target is written; a device or pipe is written into. Permissions follow the umask, whichever
library wrote the file (safetensors' default is owner-only); a file that is replaced keeps its mode.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

from dasearch.errors import WrongUse, first_line

READ = 2**20  # bytes per read
SHOWN = 80  # characters shown of an unusable name
READERS = 0o666  # a new file's mode before the umask
DESCRIPTORS = ("/dev/fd/", "/dev/std", "/proc/")


class IfExists(StrEnum):
    """How a new folder treats an existing one at its path."""

    KEPT = "kept"  # the existing one is kept and the new one removed: another process was faster
    REPLACED = "replaced"
    REFUSED = "refused"  # raises OSError, unless the existing one is empty


@contextmanager
def written_beside(folder: Path, taken: IfExists = IfExists.KEPT) -> Iterator[Path]:
    """A folder to fill, renamed to ``folder`` at the end, so that an interruption leaves nothing."""
    folder = _behind_links(folder)
    with unfinished_in(folder.parent, folder.name) as unfinished:
        yield unfinished
        put(unfinished, folder, taken)


@contextmanager
def unfinished_in(parent: Path, name: str) -> Iterator[Path]:
    """A folder to fill and to `put` in ``parent``; removed at the end if it was not."""
    parent.mkdir(parents=True, exist_ok=True)
    unfinished = parent / unfinished_name(name, uuid.uuid4().hex[:8])
    unfinished.mkdir()
    try:
        yield unfinished
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def unfinished_name(name: str, mark: str) -> str:
    """Name of the temporary folder for a file or folder ``name``; ``mark`` distinguishes writers."""
    return f".{name}.unfinished-{mark}"


def remove(path: Path) -> None:
    """Remove a file, or a folder with its content, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def put(unfinished: Path, folder: Path, taken: IfExists) -> None:
    """Rename a filled folder to its final path."""
    _open_to_readers(unfinished)
    if taken is IfExists.REPLACED and folder.exists():
        shutil.rmtree(folder)
    try:
        unfinished.rename(folder)
    except OSError:
        if taken is not IfExists.KEPT or not folder.is_dir():
            raise


def _open_to_readers(folder: Path) -> None:
    """Give all files in a folder the umask's mode, derived from the folder's own, because reading the umask changes it."""
    mode = folder.stat().st_mode & READERS
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_mode & READERS != mode:
            path.chmod(mode)


def _behind_links(path: Path) -> Path:
    return Path(os.path.realpath(path))


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to fill, of the same name, that replaces ``path`` at the end.

    Raises:
        OSError: if the path cannot be written; it is then unchanged, unless it is a device or pipe.
    """
    if _is_stream(path):
        with tempfile.TemporaryDirectory() as folder:
            unfinished = Path(folder) / path.name
            yield unfinished
            with unfinished.open("rb") as content, path.open("wb") as stream:
                shutil.copyfileobj(content, stream)
        return
    real = _behind_links(path)
    with unfinished_in(real.parent, real.name) as folder:
        unfinished = folder / path.name
        yield unfinished
        _open_to_readers(folder)
        if real.exists():
            unfinished.chmod(real.stat().st_mode)
        unfinished.replace(real)


def write_text(path: Path, text: str) -> None:
    """Write a text as a `whole_file`, in UTF-8, with the same errors."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def _is_stream(path: Path) -> bool:
    """Whether a path is a device, a pipe, or the name of an open descriptor."""
    return (path.exists() and not path.is_file()) or str(path.absolute()).startswith(DESCRIPTORS)


def place_of(name: str | Path, error: type[WrongUse]) -> Path:
    """The path that a user names, existing or not; ``~`` is the user's home folder.

    Raises:
        WrongUse: as ``error``, for an invalid name, or a path that is not accessible.
    """
    place = Path(os.path.expanduser(name))
    try:
        place.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as problem:
        raise error(
            f"{str(name)[:SHOWN]!r} cannot be a file or folder ({first_line(problem)[:SHOWN]}); name another"
        ) from None
    return place


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file, or of a folder's files in order of name."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(file.relative_to(path).as_posix().encode() if path.is_dir() else b"")
            with file.open("rb") as content:
                while part := content.read(READ):
                    digest.update(part)
    return digest.hexdigest()


def require_free(out: Path, error: type[WrongUse]) -> None:
    """Reject a path that is not empty, before any work is done."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise error(f"{out} exists and is not an empty folder; nothing was written: name another one")


@contextmanager
def whole_folder(out: Path, error: type[WrongUse]) -> Iterator[Path]:
    """`written_beside` for a path that a user named.

    Raises:
        WrongUse: as ``error``, if ``out`` is not empty or cannot be written; ``out`` is then unchanged.
    """
    require_free(out, error)
    try:
        with written_beside(out.absolute(), IfExists.REFUSED) as unfinished:
            yield unfinished
    except OSError as problem:
        raise error(f"{out} cannot be written ({problem.strerror}); choose another place") from None
