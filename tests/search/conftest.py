"""A PostgreSQL server for the tests that ask for one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.postgres import Server, binaries


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    pytest.importorskip("psycopg", reason="needs dasearch[postgres]")
    programs = binaries()
    if programs is None:
        pytest.skip("needs PostgreSQL's programs: initdb, pg_ctl, postgres")
    found = Server(programs)
    try:
        found.start()
        yield found
    finally:
        found.remove()


@pytest.fixture
def database(server: Server) -> str:
    """The URL of a new PostgreSQL database."""
    return server.database()
