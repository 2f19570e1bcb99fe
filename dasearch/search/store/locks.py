"""Exclusive locks for changing a database's tables and for running a study."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from filelock import FileLock, Timeout
from sqlalchemy import URL, Connection, Engine, text

from dasearch.errors import StoreError
from dasearch.search.store.connections import Lost
from dasearch.search.store.engines import sqlite_file


@contextmanager
def schema_lock(engine: Engine, *, seconds: float) -> Iterator[None]:
    """Keep other processes from creating or changing the tables, Optuna's included, which have no lock of their own.

    Raises:
        StoreError: if another process holds the lock for longer.
    """
    kinds = {"sqlite": _beside_the_file, "postgresql": _in_the_server}
    backend = engine.url.get_backend_name()
    with kinds[backend](engine, seconds) if backend in kinds else nullcontext():
        yield


@contextmanager
def _beside_the_file(engine: Engine, seconds: float) -> Iterator[None]:
    file = sqlite_file(engine.url)
    if file is None or not file.parent.is_dir():  # in memory, or a file that cannot be opened
        yield
        return
    refusal = StoreError(f"another process changes the tables of {file}; wait until it ends, and try again")
    with _held(_lock_file(file), seconds, refusal):
        yield


@contextmanager
def locked_beside(url: URL, study: str) -> Iterator[None]:
    """Lock one study of an SQLite file; released when the process ends. A database in memory needs none.

    Raises:
        StoreError: if another process holds it.
    """
    file = sqlite_file(url)
    if file is None:
        yield
        return
    with _held(_lock_file(file, study), 0, another_runs(file)):
        yield


@contextmanager
def locked_in(folder: Path) -> Iterator[None]:
    """Lock the study of an output folder; released when the process ends.

    Raises:
        StoreError: if another process holds it.
    """
    with _held(folder / ".lock", 0, another_runs(folder)):
        yield


def _lock_file(file: Path, *of: str) -> Path:
    """The path of the lock file, beside the database that links resolve to."""
    real = file.resolve()
    return real.parent / ".".join(("", real.name, *of, "lock"))


@contextmanager
def _held(path: Path, seconds: float, refusal: StoreError) -> Iterator[None]:
    lock = FileLock(path, timeout=seconds)
    try:
        lock.acquire()
    except Timeout:
        raise refusal from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _in_the_server(engine: Engine, seconds: float) -> Iterator[None]:
    with engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.detach()  # closed with the block, so that its lock_timeout affects no other user
        connection.execute(text(f"SET lock_timeout = {round(1000 * seconds)}"))
        key = advisory_key("schema")
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": key})
        try:
            yield
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": key})


class StudyLock:
    """An advisory lock on one study of a PostgreSQL database, across machines.

    A dedicated connection holds it, and the server releases it when that ends; `renew` takes it again.

    Args:
        engine: that raises `Lost` for lost connections.
        name: of the study.
        where: the database in messages.
    """

    def __init__(self, engine: Engine, name: str, where: str) -> None:
        self._engine, self._key, self._where = engine, advisory_key(f"study {name}"), where
        self._connection: Connection | None = None
        self._renewing, self._taking = threading.RLock(), False

    def take(self) -> None:
        """Take the lock.

        Raises:
            StoreError: if another process holds it.
        """
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        try:
            if not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": self._key}):
                raise another_runs(self._where)
        except StoreError:
            connection.close()
            raise
        self._connection = connection

    def renew(self) -> None:
        """Take the lock again if the connection that held it was lost.

        Raises:
            Lost: if the server does not answer, has not yet noticed the loss, or another process took the lock.
        """
        with self._renewing:
            if self._taking or self._alive():  # taking it opens a new connection as well
                return
            self._taking = True
            try:
                self.take()
            except StoreError as error:
                raise Lost(str(error)) from error
            finally:
                self._taking = False

    @property
    def held(self) -> bool:
        """Whether the lock is held, as far as is known."""
        return self._connection is not None

    def _alive(self) -> bool:
        if self._connection is None:
            return False
        try:
            self._connection.execute(text("SELECT 1"))
        except Lost:
            self._connection.close()
            self._connection = None
        return self._connection is not None

    def drop(self) -> None:
        """Release the lock."""
        if self._alive() and self._connection is not None:
            self._connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": self._key})
            self._connection.close()


def another_runs(where: object) -> StoreError:
    """The error for a study that another process runs, in its folder or database."""
    return StoreError(
        f"another process runs this study; watch it with `dasearch status`, or wait until it ends ({where})"
    )


def advisory_key(name: str) -> int:
    """The 64-bit key of an advisory lock."""
    digest = hashlib.sha256(f"dasearch {name}".encode()).digest()
    return int.from_bytes(digest[:8], signed=True)
