"""The store: queries and state changes of a study's database, each state change one transaction."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from functools import lru_cache, partial, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import optuna
from optuna.exceptions import StorageInternalError
from optuna.study import StudyDirection
from pydantic import ValidationError
from sqlalchemy import delete, event, func, select
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.orm import Session

from dasearch.bayes import Proposal, probabilities_of, quietly
from dasearch.errors import NoStudies, StoreError, first_line
from dasearch.folders import place_of
from dasearch.layout import Layout
from dasearch.models.cost import Cost, SiteCosts
from dasearch.search.store.connections import NO_PATIENCE, PATIENCE, Connections, Lost, Patience
from dasearch.search.store.engines import (
    LOCK_SECONDS,
    POSTGRESQL,
    SQLITE,
    database_url,
    driven,
    engine_of,
    executed,
    parsed,
    reason,
    shown,
    sqlite_file,
    unusable,
)
from dasearch.search.store.locks import StudyLock, locked_beside, locked_in
from dasearch.search.store.places import whereabouts
from dasearch.search.store.records import (
    AblationTraining,
    Artifact,
    Confirmation,
    FinalTraining,
    PostSearchTraining,
    PriorTrial,
    Progress,
    Result,
    Stored,
    TrialRecord,
)
from dasearch.search.store.schema import VERSION, make_or_migrate, readable, require_known
from dasearch.search.store.storage import StudyStorage
from dasearch.search.store.tables import (
    AblationRow,
    ArtifactRow,
    ConfirmationRow,
    CostRow,
    EpochRow,
    FinalTrainingRow,
    LaterTrainingRow,
    PriorRow,
    ProposalRow,
    ResultRow,
    StudyRow,
)
from dasearch.search.store.trials import last_heard, library_version, running, states, trials_of, utc
from dasearch.search_space import SearchSpace
from dasearch.training.metrics import Interval
from dasearch.training.progress import Epoch

DATABASE = "dasearch.db"
P = ParamSpec("P")
T = TypeVar("T")


def changing(method: Callable[Concatenate[Store, P], None]) -> Callable[Concatenate[Store, P], None]:
    """A state change that survives a lost connection and is applied exactly once."""

    @wraps(method)
    def again(self: Store, /, *args: P.args, **kwargs: P.kwargs) -> None:
        self._connections.again(lambda: method(self, *args, **kwargs), applied=lambda transaction: None)

    return again


def reading(method: Callable[Concatenate[Store, P], T]) -> Callable[Concatenate[Store, P], T]:
    """A query that survives a lost connection by being repeated."""

    @wraps(method)
    def again(self: Store, /, *args: P.args, **kwargs: P.kwargs) -> T:
        def ask() -> T:
            return method(self, *args, **kwargs)

        return self._connections.again(ask, applied=lambda transaction: ask())

    return again


class Store:
    """A study database at a SQLAlchemy URL; `open_store` makes one.

    Args:
        create: create the database and its tables where they are missing; else a missing one is an error.
        lock_seconds: maximum wait for an SQLite file that another process has locked, and for a server to answer.
        patience: backoff for a server that stops answering, for a writable store.
        output: the studies' output folder, if known.
    """

    def __init__(
        self,
        url: str,
        *,
        create: bool = True,
        lock_seconds: float = LOCK_SECONDS,
        patience: Patience = PATIENCE,
        output: Path | None = None,
    ) -> None:
        self.url = driven(url)
        self._output = output
        self._engine = engine_of(url, lock_seconds)
        self._connections = Connections(self._engine, shown(url), patience if create else NO_PATIENCE)
        try:
            if create:
                make_or_migrate(self._engine, shown(url), others=self._make_optunas, seconds=lock_seconds)
            else:
                self._read_as_today()
        except (DatabaseError, sqlite3.DatabaseError) as error:
            raise unusable(url, error) from None
        self._connections.watch(self._engine)

    def _read_as_today(self) -> None:
        """Let every connection read an older database under the current schema."""
        version = require_known(self._engine, shown(self.url))
        if version is None:
            raise NoStudies(
                f"{shown(self.url)} holds no dasearch studies; name the database of a study, or run one first"
            )
        if version < VERSION:
            statements = readable(self._engine)
            self._engine.dispose()
            event.listen(self._engine, "connect", partial(executed, statements=statements))

    def _make_optunas(self) -> None:
        StudyStorage(self.url, self._connections).engine.dispose()

    @reading
    def optuna_storage(self) -> StudyStorage:
        """Optuna's view of the same database, with heartbeats."""
        try:
            return StudyStorage(self.url, self._connections)
        except (OperationalError, StorageInternalError) as error:
            if self._engine.dialect.name != POSTGRESQL:
                raise
            raise self._connections.lost(error) from error

    @contextmanager
    def only_runner(self, name: str, folder: Path | None = None) -> Iterator[None]:
        """Hold the exclusive right to run a study with its database and its output ``folder`` during the block.

        Raises:
            StoreError: if another process runs it.
        """
        with nullcontext() if folder is None else locked_in(folder), self._only_here(name):
            yield

    @contextmanager
    def _only_here(self, name: str) -> Iterator[None]:
        if self._engine.dialect.name != POSTGRESQL:
            with locked_beside(self._engine.url, name):
                yield
            return
        lock = StudyLock(self._engine, name, shown(self.url))
        self._connections.again(lock.take, applied=lambda transaction: None)
        self._connections.right = lock
        try:
            yield
        finally:
            self._connections.right = None
            with suppress(Lost):
                lock.drop()

    def close(self) -> None:
        """Close the connections of the pool."""
        self._engine.dispose()

    def damage(self) -> str | None:
        """The error found by SQLite's integrity check or by Optuna's schema check; None where there is none."""
        try:
            if self._engine.dialect.name == "sqlite":
                with self._engine.connect() as connection:
                    report = str(connection.exec_driver_sql("PRAGMA quick_check(1)").scalar())
                if report != "ok":
                    return first_line(ValueError(report))
            self.optuna_storage().engine.dispose()
        except (DatabaseError, sqlite3.DatabaseError, RuntimeError) as error:  # the last: an unknown schema
            return reason(error)
        return None

    @reading
    def optuna_version(self) -> str:
        """The Optuna version that created its tables."""
        with Session(self._engine) as session:
            return str(session.scalar(library_version()))

    @reading
    def running(self, name: str) -> dict[int, datetime]:
        """The trials in state running, by number, with their last heartbeat or their start."""
        with Session(self._engine) as session:
            return {number: at.replace(tzinfo=UTC) for number, at in session.execute(last_heard(name))}

    @reading
    def study_names(self) -> list[str]:
        """Names of all studies, the oldest first."""
        with Session(self._engine) as session:
            return list(session.scalars(select(StudyRow.name).order_by(StudyRow.created)))

    @reading
    def progress(self, name: str) -> Progress:
        """The progress of a study.

        Raises:
            StoreError: if there is no such study.
        """
        with Session(self._engine) as session:
            row = self._row(session, name)
            by_state = {str(state).lower(): tuple(counted) for state, *counted in session.execute(states(name))}
            now = session.execute(running(name)).one()
            own = [
                session.scalar(select(func.count()).where(kept.study_id == row.id))
                for kept in (EpochRow, ProposalRow, ConfirmationRow, ResultRow, ArtifactRow)
            ]
            later = tuple((training.run, training.ended) for training in self._later_trainings(session, row))
            recorded = (row.settings, row.phase, row.ends, sorted(by_state.items()), tuple(now[1:]), own, later)
            return Progress(
                name=row.name,
                settings=json.loads(row.settings),
                phase=row.phase,
                created=row.created,
                states={state: counted[0] for state, counted in by_state.items()},
                best=by_state.get("complete", (0, None))[1],
                heard=utc(now[0]),
                version=hashlib.sha256(repr(recorded).encode()).hexdigest()[:16],
                ends=_time(row.ends),
            )

    @reading
    def study(self, name: str) -> Stored | None:
        """The study as recorded at its beginning, or None."""
        with Session(self._engine) as session:
            row = session.scalar(select(StudyRow).where(StudyRow.name == name))
            return None if row is None else _stored(row)

    @reading
    def begun(self, name: str) -> Stored:
        """The study as recorded at its beginning.

        Raises:
            StoreError: if there is no such study.
        """
        with Session(self._engine) as session:
            return _stored(self._row(session, name))

    @changing
    def begin(
        self,
        name: str,
        *,
        settings: Mapping[str, Any],
        space: Mapping[str, Any],
        space_hash: str,
        dataset: Mapping[str, Any],
        versions: Mapping[str, str],
        prior: Sequence[PriorTrial] = (),
        costly: bool = False,
    ) -> None:
        """Record a new study: Optuna's part first, so that a study listed here is complete.

        Args:
            name: of the study.
            settings: resolved, as JSON values.
            space: the search space file, as JSON values.
            space_hash: of the search space.
            dataset: statistics and fingerprint of the data.
            versions: of packages, by name.
            prior: trials of the warm start.
            costly: whether trials have a cost beside their score, which Optuna minimises.
        """
        directions = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE][: 1 + costly]
        with quietly():
            optuna.create_study(
                study_name=name, storage=self.optuna_storage(), directions=directions, load_if_exists=True
            )
        row = StudyRow(
            name=name,
            settings=json.dumps(dict(settings)),
            space=json.dumps(dict(space)),
            space_hash=space_hash,
            dataset=json.dumps(dict(dataset)),
            versions=json.dumps(dict(versions)),
            phase="search",
            created=time.time(),
        )
        with Session(self._engine) as session, session.begin():
            session.add(row)
            session.flush()  # its id
            session.add_all(
                PriorRow(study_id=row.id, layout=str(t.layout), value=t.value, source=t.source) for t in prior
            )

    @reading
    def prior(self, name: str) -> list[PriorTrial]:
        """The prior trials of the study's warm start; empty without one."""
        with Session(self._engine) as session:
            study = self._row(session, name)
            rows = session.scalars(select(PriorRow).filter_by(study_id=study.id).order_by(PriorRow.id))
            return [PriorTrial(_layout(study, row.layout), row.value, row.source) for row in rows]

    @changing
    def add_costs(self, name: str, costs: Mapping[Cost, SiteCosts]) -> None:
        """Record the costs of the study's layouts."""
        with Session(self._engine) as session, session.begin():
            study = self._row(session, name).id
            session.add_all(
                CostRow(study_id=study, name=cost.value, costs=json.dumps(own.record())) for cost, own in costs.items()
            )

    @reading
    def costs(self, name: str) -> dict[Cost, SiteCosts]:
        """The costs of the study's layouts; empty for a study without a cost."""
        with Session(self._engine) as session:
            study = self._row(session, name).id
            rows = session.scalars(select(CostRow).filter_by(study_id=study).order_by(CostRow.id))
            return {Cost(row.name): SiteCosts(**json.loads(row.costs)) for row in rows}

    @changing
    def delete_study(self, name: str) -> None:
        """Delete a study that `begin` recorded, with all its records."""
        storage = self.optuna_storage()
        with Session(self._engine) as session, session.begin():
            row = self._row(session, name)
            for table in (EpochRow, ProposalRow, PriorRow, CostRow):
                session.execute(delete(table).where(table.study_id == row.id))
            session.delete(row)
        optuna.delete_study(study_name=name, storage=storage)

    @changing
    def update_settings(self, name: str, settings: Mapping[str, Any]) -> None:
        """Record changed settings, such as a larger budget."""
        with Session(self._engine) as session, session.begin():
            self._row(session, name).settings = json.dumps(dict(settings))

    @changing
    def enter_phase(self, name: str, phase: str) -> None:
        """Record the study's current phase."""
        with Session(self._engine) as session, session.begin():
            self._row(session, name).phase = phase

    @changing
    def expect_end(self, name: str, end: datetime | None) -> None:
        """Record when a study is estimated to end; None: unknown."""
        with Session(self._engine) as session, session.begin():
            self._row(session, name).ends = None if end is None else end.timestamp()

    @changing
    def add_epoch(self, name: str, run: str, epoch: Epoch) -> None:
        """Record an epoch; one that exists already (its training was resumed) is replaced."""
        with Session(self._engine) as session, session.begin():
            study = self._row(session, name).id
            row = session.scalar(select(EpochRow).filter_by(study_id=study, run=run, number=epoch.number))
            row = row or EpochRow(study_id=study, run=run, number=epoch.number)
            row.losses, row.metrics, row.seconds = json.dumps(epoch.losses), json.dumps(epoch.metrics), epoch.seconds
            session.add(row)

    @reading
    def epochs(self, name: str, run: str) -> list[Epoch]:
        """The recorded epochs of one training, in order."""
        with Session(self._engine) as session:
            rows = session.scalars(
                select(EpochRow).filter_by(study_id=self._row(session, name).id, run=run).order_by(EpochRow.number)
            )
            return [Epoch(row.number, json.loads(row.losses), json.loads(row.metrics), row.seconds) for row in rows]

    @reading
    def epochs_by_run(self, name: str) -> dict[str, list[Epoch]]:
        """Every recorded epoch of a study."""
        epochs: dict[str, list[Epoch]] = defaultdict(list)
        with Session(self._engine) as session:
            kept = (EpochRow.run, EpochRow.number, EpochRow.losses, EpochRow.metrics, EpochRow.seconds)
            of_study = EpochRow.study_id == self._row(session, name).id
            for run, number, losses, metrics, seconds in session.execute(
                select(*kept).where(of_study).order_by(EpochRow.number)
            ):
                epochs[run].append(Epoch(number, json.loads(losses), json.loads(metrics), seconds))
        return dict(epochs)

    @reading
    def trials(self, name: str) -> list[TrialRecord]:
        """Every trial, by number."""
        with Session(self._engine) as session:
            return trials_of(session, name)

    @changing
    def add_proposal(self, name: str, proposal: Proposal) -> None:
        """Record why a trial was proposed."""
        with Session(self._engine) as session, session.begin():
            session.add(
                ProposalRow(
                    study_id=self._row(session, name).id,
                    trial_number=proposal.trial_number,
                    source=proposal.source,
                    layout=json.dumps(dict(proposal.layout)),
                    probabilities=None if proposal.probabilities is None else json.dumps(dict(proposal.probabilities)),
                    acquisition=proposal.acquisition,
                    mean=proposal.mean,
                    sd=proposal.sd,
                    seconds=proposal.seconds,
                )
            )

    @reading
    def proposals(self, name: str) -> list[Proposal]:
        """Every proposal, in the order of its trial."""
        with Session(self._engine) as session:
            rows = session.scalars(
                select(ProposalRow).filter_by(study_id=self._row(session, name).id).order_by(ProposalRow.trial_number)
            )
            return [
                Proposal(
                    trial_number=row.trial_number,
                    source=row.source,
                    layout=json.loads(row.layout),
                    probabilities=_probabilities(row),
                    acquisition=row.acquisition,
                    mean=row.mean,
                    sd=row.sd,
                    seconds=row.seconds,
                )
                for row in rows
            ]

    @changing
    def add_confirmation(self, name: str, confirmation: Confirmation) -> None:
        """Record a finished training of the confirmation."""
        with Session(self._engine) as session, session.begin():
            session.add(
                ConfirmationRow(
                    study_id=self._row(session, name).id,
                    layout=str(confirmation.layout),
                    role=confirmation.role,
                    seed=confirmation.seed,
                    metrics=json.dumps(confirmation.metrics),
                    seconds=confirmation.seconds,
                )
            )

    @reading
    def confirmations(self, name: str) -> list[Confirmation]:
        """Every finished training of the confirmation, in the order of recording."""
        with Session(self._engine) as session:
            study = self._row(session, name)
            rows = session.scalars(select(ConfirmationRow).filter_by(study_id=study.id).order_by(ConfirmationRow.id))
            return [
                Confirmation(_layout(study, row.layout), row.role, row.seed, json.loads(row.metrics), row.seconds)
                for row in rows
            ]

    @changing
    def begin_training(self, name: str, training: PostSearchTraining) -> None:
        """Record the start of a training after the search; one that ended before keeps its times unless it failed."""
        with Session(self._engine) as session, session.begin():
            key = {"study_id": self._row(session, name).id, "run": training.run}
            row = session.scalar(select(LaterTrainingRow).filter_by(**key)) or LaterTrainingRow(**key)
            if row.ended is None or row.reason is not None:
                row.ended, row.reason = None, None
                row.phase, row.label, row.layout = training.phase, training.label, str(training.layout)
                row.place, row.total, row.began = training.place, training.total, training.began.timestamp()
            session.add(row)

    @changing
    def end_training(
        self, name: str, run: str, ended: datetime, *, workers: Sequence[str] = (), reason: str | None = None
    ) -> None:
        """Record the end of a training that `begin_training` recorded.

        Args:
            name: of the study.
            run: name of the training.
            ended: time of its end.
            workers: that trained it since, appended to earlier ones.
            reason: the cause of a failure.
        """
        with Session(self._engine) as session, session.begin():
            study = self._row(session, name).id
            row = session.scalars(select(LaterTrainingRow).filter_by(study_id=study, run=run)).one()
            row.ended = ended.timestamp() if row.ended is None else row.ended
            row.workers, row.reason = json.dumps([*json.loads(row.workers), *workers]), reason

    @reading
    def later_trainings(self, name: str) -> list[PostSearchTraining]:
        """Every training after the search, in the order in which they began."""
        with Session(self._engine) as session:
            return self._later_trainings(session, self._row(session, name))

    def _later_trainings(self, session: Session, study: StudyRow) -> list[PostSearchTraining]:
        rows = session.scalars(
            select(LaterTrainingRow).filter_by(study_id=study.id).order_by(LaterTrainingRow.began, LaterTrainingRow.id)
        )
        return [
            PostSearchTraining(
                row.run,
                row.phase,
                row.label,
                _layout(study, row.layout),
                row.place,
                row.total,
                datetime.fromtimestamp(row.began, UTC),
                _time(row.ended),
                tuple(json.loads(row.workers)),
                row.reason,
            )
            for row in rows
        ]

    @changing
    def finish(
        self, name: str, results: list[Result], artifacts: list[Artifact], trainings: Sequence[FinalTraining] = ()
    ) -> None:
        """Record the test results and artifacts and end the study, in one transaction that a power cut does not take back."""
        with Session(self._engine) as session, session.begin():
            row = self._row(session, name)
            session.add_all(_result_row(row.id, result) for result in results)
            for training in trainings:
                record = {**training._asdict(), "metrics": json.dumps(training.metrics)}
                session.add(FinalTrainingRow(study_id=row.id, **record))
            session.add_all(ArtifactRow(study_id=row.id, **artifact._asdict()) for artifact in artifacts)
            row.phase = "done"
        self._sync()

    def _sync(self) -> None:
        """Wait until everything is on the disk, which SQLite does not at every commit."""
        if self._engine.dialect.name == SQLITE:
            with self._engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint")

    @reading
    def results(self, name: str) -> list[Result]:
        """The rows of the results table, in order; empty before the final evaluation."""
        with Session(self._engine) as session:
            study = self._row(session, name).id
            rows = session.scalars(select(ResultRow).filter_by(study_id=study).order_by(ResultRow.id))
            return [_result(row) for row in rows]

    @reading
    def final_trainings(self, name: str) -> list[FinalTraining]:
        """Every training behind the results table."""
        with Session(self._engine) as session:
            rows = session.scalars(
                select(FinalTrainingRow).filter_by(study_id=self._row(session, name).id).order_by(FinalTrainingRow.id)
            )
            return [
                FinalTraining(r.name, r.layout, r.seed, json.loads(r.metrics), r.parameters, r.seconds, r.peak_memory)
                for r in rows
            ]

    @changing
    def add_ablation(self, training: AblationTraining) -> None:
        """Record a finished training of an ablation."""
        with Session(self._engine) as session, session.begin():
            session.add(AblationRow(**{**training._asdict(), "metrics": json.dumps(training.metrics)}))

    @reading
    def ablations(self, run: str) -> list[AblationTraining]:
        """The trainings of one ablation."""
        with Session(self._engine) as session:
            rows = session.scalars(select(AblationRow).filter_by(run=run).order_by(AblationRow.id))
            return [
                AblationTraining(r.run, r.variant, r.seed, json.loads(r.metrics), r.parameters, r.seconds) for r in rows
            ]

    @reading
    def artifacts(self, name: str) -> list[Artifact]:
        """The artifacts of a study, each with its current path."""
        with Session(self._engine) as session:
            study = self._row(session, name)
            outputs = self._outputs(study)
            rows = session.scalars(select(ArtifactRow).filter_by(study_id=study.id).order_by(ArtifactRow.id))
            saved = [Artifact(row.kind, row.path, row.sha256) for row in rows]
        return [one._replace(path=str(whereabouts(one, name, outputs))) for one in saved]

    def _outputs(self, study: StudyRow) -> list[Path]:
        """Candidates for a study's output folder: the named one, its settings', its database's."""
        file, recorded = sqlite_file(self._engine.url), json.loads(study.settings).get("output")
        folders = (self._output, recorded and Path(os.path.expanduser(recorded)), file and file.parent)
        return [folder for folder in folders if folder]

    def _row(self, session: Session, name: str) -> StudyRow:
        row = session.scalar(select(StudyRow).where(StudyRow.name == name))
        if row is None:
            known = ", ".join(self.study_names()) or "none"
            raise StoreError(f"there is no study {name!r} in {shown(self.url)}; studies there: {known}")
        return row


