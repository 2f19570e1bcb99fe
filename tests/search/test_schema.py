"""Schema versions: created once, migrated with their content, read without changes, rejected where they are newer."""

from __future__ import annotations

import math
import multiprocessing
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from dasearch.errors import StoreError
from dasearch.layout import Layout
from dasearch.search.store import Artifact, Result, open_store
from dasearch.training.metrics import Interval
from tests.report.stored import NAME, empty_study, evaluate, proposal
from tests.report.views import later_trainings
from tests.search.older import before_ends, before_probabilities, before_versions, before_workers, tables

RESULTS = [
    Result("winner", "SPS-PPS", "MRR", 0.3, 0.2, 0.4, seeds=5, sd=0.01),
    Result("all-serial", "SSS-SSS", "MRR", 0.2, 0.1, 0.3, seeds=5, sd=0.02, lead=Interval(0.1, 0.05, 0.15), p=0.01),
    Result("popularity", None, "MRR", 0.1, None, None, lead=Interval(0.2, 0.15, 0.25), p=0.001),
]


def finished(folder: Path) -> Path:
    with closing(empty_study(folder)) as store:
        evaluate(store, "SPS-PPS", 0.4)
        store.finish(NAME, RESULTS, [Artifact("model", "m", "0" * 64)])
    return folder / "dasearch.db"


def test_results_before_versions_are_read_and_migrated(tmp_path: Path) -> None:
    file = finished(tmp_path)
    before_versions(file)
    written = content(file)
    with closing(open_store(str(file), "", create=False)) as store:
        assert store.results(NAME) == RESULTS
        assert store.progress(NAME).phase == "done"
    assert content(file) == written
    assert "dasearch_comparison" in tables(file)
    for _ in range(2):
        with closing(open_store(str(file), "", create=True)) as store:
            assert store.results(NAME) == RESULTS
    assert "dasearch_comparison" not in tables(file)
    assert "dasearch_schema" in tables(file)


def test_results_without_comparisons(tmp_path: Path) -> None:
    file = finished(tmp_path)
    before_versions(file, without=("dasearch_comparison",))
    alone = [result._replace(seeds=1, sd=None, lead=None, p=None) for result in RESULTS]
    for create in (False, True):
        with closing(open_store(str(file), "", create=create)) as store:
            assert store.results(NAME) == alone


def test_tables_that_came_later(tmp_path: Path) -> None:
    later = ("dasearch_prior", "dasearch_cost", "dasearch_training", "dasearch_ablation")
    file = finished(tmp_path)
    before_versions(file, without=later)
    for create in (False, True):
        with closing(open_store(str(file), "", create=create)) as store:
            assert (store.prior(NAME), store.costs(NAME), store.later_trainings(NAME)) == ([], {}, [])
            assert store.ablations("any") == []
            assert store.trials(NAME)[0].score == 0.4
        assert tables(file).isdisjoint(later) is not create


def test_trainings_of_before_workers_are_read_and_migrated(tmp_path: Path) -> None:
    first, second, final = later_trainings()
    with closing(empty_study(tmp_path)) as store:
        for training in (first, second, final):
            store.begin_training(NAME, training)
        store.end_training(NAME, first.run, first.began)
        store.end_training(NAME, second.run, second.began, workers=["here:1"], reason="diverged")
    file = tmp_path / "dasearch.db"
    before_workers(file)
    written = content(file)
    ended = [first._replace(ended=first.began), second._replace(ended=second.began), final]
    with closing(open_store(str(file), "", create=False)) as store:
        assert store.later_trainings(NAME) == ended
    assert content(file) == written
    with closing(open_store(str(file), "", create=True)) as store:
        assert store.later_trainings(NAME) == ended
        store.end_training(NAME, final.run, final.began, workers=["here:1"], reason="diverged")
        assert store.later_trainings(NAME)[2] == final._replace(
            ended=final.began, workers=("here:1",), reason="diverged"
        )


def test_theta_of_older_proposals_is_read_as_probabilities(tmp_path: Path) -> None:
    layout = Layout.parse("SPS-PPS")
    with closing(empty_study(tmp_path)) as store:
        store.add_proposal(NAME, proposal(0, layout))
    file = tmp_path / "dasearch.db"
    before_probabilities(file, {"layer01.causal": [0.75], "rate": [0.5, 0.5, 1.0]})
    written = content(file)
    top = math.exp(5) / (3 + math.exp(5))
    expected = {
        "layer01.causal": [pytest.approx(1 / (1 + math.exp(-2.5)))],
        "rate": pytest.approx([(1 - top) / 3] * 2 + [top]),
    }
    with closing(open_store(str(file), "", create=False)) as store:
        assert store.proposals(NAME)[0].probabilities == expected
    assert content(file) == written
    later = replace(proposal(1, layout), probabilities={"layer01.causal": [0.75]})
    with closing(open_store(str(file), "", create=True)) as store:
        store.add_proposal(NAME, later)
        assert store.proposals(NAME)[0].probabilities == expected
        assert store.proposals(NAME)[1] == later


def test_a_study_of_before_estimated_ends_is_read_and_migrated(tmp_path: Path) -> None:
    empty_study(tmp_path).close()
    file = tmp_path / "dasearch.db"
    before_ends(file)
    written = content(file)
    with closing(open_store(str(file), "", create=False)) as store:
        assert store.progress(NAME).ends is None
    assert content(file) == written
    end = datetime(2026, 3, 1, 12, tzinfo=UTC)
    with closing(open_store(str(file), "", create=True)) as store:
        before = store.progress(NAME).version
        store.expect_end(NAME, end)
        assert store.progress(NAME).ends == end
        assert store.progress(NAME).version != before
        store.expect_end(NAME, None)
        assert store.progress(NAME).ends is None


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    file = finished(tmp_path)
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE dasearch_schema SET version = 99")
    connection.close()
    for create in (False, True):
        with pytest.raises(
            StoreError, match=r"dasearch\.db was written by a newer dasearch \(schema 99, this one knows"
        ):
            open_store(str(file), "", create=create)


def test_a_failed_migration_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = finished(tmp_path)
    before_versions(file)

    def broken(connection: Any) -> None:
        connection.exec_driver_sql("DROP TABLE dasearch_comparison")
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr("dasearch.search.store.schema.MIGRATIONS", (broken,))
        with pytest.raises(OSError, match="no space left"):
            open_store(str(file), "", create=True)
    with closing(open_store(str(file), "", create=True)) as store:
        assert store.results(NAME) == RESULTS


def opened(url: str, ready: Any, said: Any) -> None:
    """Open an empty database at the same moment as others."""
    ready.wait()
    try:
        with closing(open_store(url, "", create=True)) as store:
            said.put(", ".join(store.study_names()) or "opened")
    except Exception as error:
        said.put(f"{type(error).__name__}: {error}")


def six_at_once(url: str) -> list[str]:
    """What six processes say that open a database at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dasearch.search.store"])  # torch is read once, not by each
    ready, said = context.Barrier(6), context.Queue()
    processes = [context.Process(target=opened, args=(url, ready, said)) for _ in range(6)]
    for process in processes:
        process.start()
    answers = [said.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    return answers


def test_six_processes_open_an_empty_file_at_once(tmp_path: Path) -> None:
    assert six_at_once(str(tmp_path / "new.db")) == ["opened"] * 6


def content(file: Path) -> list[str]:
    """Every row of a database as SQL, whether SQLite has it in the file or in the write-ahead log."""
    with closing(sqlite3.connect(file)) as connection:
        return list(connection.iterdump())
