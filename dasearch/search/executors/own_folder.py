"""Temporary folders that a killed process does not leave for ever: the next one to make its own takes them away.

Beside each lies a file that its owner has locked; the system drops the lock with the process, and with no other event.
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
    """A new folder among the system's temporary ones, for this user alone.

    Attributes:
        path: of the folder; short, for there are sockets in it.
    """

    def __init__(self) -> None:
        remove_left()
        self.path = Path(tempfile.gettempdir()) / f"{PREFIX}{uuid4().hex[:8]}"
        self._lock = FileLock(_lock_of(self.path))
        self._lock.acquire(timeout=0)  # before the folder is there, so that it is never without an owner
        self.path.mkdir(mode=0o700)

    def remove(self) -> None:
        """Take the folder away, in the process that made it."""
        _remove(self.path)
        self._lock.release()


def remove_left() -> None:
    """Take away the folders whose owners are gone, as far as this user may."""
    for folder in _folders():
        lock = FileLock(_lock_of(folder))
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError):  # its owner lives, or is another user
            continue
        _remove(folder)
        lock.release()


def _folders() -> Iterator[Path]:
    """Ours by their locks; what is only named alike is not."""
    found = Path(tempfile.gettempdir()).glob(f"{PREFIX}*")
    return (folder for folder in found if folder.is_dir() and not folder.is_symlink() and _lock_of(folder).is_file())


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}{LOCK}")


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():  # else the next one tries again
        _lock_of(folder).unlink(missing_ok=True)