def _stored(row: StudyRow) -> Stored:
    return Stored(
        row.name,
        json.loads(row.settings),
        json.loads(row.space),
        row.space_hash,
        json.loads(row.dataset),
        row.phase,
        json.loads(row.versions),
        row.created,
    )


def _result_row(study: int, result: Result) -> ResultRow:
    lead = result.lead or (None, None, None)
    spread = {"lead": lead[0], "lead_low": lead[1], "lead_high": lead[2]}
    return ResultRow(study_id=study, **{**result._asdict(), **spread})


def _result(row: ResultRow) -> Result:
    lead = None
    if row.lead is not None and row.lead_low is not None and row.lead_high is not None:
        lead = Interval(row.lead, row.lead_low, row.lead_high)
    return Result(row.name, row.layout, row.metric, row.value, row.low, row.high, row.seeds, row.sd, lead, row.p)


def open_store(
    url: str | None,
    output: str,
    *,
    create: bool,
    lock_seconds: float = LOCK_SECONDS,
    patience: Patience = PATIENCE,
) -> Store:
    """The store at a URL, or by default the SQLite file in the output folder; arguments as in `Store`.

    Raises:
        NoStudies: where ``create`` is False, for a missing database or file.
        StoreError: for a file that is not a database, a folder that cannot be written, an unknown kind of database.
    """
    folder = place_of(output, StoreError)
    if url is None:
        path = folder / DATABASE
        if create:
            require_writable(folder)
        elif not path.is_file():
            raise NoStudies(
                f"there are no studies under {folder} yet; start one with `dasearch run`, or give --storage"
            )
        url = str(path)
    url = database_url(url)
    file = sqlite_file(parsed(url))
    if not create and file is not None and not file.is_file():
        raise NoStudies(f"there is no database {file}; check --storage")
    return Store(url, create=create, lock_seconds=lock_seconds, patience=patience, output=folder)


def require_writable(folder: Path) -> None:
    """Create the folder, or raise a `StoreError` on why it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StoreError(
            f"the output folder {folder} cannot be written ({error.strerror}); choose another with --output FOLDER"
        ) from None


def _probabilities(row: ProposalRow) -> dict[str, list[float]] | None:
    """The probabilities of a `Proposal`; in a row of an older version, from its theta."""
    if row.probabilities is not None or row.theta is None:
        probabilities: dict[str, list[float]] | None = json.loads(row.probabilities or "null")
        return probabilities
    return {name: probabilities_of(values) for name, values in json.loads(row.theta).items()}


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _layout(study: StudyRow, text: str) -> Layout:
    """A layout in the letters of the study's space; of an unreadable space, in the shipped letters."""
    space = _space(study.space)
    return Layout.parse(text) if space is None else space.parse(text)


@lru_cache(maxsize=8)
def _space(record: str) -> SearchSpace | None:
    """The search space of a study's row; None if this version cannot read it."""
    try:
        return SearchSpace.from_record(json.loads(record))
    except ValidationError:
        return None
