"""Temporary folders that are cleaned up even after a kill: the next process that makes one removes abandoned ones.

Beside each is a file locked by its owner; the system releases the lock exactly when the process ends.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

PREFIX = "dasearch-ray-"
LOCK = ".lock"  # after the folder's name


class OwnFolder:
    """A new temporary folder, private to this user.

    Attributes:
        path: of the folder; short, because sockets are created in it.
    """

    def __init__(self) -> None:
        remove_left()
        self.path = Path(tempfile.gettempdir()) / f"{PREFIX}{uuid4().hex[:8]}"
        self._lock = FileLock(_lock_of(self.path))
        self._lock.acquire(timeout=0)  # before the folder exists, so that it is never without an owner
        self.path.mkdir(mode=0o700)

    def remove(self) -> None:
        """Remove the folder, in the process that made it."""
        _remove(self.path)
        self._lock.release()


def remove_left() -> None:
    """Remove the folders whose owners have ended, where this user may."""
    for folder in _folders():
        lock = FileLock(_lock_of(folder))
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError):  # its owner runs, or is another user
            continue
        _remove(folder)
        lock.release()


def _folders() -> Iterator[Path]:
    """Folders with a lock file; others of similar names are ignored."""
    folders = Path(tempfile.gettempdir()).glob(f"{PREFIX}*")
    return (folder for folder in folders if folder.is_dir() and not folder.is_symlink() and _lock_of(folder).is_file())


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}{LOCK}")


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():  # else the next process tries again
        _lock_of(folder).unlink(missing_ok=True)
