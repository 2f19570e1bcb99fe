"""Schema versions: detecting, creating and migrating them, and reading older ones.

A change of `tables` adds a migration here, and to `readable` whatever an older database needs to be read. Version 0 was
written before versions were recorded; some of its tables were added later than others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    DefaultClause,
    Engine,
    Inspector,
    Select,
    Table,
    TableClause,
    and_,
    cast,
    column,
    delete,
    exists,
    false,
    func,
    insert,
    inspect,
    literal,
    null,
    select,
    table,
    text,
    update,
)
from sqlalchemy.schema import CreateColumn

from dasearch.errors import StoreError
from dasearch.search.store.engines import sqlite_file
from dasearch.search.store.locks import schema_lock
from dasearch.search.store.tables import Base, LaterTrainingRow, ProposalRow, ResultRow, SchemaRow, StudyRow

RESULTS = Base.metadata.tables[ResultRow.__tablename__]
TRAININGS = Base.metadata.tables[LaterTrainingRow.__tablename__]
STUDIES = Base.metadata.tables[StudyRow.__tablename__]
PROPOSALS = Base.metadata.tables[ProposalRow.__tablename__]
KEY = ("study_id", "name", "metric")
COMPARED = ("seeds", "sd", "lead", "lead_low", "lead_high", "p")
COMPARISON = table("dasearch_comparison", *(column(name) for name in (*KEY, *COMPARED)))  # of version 0


def make_or_migrate(engine: Engine, name: str, *, others: Callable[[], None], seconds: float) -> None:
    """Create or migrate a database to the current schema, once, even if other processes open it now.

    Args:
        engine: of the database.
        name: of the database in messages.
        others: creates the tables that are not ours.
        seconds: maximum wait for another process that does the same.

    Raises:
        StoreError: for a schema of a newer dasearch.
    """
    if not _untouched(engine) and require_known(engine, name) == VERSION:
        return
    with schema_lock(engine, seconds=seconds):
        version = require_known(engine, name)
        if version != VERSION:
            others()
            with engine.begin() as connection:
                if engine.dialect.name == "sqlite":
                    connection.exec_driver_sql("BEGIN IMMEDIATE")  # else each table would be its own transaction
                for migrate in [] if version is None else MIGRATIONS[version:]:
                    migrate(connection)
                Base.metadata.create_all(connection)
                connection.execute(delete(SchemaRow))
                connection.execute(insert(SchemaRow).values(version=VERSION))


def require_known(engine: Engine, name: str) -> int | None:
    """The schema version of a database; None for one without our tables.

    Raises:
        StoreError: for the schema of a newer dasearch.
    """
    inspector = inspect(engine)
    if not inspector.has_table(SchemaRow.__tablename__):
        return 0 if inspector.has_table(STUDIES.name) else None
    with engine.connect() as connection:
        version = connection.scalar(select(func.max(SchemaRow.version))) or 0
    if version > VERSION:
        raise StoreError(
            f"{name} was written by a newer dasearch (schema {version}, this one knows {VERSION}); upgrade dasearch to open it"
        )
    return version


def readable(engine: Engine) -> list[str]:
    """Statements that let a connection read an older database under the current schema, without changing it.

    They create temporary views, which take precedence over tables of the same name: an empty one for a missing table, one
    with the missing columns for a table that has fewer.
    """
    inspector = inspect(engine)
    statements = []
    for own in Base.metadata.sorted_tables:
        stand_in = _stand_in(own, inspector)
        if stand_in is not None:
            compiled = stand_in.compile(engine, compile_kwargs={"literal_binds": True})
            statements.append(f"CREATE TEMPORARY VIEW {own.name} AS {compiled}")
    return statements


def _stand_in(own: Table, inspector: Inspector) -> Select[Any] | None:
    """The query that replaces a table of the current schema; None where the database has the table."""
    if not inspector.has_table(own.name):
        return select(*(_blank(kept) for kept in own.columns)).where(false())
    here = {info["name"] for info in inspector.get_columns(own.name)}
    if here.issuperset(own.columns.keys()):
        return None
    before = table(own.name, *(column(name) for name in here), schema=inspector.default_schema_name)
    if own is RESULTS and inspector.has_table(COMPARISON.name):
        return _compared(before)
    return select(*(before.c[kept.name] if kept.name in here else _blank(kept) for kept in own.columns))


def _compared(before: TableClause) -> Select[Any]:
    """The results of version 0 joined with their comparisons."""
    joined = before.outerjoin(COMPARISON, _same_row(before))
    compared = {name: COMPARISON.c[name] for name in COMPARED} | {"seeds": func.coalesce(COMPARISON.c.seeds, 1)}
    sides: dict[str, ColumnElement[Any]] = {**before.columns, **compared}
    return select(*(sides[kept.name].label(kept.name) for kept in RESULTS.columns)).select_from(joined)


def _same_row(results: TableClause | Table) -> ColumnElement[bool]:
    return and_(*(results.c[key] == COMPARISON.c[key] for key in KEY))


def _blank(kept: Column[Any]) -> ColumnElement[Any]:
    """The value of a column that an older database lacks."""
    default = kept.server_default
    value = literal(default.arg) if isinstance(default, DefaultClause) else null()
    return cast(value, kept.type).label(kept.name)


def _one_table_of_results(connection: Connection) -> None:
    """Migrate from 0: comparisons move into the table of results."""
    inspector = inspect(connection)
    if not inspector.has_table(RESULTS.name):
        return
    _add_columns(connection, RESULTS, COMPARED)
    if inspector.has_table(COMPARISON.name):
        same = _same_row(RESULTS)
        held = {name: select(COMPARISON.c[name]).where(same).scalar_subquery() for name in COMPARED}
        connection.execute(update(RESULTS).values(held).where(exists().where(same)))
        connection.execute(text(f"DROP TABLE {COMPARISON.name}"))


def _workers_of_trainings(connection: Connection) -> None:
    """Migrate from 1: trainings after the search record their workers and the cause of a failure."""
    if inspect(connection).has_table(TRAININGS.name):
        _add_columns(connection, TRAININGS, ("workers", "reason"))


def _probabilities_of_proposals(connection: Connection) -> None:
    """Migrate from 2: proposals store probabilities; the theta of older ones is kept."""
    if inspect(connection).has_table(PROPOSALS.name):
        _add_columns(connection, PROPOSALS, ("probabilities",))


def _ends_of_studies(connection: Connection) -> None:
    """Migrate from 3: studies record when they are estimated to end."""
    if inspect(connection).has_table(STUDIES.name):
        _add_columns(connection, STUDIES, ("ends",))


def _add_columns(connection: Connection, own: Table, names: Sequence[str]) -> None:
    """Add the columns of the current table that the database lacks."""
    here = {column["name"] for column in inspect(connection).get_columns(own.name)}
    for name in names:
        if name not in here:
            added = CreateColumn(own.c[name]).compile(dialect=connection.dialect)
            connection.execute(text(f"ALTER TABLE {own.name} ADD COLUMN {added}"))


# the index is the version that each migrates from
MIGRATIONS: tuple[Callable[[Connection], None], ...] = (
    _one_table_of_results,
    _workers_of_trainings,
    _probabilities_of_proposals,
    _ends_of_studies,
)
VERSION = len(MIGRATIONS)


def _untouched(engine: Engine) -> bool:
    """Whether an SQLite file does not exist yet: the first connection writes to it, so that others must wait."""
    file = sqlite_file(engine.url)
    return file is not None and not (file.exists() and file.stat().st_size)
