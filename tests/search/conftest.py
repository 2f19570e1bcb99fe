"""What several tests share: a PostgreSQL server, and studies that nothing interrupts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from dasearch.search.events import Listener
from dasearch.search.study import Status, Study
from tests.postgres import Server, binaries
from tests.training.studies import small_study

Uninterrupted = Callable[[str], tuple[Status, Path]]


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


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    """The small study of a kind of model, run once to its end: its results and its output folder."""

    @cache
    def ran(kind: str = "darec") -> tuple[Status, Path]:
        folder = tmp_path_factory.mktemp(f"whole-{kind}")
        return Study(small_study(folder, model={"kind": kind})).run(listener=Listener()), folder / "runs"

    return ran
