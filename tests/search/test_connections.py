"""Lost connections to PostgreSQL: every state change is applied once, a study continues, and its lock is kept."""

from __future__ import annotations

import inspect
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy import create_engine
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from dasearch.bayes import Proposal
from dasearch.cli import run_command
from dasearch.errors import StoreError
from dasearch.layout import Layout
from dasearch.models.cost import Cost, SiteCosts
from dasearch.search import study as study_module
from dasearch.search.events import Listener, Training
from dasearch.search.store import (
    AblationTraining,
    Artifact,
    Confirmation,
    FinalTraining,
    Patience,
    PostSearchTraining,
    PriorTrial,
    Store,
    open_store,
)
from dasearch.search.store.connections import Connections, Lost
from dasearch.search.store.storage import StudyStorage
from dasearch.search.study import Study
from dasearch.training.progress import Epoch
from tests.postgres import Server
from tests.report.views import space
from tests.search.test_schema import RESULTS
from tests.search.test_study import outcome
from tests.training.studies import small_study

psycopg = pytest.importorskip("psycopg", reason="needs dasearch[postgres]")
QUICK = Patience(first=0.05, longest=0.4, whole=20.0)
BRIEF = Patience(first=0.05, longest=0.2, whole=0.3)
WHEN = datetime(2026, 1, 2, tzinfo=UTC)
LAYOUT = Layout.parse("SPS-PPS")
CHOICES = optuna.distributions.CategoricalDistribution(["serial", "parallel"])


@pytest.fixture
def stoppable(server: Server) -> Iterator[Server]:
    """The server, running again afterwards."""
    yield server
    if not server.running():
        server.start()


def test_waits_double_and_end() -> None:
    waits = list(Patience(first=0.5, longest=4.0, whole=20.0).waits())
    assert sum(waits) == 20.0
    assert waits[:4] == [0.5, 1.0, 2.0, 4.0]
    assert all(after <= 2 * before for before, after in pairwise(waits))
    assert list(Patience(whole=0.0).waits()) == []


def test_attempts_within_attempts_wait_once() -> None:
    waits = Patience(first=0.001, longest=0.001, whole=0.004)
    connections = Connections(create_engine("sqlite://"), "the database", waits)
    attempts = 0

    def away() -> None:
        nonlocal attempts
        attempts += 1
        raise Lost("away")

    def nested() -> None:
        connections.again(away, applied=lambda transaction: None)

    for expected in (len(list(waits.waits())) + 1, 1):  # then nobody waits for one that stayed away
        attempts = 0
        with pytest.raises(Lost, match="away"):
            connections.again(nested, applied=lambda transaction: None)
        assert attempts == expected
    assert connections.again(lambda: 5, applied=lambda transaction: 0) == 5
    attempts = 0
    with pytest.raises(Lost, match="away"):
        nested()
    assert attempts > 1


def test_every_call_of_optunas_storage_outlives_a_lost_connection() -> None:
    """A later Optuna may have others."""
    asked = {
        name
        for name, found in vars(RDBStorage).items()
        if inspect.isfunction(found) and "_create_scoped_session(" in inspect.getsource(found)
    }
    assert "set_trial_user_attr" in asked
    assert asked <= set(vars(StudyStorage))


def live(store: Store, name: str) -> None:
    """Everything that becomes of a study, each state change once."""
    store.begin(
        name,
        settings={"a": 1},
        space=space().record(),
        space_hash="h",
        dataset={},
        versions={},
        prior=[PriorTrial(LAYOUT, 0.1, "x")],
    )
    store.add_costs(name, {Cost.PARAMETERS: SiteCosts(1, {"causal": {"serial": 2}}, {})})
    store.update_settings(name, {"a": 2})
    storage = store.optuna_storage()
    study = optuna.load_study(study_name=name, storage=storage, sampler=optuna.samplers.RandomSampler(seed=0))
    study.set_user_attr("whose", "ours")
    study.enqueue_trial({"x": "parallel"})
    for score in (0.3, 0.4, None):
        trial = study.ask({"x": CHOICES})
        storage.record_heartbeat(trial._trial_id)
        store.add_proposal(name, Proposal(trial.number, "startup", {"x": "serial"}, None, None, None, None, 0.1))
        trial.report(0.2, 0)
        store.add_epoch(name, f"trial/{trial.number}", Epoch(0, {"total": 1.0}, {"MRR": 0.2}, 1.0))
        trial.set_user_attr("seconds", 1.5)
        study.tell(trial, score, state=TrialState.FAIL if score is None else None)
    store.enter_phase(name, "confirmation")
    store.begin_training(name, PostSearchTraining("confirm/1", "confirmation", "c", LAYOUT, 1, 1, WHEN))
    store.end_training(name, "confirm/1", WHEN)
    store.add_confirmation(name, Confirmation(LAYOUT, "candidate", 1, {"MRR": 0.3}, 1.0))
    store.add_ablation(AblationTraining(name, "v", 1, {"MRR": 0.3}, 5, 1.0))
    store.finish(name, RESULTS, [Artifact("model", "m", "0")], [FinalTraining("w", "S", 0, {"MRR": 0.3}, 5, 1.0, 9)])


