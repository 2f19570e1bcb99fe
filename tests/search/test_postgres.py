"""Studies in PostgreSQL: the same as in a file, from several processes, without a word of the password."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from dasearch.errors import NoStudies, StoreError
from dasearch.search.store import open_store
from dasearch.search.store.engines import engine_of, parsed, shown
from dasearch.search.study import Study
from tests.postgres import PASSWORD, QUOTED, Server
from tests.search.test_schema import RESULTS, six_at_once
from tests.search.test_study import outcome
from tests.training.studies import small_study


@pytest.mark.slow
def test_a_study_comes_out_as_in_a_file(tmp_path: Path, database: str) -> None:
    found: list[Any] = []
    for storage, name in ((None, "file"), (database, "server")):
        settings = small_study(tmp_path, output=str(tmp_path / name))
        study = Study(settings, storage=storage)
        study.run()
        with closing(open_store(storage, settings.output, create=False)) as store:
            seconds_apart = [training._replace(seconds=0.0, peak_memory=0) for training in store.final_trainings("toy")]
            epochs = [
                (run, epoch.number, epoch.metrics) for run, own in store.epochs_by_run("toy").items() for epoch in own
            ]
            progress = store.progress("toy")
        found.append((outcome(study.status()), seconds_apart, sorted(epochs), progress.states, progress.best))
    assert found[0] == found[1]


def test_heartbeats_are_moments(tmp_path: Path, database: str) -> None:
    """Though the server's own time zone is another one than UTC."""
    import optuna

    from tests.report.stored import optuna_study, space

    with closing(open_store(database, "", create=True)) as store:
        begin(store)
        trial = optuna_study(store).ask(
            dict.fromkeys(space().free, optuna.distributions.CategoricalDistribution([0, 1]))
        )
        store.optuna_storage().record_heartbeat(trial._trial_id)
        heard = store.progress("toy").heard
    assert heard is not None
    assert abs((heard - datetime.now(UTC)).total_seconds()) < 600


def begin(store: Any) -> None:
    store.begin("toy", settings={}, space={}, space_hash="0", dataset={}, versions={})


def test_results_before_versions_are_read_and_migrated(database: str) -> None:
    with closing(open_store(database, "", create=True)) as store:
        begin(store)
        store.finish("toy", RESULTS, [])
    compared = ("seeds", "sd", "lead", "lead_low", "lead_high", "p")
    kept = ", ".join(("study_id", "name", "metric", *compared))
    with engine_of(database, 10).begin() as connection:
        connection.execute(text(f"CREATE TABLE dasearch_comparison AS SELECT {kept} FROM dasearch_result"))
        for column in compared:
            connection.execute(text(f"ALTER TABLE dasearch_result DROP COLUMN {column}"))
        for table in ("schema", "prior", "training"):
            connection.execute(text(f"DROP TABLE dasearch_{table}"))
    for create in (False, True, False):
        with closing(open_store(database, "", create=create)) as store:
            assert store.results("toy") == RESULTS
            assert (store.prior("toy"), store.later_trainings("toy")) == ([], [])


def test_six_processes_open_an_empty_database_at_once(database: str) -> None:
    assert six_at_once(database) == ["opened"] * 6


def test_a_database_without_studies(database: str) -> None:
    with pytest.raises(
        NoStudies, match=r"postgresql\+psycopg://dasearch:\*\*\*@127\.0\.0\.1.* holds no dasearch studies"
    ):
        open_store(database, "", create=False)


def test_the_password_is_in_no_message(server: Server, database: str) -> None:
    wrong = server.url("absent")
    for url in (
        database.replace(QUOTED, "sesame"),
        wrong,
        wrong.replace(str(server.port), "1"),
        wrong.replace(str(server.port), "port"),
        wrong.replace("%2F", "/"),
        wrong.replace(QUOTED, "open@sesame"),
        f"postgresql://127.0.0.1:{server.port}/absent?user=dasearch&password={QUOTED}",
        f"postgresql://127.0.0.1:port/absent?user=dasearch&password={QUOTED}",
        wrong.replace("postgresql", "nosuch"),
        wrong.replace("postgresql", "postgresql+nosuch"),
    ):
        with pytest.raises(StoreError) as refused:
            open_store(url, "", create=True)
        assert "sesame" not in str(refused.value)
        assert ";" in str(refused.value)
    assert "sesame" in PASSWORD


def test_a_url_gets_psycopg_unless_it_names_a_driver() -> None:
    assert parsed("postgres://me@here/db").drivername == "postgresql+psycopg"
    assert parsed("postgresql://me@here/db").drivername == "postgresql+psycopg"
    assert parsed("postgresql+psycopg2://me@here/db").drivername == "postgresql+psycopg2"
    assert parsed("sqlite:///a.db").drivername == "sqlite"
    assert shown("postgresql://me:secret@here:5/db") == "postgresql+psycopg://me:***@here:5/db"
    assert shown("sqlite:///a.db") == "a.db"
