"""Folders and files that are there whole or not at all: filled beside their place, then renamed.

A symbolic link stays and what it points to is written; a device or pipe is written into. Who may read them is for the umask to
say, whichever library wrote them (safetensors' are the owner's alone); a file that is replaced keeps its mode.
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

READ = 2**20  # bytes of a file at once
SHOWN = 80  # letters of a name that cannot be used
READERS = 0o666  # a new file's mode before the umask
DESCRIPTORS = ("/dev/fd/", "/dev/std", "/proc/")


class IfExists(StrEnum):
    """What becomes of a folder that is there already when another is finished."""

    KEPT = "kept"  # and what was filled goes: another process was faster
    REPLACED = "replaced"
    REFUSED = "refused"  # with an OSError, unless it is empty


@contextmanager
def written_beside(folder: Path, taken: IfExists = IfExists.KEPT) -> Iterator[Path]:
    """A folder to fill, renamed to ``folder`` at the end, so that an interruption leaves none."""
    folder = _behind_links(folder)
    with unfinished_in(folder.parent, folder.name) as unfinished:
        yield unfinished
        put(unfinished, folder, taken)


@contextmanager
def unfinished_in(parent: Path, name: str) -> Iterator[Path]:
    """A folder to fill and to `put` at its place in ``parent``; gone at the end where it was not."""
    parent.mkdir(parents=True, exist_ok=True)
    unfinished = parent / unfinished_name(name, uuid.uuid4().hex[:8])
    unfinished.mkdir()
    try:
        yield unfinished
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def unfinished_name(name: str, mark: str) -> str:
    """Of the folder that is filled for a file or folder called ``name``; ``mark`` tells two writers apart."""
    return f".{name}.unfinished-{mark}"


def remove(path: Path) -> None:
    """Take away a file, or a folder with all in it; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def put(unfinished: Path, folder: Path, taken: IfExists) -> None:
    """Rename a filled folder to its place beside it."""
    _open_to_readers(unfinished)
    if taken is IfExists.REPLACED and folder.exists():
        shutil.rmtree(folder)
    try:
        unfinished.rename(folder)
    except OSError:
        if taken is not IfExists.KEPT or not folder.is_dir():
            raise


def _open_to_readers(folder: Path) -> None:
    """Give all files in it the mode of the umask, which the folder's own tells: asking for the umask would change it."""
    mode = folder.stat().st_mode & READERS
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_mode & READERS != mode:
            path.chmod(mode)


def _behind_links(path: Path) -> Path:
    return Path(os.path.realpath(path))


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to fill, of the same name, that takes the place of ``path`` at the end.

    Raises:
        OSError: if the place cannot be written; it is then as it was, unless it is a device or pipe.
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
    """A text as a `whole_file`, in UTF-8, with errors as of it."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def _is_stream(path: Path) -> bool:
    """A device or pipe, or a descriptor's name, whose file another program holds open."""
    return (path.exists() and not path.is_file()) or str(path.absolute()).startswith(DESCRIPTORS)


def place_of(name: str | Path, error: type[WrongUse]) -> Path:
    """The file or folder that a user names, there or not; ``~`` is the user's own folder.

    Raises:
        WrongUse: as ``error``, for what no file can be called, or what lies where nobody may look.
    """
    place = Path(os.path.expanduser(name))
    try:
        place.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as problem:
        raise error(
            f"{str(name)[:SHOWN]!r} can be no file or folder ({first_line(problem)[:SHOWN]}); name another"
        ) from None
    return place


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file, or of a folder's files in order of name."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(file.relative_to(path).as_posix().encode() if path.is_dir() else b"")
            with file.open("rb") as content:
                while part := content.read(READ):
                    digest.update(part)
    return digest.hexdigest()


def require_free(out: Path, error: type[WrongUse]) -> None:
    """Refuse a place that holds something, before any work is done for it."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise error(f"{out} exists and is not an empty folder; nothing was written: name another one")


@contextmanager
def whole_folder(out: Path, error: type[WrongUse]) -> Iterator[Path]:
    """`written_beside` for a place that a user named.

    Raises:
        WrongUse: as ``error``, if ``out`` holds something or cannot be written; ``out`` is then as it was.
    """
    require_free(out, error)
    try:
        with written_beside(out.absolute(), IfExists.REFUSED) as unfinished:
            yield unfinished
    except OSError as problem:
        raise error(f"{out} cannot be written ({problem.strerror}); choose another place") from None
