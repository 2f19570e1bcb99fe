"""Database URLs, and the engines behind them."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from dasearch.errors import StoreError, first_line

LOCK_SECONDS = 60.0


def engine_options(url: str, lock_seconds: float) -> dict[str, Any]:
    return {"connect_args": {"timeout": lock_seconds}} if url.startswith("sqlite") else {}


def engine_of(url: str, lock_seconds: float) -> Engine:
    try:
        parsed = make_url(url)
        engine = create_engine(parsed, **engine_options(url, lock_seconds))
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise StoreError(
            f"{url} is not a database URL dasearch can open ({reason(error)}); use sqlite:///FILE or postgresql://..."
        ) from None
    if parsed.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _write_ahead)
    return engine


def sqlite_file(url: URL) -> Path | None:
    """The file of an SQLite database; None for one in memory and for any other database."""
    inside = url.database or ":memory:"
    return None if url.get_backend_name() != "sqlite" or inside.startswith((":memory:", "file:")) else Path(inside)


def _write_ahead(connection: sqlite3.Connection, _: object) -> None:
    """Readers do not wait for a writer: `dasearch status` answers while a study runs."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA foreign_keys=ON")


def executed(connection: DBAPIConnection, _: object, *, statements: Sequence[str]) -> None:
    """Begin a connection with statements."""
    cursor = connection.cursor()
    for statement in statements:
        cursor.execute(statement)
    cursor.close()
    connection.commit()


def shown(url: str) -> str:
    return (
        url.removeprefix("sqlite:///")
        if url.startswith("sqlite")
        else make_url(url).render_as_string(hide_password=True)
    )


def reason(error: Exception) -> str:
    return first_line(getattr(error, "orig", None) or error)


def remedy(error: Exception) -> str:
    if "not a database" in reason(error):
        return "name another file, or move this one away"
    return "check that its folder exists and can be written"
