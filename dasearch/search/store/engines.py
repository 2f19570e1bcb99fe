"""Database URLs, and the engines behind them."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from dasearch.errors import StoreError, first_line, without_passwords
from dasearch.folders import place_of

LOCK_SECONDS = 60.0
SQLITE, POSTGRESQL = "sqlite", "postgresql"
PSYCOPG = f"{POSTGRESQL}+psycopg"  # of the extra dasearch[postgres]
WITHOUT_DRIVER = (POSTGRESQL, "postgres")
# for libpq: without keepalives, each side waits for hours for a dead machine, and a runner's lock is held as long
KEEPALIVES = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}  # seconds, seconds, attempts
SESSION = {**{f"tcp_{key}": value for key, value in KEEPALIVES.items()}, "timezone": "UTC"}  # of heartbeats
SYNCED = "NORMAL"  # when SQLite waits for the disk; see `write_ahead`
PASSWORDS = {"password", "sslpassword"}  # accepted by libpq in the query


def database_url(place: str | Path) -> str:
    """The URL of a database that a user names by a URL or as an SQLite file; ``~`` is the user's folder.

    Raises:
        StoreError: for an invalid URL.
    """
    if "://" not in str(place):
        return _of_file(place_of(place, StoreError))
    url = parsed(str(place))
    file = sqlite_file(url)
    if file is None:
        return driven(str(place))
    return url.set(database=str(place_of(file, StoreError))).render_as_string(hide_password=False)


def _of_file(path: Path) -> str:
    return URL.create(SQLITE, database=str(path)).render_as_string()


def parsed(url: str) -> URL:
    """Parse a database URL; PostgreSQL without a driver gets psycopg.

    Raises:
        StoreError: for an invalid URL.
    """
    try:
        database = make_url(url)
    except (ArgumentError, ValueError):  # their messages may contain the password
        raise StoreError(
            f"{_masked(url)} is not a database URL; use sqlite:///FILE or postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
        ) from None
    if "@" in (database.host or ""):
        raise StoreError(f"the password of {_masked(url)} contains @; write it as %40")
    return database.set(drivername=PSYCOPG) if database.drivername in WITHOUT_DRIVER else database


def driven(url: str) -> str:
    """The URL with its driver as text, password included; other URLs unchanged."""
    return parsed(url).render_as_string(hide_password=False) if url.startswith(WITHOUT_DRIVER) else url


def engine_options(url: str, lock_seconds: float) -> dict[str, Any]:
    """Keywords of `sqlalchemy.create_engine`; options in the URL take precedence."""
    database = parsed(url)
    if database.get_backend_name() == SQLITE:
        return {"connect_args": {"timeout": lock_seconds}}
    if not database.get_driver_name().startswith("psycopg"):
        return {}
    session = " ".join(f"-c {key}={value}" for key, value in SESSION.items())
    wanted = {**KEEPALIVES, "options": session, "connect_timeout": max(2, round(lock_seconds))}
    return {"connect_args": {key: value for key, value in wanted.items() if key not in database.query}}


def engine_of(url: str, lock_seconds: float) -> Engine:
    """An engine, which connects at its first use.

    Raises:
        StoreError: for a URL of an unknown kind, or whose driver is not installed.
    """
    database = parsed(url)
    try:
        engine = create_engine(database, **engine_options(url, lock_seconds))
    except (ArgumentError, NoSuchModuleError) as error:
        raise StoreError(
            f"{shown(url)} is not a database URL dasearch can open ({reason(error)}); use sqlite:///FILE or postgresql://..."
        ) from None
    except ImportError as error:
        fix = (
            'pip install "dasearch[postgres]"'
            if database.drivername == PSYCOPG
            else f"install {database.get_driver_name()}"
        )
        raise StoreError(f"{shown(url)} needs a driver that is not installed ({reason(error)}); {fix}") from None
    write_ahead(engine)
    return engine


def sqlite_file(url: URL) -> Path | None:
    """The file of an SQLite database; None for one in memory and for any other database."""
    inside = url.database or ":memory:"
    return None if url.get_backend_name() != SQLITE or inside.startswith((":memory:", "file:")) else Path(inside)


def write_ahead(engine: Engine) -> None:
    """Let an engine over SQLite log ahead, so that readers such as `dasearch status` do not wait for a running study.

    The log is synced at checkpoints, not at every commit, of which a trial has about as many as it has sites. A process that is
    killed loses nothing; a power cut may take the last commits back, and the study resumes from the state before them.
    """
    if engine.dialect.name == SQLITE:
        engine.dispose()  # connections made before
        event.listen(engine, "connect", _log_ahead)


def _log_ahead(connection: sqlite3.Connection, _: object) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(f"PRAGMA synchronous={SYNCED}")
    connection.execute("PRAGMA foreign_keys=ON")


def executed(connection: DBAPIConnection, _: object, *, statements: Sequence[str]) -> None:
    """Run statements at the start of every connection."""
    cursor = connection.cursor()
    for statement in statements:
        cursor.execute(statement)
    cursor.close()
    connection.commit()


def shown(url: str) -> str:
    """A URL for messages: a file's path, or the URL without its passwords."""
    database = parsed(url)
    file = sqlite_file(database)
    if file is not None:
        return str(file)
    hidden = {key: "***" for key in database.query if key in PASSWORDS}
    return database.update_query_dict(hidden).render_as_string(hide_password=True)


def _masked(url: str) -> str:
    """The same for a URL that cannot be parsed, which may contain spaces."""
    return without_passwords(re.sub(r"://.*@", "://***@", url))


def unusable(url: str, error: Exception) -> StoreError:
    """The message for a database that cannot be opened."""
    return StoreError(f"{shown(url)} cannot be used as a study database ({reason(error)}); {_remedy(url, error)}")


def reason(error: Exception) -> str:
    """The first line of another library's message."""
    return first_line(getattr(error, "orig", None) or error)


def _remedy(url: str, error: Exception) -> str:
    if parsed(url).get_backend_name() != SQLITE:
        return "check that the server runs, and host, user, password and database of the URL"
    if "not a database" in reason(error):
        return "name another file, or move this one away"
    return "check that its folder exists and can be written"
