"""Who may change a database alone, and who may run a study alone."""

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
    """Keep other processes from making or changing the tables; of Optuna's too, which know no lock of their own.

    Raises:
        StoreError: if another process keeps it for longer.
    """
    kinds = {"sqlite": _beside_the_file, "postgresql": _in_the_server}
    backend = engine.url.get_backend_name()
    with kinds[backend](engine, seconds) if backend in kinds else nullcontext():
        yield


@contextmanager
def _beside_the_file(engine: Engine, seconds: float) -> Iterator[None]:
    file = sqlite_file(engine.url)
    if file is None or not file.parent.is_dir():  # in memory, or a place that cannot be opened
        yield
        return
    refusal = StoreError(f"another process changes the tables of {file}; wait until it ends, and try again")
    with _held(_lock_file(file), seconds, refusal):
        yield


@contextmanager
def locked_beside(url: URL, study: str) -> Iterator[None]:
    """The right to run one study of an SQLite file; it ends with the process. One in memory is nobody else's.

    Raises:
        StoreError: if another process has it.
    """
    file = sqlite_file(url)
    if file is None:
        yield
        return
    with _held(_lock_file(file, study), 0, another_runs(file)):
        yield


@contextmanager
def locked_in(folder: Path) -> Iterator[None]:
    """The right to run the study of an output folder; it ends with the process.

    Raises:
        StoreError: if another process has it.
    """
    with _held(folder / ".lock", 0, another_runs(folder)):
        yield


def _lock_file(file: Path, *of: str) -> Path:
    """Beside the database itself, by whichever link it was reached."""
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
        connection.detach()  # closed with the block, so that its lock_timeout is nobody else's
        connection.execute(text(f"SET lock_timeout = {round(1000 * seconds)}"))
        key = advisory_key("schema")
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": key})
        try:
            yield
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": key})


class StudyLock:
    """The right to run one study of a PostgreSQL database, on whichever machine.

    A connection of its own holds it, and the server takes it back when that ends; `renew` takes it again.

    Args:
        engine: one that tells lost connections.
        name: of the study.
        where: of the database in messages.
    """

    def __init__(self, engine: Engine, name: str, where: str) -> None:
        self._engine, self._key, self._where = engine, advisory_key(f"study {name}"), where
        self._connection: Connection | None = None
        self._renewing, self._taking = threading.RLock(), False

    def take(self) -> None:
        """Hold the right.

        Raises:
            StoreError: if another process has it.
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
        """Hold it still, though the connection that held it may be lost.

        Raises:
            Lost: if the server does not answer, or has not yet missed that one; or if another process took it.
        """
        with self._renewing:
            if self._taking or self._alive():  # the connection that takes it is a new one as well
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
        """Whether it is, as far as is known."""
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
        """Let others run the study."""
        if self._alive() and self._connection is not None:
            self._connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": self._key})
            self._connection.close()


def another_runs(where: object) -> StoreError:
    """A study that is run already, in its folder or database."""
    return StoreError(
        f"another process runs this study; watch it with `dasearch status`, or wait until it ends ({where})"
    )


def advisory_key(name: str) -> int:
    """PostgreSQL's number for a lock of ours, 64 bits."""
    digest = hashlib.sha256(f"dasearch {name}".encode()).digest()
    return int.from_bytes(digest[:8], signed=True)
