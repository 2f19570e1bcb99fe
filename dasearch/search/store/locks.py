"""Who may change a database alone, and who may run a study alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from filelock import FileLock, Timeout
from sqlalchemy import Engine, text

from dasearch.errors import StoreError
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
    lock = FileLock(file.parent / f".{file.name}.lock", timeout=seconds)
    try:
        lock.acquire()
    except Timeout:
        raise StoreError(f"another process changes the tables of {file}; wait until it ends, and try again") from None
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


def advisory_key(name: str) -> int:
    """PostgreSQL's number for a lock of ours, 64 bits."""
    digest = hashlib.sha256(f"dasearch {name}".encode()).digest()
    return int.from_bytes(digest[:8], signed=True)