def kept(store: Store, name: str) -> list[Any]:
    """What the store knows of a study, but for its moments."""
    trials = [trial._replace(started=None, ended=None) for trial in store.trials(name)]
    stored = store.begun(name)
    return [
        stored._replace(name="", created=0.0),
        trials,
        store.prior(name),
        store.costs(name),
        store.proposals(name),
        store.epochs_by_run(name),
        store.confirmations(name),
        store.later_trainings(name),
        [training._replace(run="") for training in store.ablations(name)],
        store.results(name),
        store.final_trainings(name),
        store.artifacts(name),
        optuna.load_study(study_name=name, storage=store.optuna_storage()).user_attrs,
    ]


STRIDE = 9  # of the commits that are broken off


class Fault:
    """Breaks the connection before or after some commits of all engines, given by number."""

    def __init__(self, breaks: Callable[[int], bool], *, after: bool) -> None:
        self.breaks, self.after, self.commits, self.broken = breaks, after, 0, 0

    @contextmanager
    def __call__(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        commit = PGDialect_psycopg.do_commit

        def broken(dialect: Any, connection: Any) -> None:
            self.commits += 1
            if not self.breaks(self.commits):
                commit(dialect, connection)
                return
            self.broken += 1
            if self.after:
                commit(dialect, connection)
            connection.dbapi_connection.close()
            raise psycopg.OperationalError("the connection is lost")

        with monkeypatch.context() as patched:
            patched.setattr(PGDialect_psycopg, "do_commit", broken)
            yield


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
def test_commits_without_an_answer_happen_once(database: str, monkeypatch: pytest.MonkeyPatch, after: bool) -> None:
    with closing(open_store(database, "", create=True, patience=QUICK)) as store:
        live(store, "undisturbed")
        expected = kept(store, "undisturbed")
        for place in range(4):
            fault = Fault(lambda number, place=place: number % 4 == place, after=after)
            with fault(monkeypatch):
                live(store, f"{place} of 4")
            assert fault.broken > 10
            assert kept(store, f"{place} of 4") == expected


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
def test_a_commit_without_an_answer_happens_once(database: str, monkeypatch: pytest.MonkeyPatch, after: bool) -> None:
    """Some of them, each by itself; with `STRIDE` 1 every one, in minutes."""
    with closing(open_store(database, "", create=True, patience=QUICK)) as store:
        whole = Fault(lambda number: False, after=after)
        with whole(monkeypatch):
            live(store, "undisturbed")
        expected = kept(store, "undisturbed")
        assert whole.commits > 40
        for at in range(1 + after, whole.commits + 1, STRIDE):
            fault = Fault(lambda number, at=at: number == at, after=after)
            with fault(monkeypatch):
                live(store, f"{at} of all")
            assert fault.broken == 1
            assert kept(store, f"{at} of all") == expected, f"commit {at} of {whole.commits}"


def test_connections_that_their_administrator_ends(
    database: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is the server's own."""
    with closing(open_store(database, "", create=True, patience=QUICK)) as store:
        live(store, "undisturbed")
        expected = kept(store, "undisturbed")
        changes: list[Callable[[], None]] = [
            lambda: store.enter_phase("undisturbed", "final"),
            lambda: store.enter_phase("undisturbed", "done"),
        ]
        for change in changes:
            ended = server.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                f"WHERE datname = '{database.rpartition('/')[2]}' AND pid <> pg_backend_pid()"
            )
            assert ended
            change()
        assert kept(store, "undisturbed") == expected


class Stopping(Listener):
    """Stops the server in an epoch, and has it started again after a while."""

    def __init__(self, server: Server, *, at: int, seconds: float | None) -> None:
        self.server, self.at, self.seconds, self.epochs = server, at, seconds, 0
        self.again: threading.Thread | None = None

    def epoch(self, training: Training, epoch: Epoch) -> None:
        self.epochs += 1
        if self.epochs == self.at:
            self.server.stop()
            if self.seconds is not None:
                self.again = threading.Thread(target=self._start)
                self.again.start()

    def _start(self) -> None:
        assert self.seconds is not None
        time.sleep(self.seconds)
        self.server.start()


def with_patience(monkeypatch: pytest.MonkeyPatch, patience: Patience) -> None:
    monkeypatch.setattr(study_module, "open_store", partial(open_store, patience=patience))


@pytest.mark.slow
def test_a_server_that_is_started_again_in_the_middle_of_a_study(
    tmp_path: Path, stoppable: Server, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = outcome(Study(small_study(tmp_path, output=str(tmp_path / "file"))).run())
    with_patience(monkeypatch, QUICK)
    listener = Stopping(stoppable, at=3, seconds=1.0)
    status = Study(small_study(tmp_path), storage=database).run(listener=listener)
    assert listener.again is not None
    listener.again.join()
    assert outcome(status) == expected
    assert [trial.state for trial in status.trials] == ["complete"] * 4


@pytest.mark.slow
def test_a_server_that_is_gone(
    tmp_path: Path,
    stoppable: Server,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = outcome(Study(small_study(tmp_path, output=str(tmp_path / "file"))).run())
    with_patience(monkeypatch, BRIEF)
    settings = small_study(tmp_path)
    study = Study(settings, storage=database)
    with pytest.raises(StoreError, match=r"does not answer \(.*\); when its server runs again, run the same command"):
        study.run(listener=Stopping(stoppable, at=5, seconds=None))
    file = tmp_path / "toy.yaml"
    file.write_text(settings.yaml())
    command = ["run", str(file), "--storage", database]
    assert run_command(command) == 2
    said = capsys.readouterr().err
    assert re.search(
        r"dasearch: postgresql.*cannot be used as a study database \(.*refused.*check that the server runs", said
    )
    assert "sesame" not in said
    stoppable.start()
    assert run_command(command) == 0
    status = study.status()
    assert [trial.state for trial in status.trials].count("complete") == settings.search.budget
    assert outcome(status) == expected


def test_a_study_has_one_runner_on_all_machines(tmp_path: Path, database: str) -> None:
    first, second = (open_store(database, "", create=True, patience=BRIEF) for _ in range(2))
    with closing(first), closing(second):
        with first.only_runner("toy"):
            with pytest.raises(
                StoreError, match=r"another process runs this study; .*postgresql\+psycopg://dasearch:\*"
            ):
                Study(small_study(tmp_path), storage=database).run()
            with second.only_runner("other"):
                pass
        with second.only_runner("toy"):
            pass


def test_a_runner_keeps_its_study_when_the_server_restarts(stoppable: Server, database: str) -> None:
    first, second = (open_store(database, "", create=True, patience=QUICK) for _ in range(2))
    with closing(first), closing(second):
        live(first, "toy")
        with first.only_runner("toy"):
            stoppable.stop()
            stoppable.start()
            first.enter_phase("toy", "final")
            with pytest.raises(StoreError, match="another process runs this study"), second.only_runner("toy"):
                pass
        with second.only_runner("toy"):
            pass


def test_a_runner_whose_study_was_taken_writes_no_more(stoppable: Server, database: str) -> None:
    with closing(open_store(database, "", create=True, patience=BRIEF)) as first:
        live(first, "toy")
        with first.only_runner("toy"):
            stoppable.stop()
            stoppable.start()
            with closing(open_store(database, "", create=True)) as second, second.only_runner("toy"):
                with pytest.raises(StoreError, match="another process runs this study"):
                    first.enter_phase("toy", "final")
                assert second.begun("toy").phase == "done"
