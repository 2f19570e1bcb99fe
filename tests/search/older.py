"""Databases as earlier revisions wrote them, made from one of today."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path

COMPARISON = """CREATE TABLE dasearch_comparison (
    id INTEGER NOT NULL PRIMARY KEY, study_id INTEGER NOT NULL, name VARCHAR(40) NOT NULL, metric VARCHAR(40) NOT NULL,
    seeds INTEGER NOT NULL, sd FLOAT, lead FLOAT, lead_low FLOAT, lead_high FLOAT, p FLOAT,
    UNIQUE (study_id, name, metric), FOREIGN KEY(study_id) REFERENCES dasearch_study (id))"""
COMPARED = ("seeds", "sd", "lead", "lead_low", "lead_high", "p")


def before_versions(file: Path, *, without: tuple[str, ...] = ()) -> None:
    """Take a database back to what was written before `dasearch_schema`, some tables not thought of yet."""
    kept = ", ".join(("study_id", "name", "metric", *COMPARED))
    with sqlite3.connect(file) as connection:
        connection.execute(COMPARISON)
        connection.execute(f"INSERT INTO dasearch_comparison ({kept}) SELECT {kept} FROM dasearch_result")
        for column in COMPARED:
            connection.execute(f"ALTER TABLE dasearch_result DROP COLUMN {column}")
    connection.close()
    before_workers(file)
    with sqlite3.connect(file) as connection:
        for table in ("dasearch_schema", *without):
            connection.execute(f"DROP TABLE {table}")
    connection.close()


def before_workers(file: Path) -> None:
    """Downgrade a database to version 1, in which trainings have no workers."""
    before_probabilities(file)
    with sqlite3.connect(file) as connection:
        for column in ("workers", "reason"):
            connection.execute(f"ALTER TABLE dasearch_training DROP COLUMN {column}")
        connection.execute("UPDATE dasearch_schema SET version = 1")
    connection.close()


def before_probabilities(file: Path, theta: Mapping[str, list[float]] | None = None) -> None:
    """Take a database back to version 2, in which proposals have a theta: this one each."""
    before_ends(file)
    with sqlite3.connect(file) as connection:
        connection.execute("ALTER TABLE dasearch_proposal DROP COLUMN probabilities")
        connection.execute("UPDATE dasearch_proposal SET theta = ?", (theta and json.dumps(theta),))
        connection.execute("UPDATE dasearch_schema SET version = 2")
    connection.close()


def before_ends(file: Path) -> None:
    """Downgrade a database to version 3, in which nothing says when a study is estimated to end."""
    with sqlite3.connect(file) as connection:
        connection.execute("ALTER TABLE dasearch_study DROP COLUMN ends")
        connection.execute("UPDATE dasearch_schema SET version = 3")
    connection.close()


def tables(file: Path) -> set[str]:
    with sqlite3.connect(file) as connection:
        found = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    connection.close()
    return found
