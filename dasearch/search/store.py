"""Everything a study remembers, in one database.

Optuna's `RDBStorage` owns trials, parameters and intermediate values; the tables here, prefixed ``dasearch_``, keep what
Optuna has no place for. All SQL of the project is in this module; typed rows come out; one state change is one transaction.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.study import StudyDirection
from pydantic import ValidationError
from sqlalchemy import (
    BigInteger,
    DateTime,
    Engine,
    Float,
    ForeignKey,
    Select,
    String,
    Text,
    UniqueConstraint,
    column,
    create_engine,
    delete,
    event,
    func,
    inspect,
    select,
    table,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from dasearch.bayes import Proposal, mean_of_curve
from dasearch.errors import NoStudies, StoreError, first_line
from dasearch.layout import Layout
from dasearch.models.cost import Cost, SiteCosts
from dasearch.search_space import SearchSpace
from dasearch.training.metrics import Interval
from dasearch.training.stack import Epoch

DATABASE = "dasearch.db"
HEARTBEAT_SECONDS = 10  # a worker says that it lives so often
LOCK_SECONDS = 60.0
GRACE_SECONDS = 60  # without a word for so long, a trial counts as lost
RETRY = optuna.storages.RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)  # queues a lost trial again


class Base(DeclarativeBase):
    """Our own tables."""


class StudyRow(Base):
    """A study as resolved when it began."""

    __tablename__ = "dasearch_study"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    settings: Mapped[str] = mapped_column(Text)
    space: Mapped[str] = mapped_column(Text)
    space_hash: Mapped[str] = mapped_column(String(64))
    dataset: Mapped[str] = mapped_column(Text)
    versions: Mapped[str] = mapped_column(Text)
    phase: Mapped[str] = mapped_column(String(20))
    created: Mapped[float] = mapped_column(Float)


class PriorRow(Base):
    """A layout of another study, as a layout of this one, with which a study was begun."""

    __tablename__ = "dasearch_prior"
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("dasearch_study.id"), index=True)
    layout: Mapped[str] = mapped_column(Text)
    value: Mapped[float] = mapped_column(Float)
    source: Mapped[str] = mapped_column(Text)


class CostRow(Base):
    """What the layouts of a study with a cost cost: one of `Cost`, as of `SiteCosts.record`."""

    __tablename__ = "dasearch_cost"
    __table_args__ = (UniqueConstraint("study_id", "name"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("dasearch_study.id"), index=True)
    name: Mapped[str] = mapped_column(String(40))
    costs: Mapped[str] = mapped_column(Text)


class EpochRow(Base):
    """One epoch of one training; ``run`` is ``trial/LAYOUT``, ``confirm/SEED/LAYOUT`` or ``final/LAYOUT``.

    The name of a trial goes on with the settings that are searched beside the layout, ``trial/LAYOUT/trial.lr=0.004``.
    """

    __tablename__ = "dasearch_epoch"
    __table_args__ = (UniqueConstraint("study_id", "run", "number"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("dasearch_study.id"), index=True)
    run: Mapped[str] = mapped_column(String(300))
    number: Mapped[int]
    losses: Mapped[str] = mapped_column(Text)
    metrics: Mapped[str] = mapped_column(Text)
    seconds: Mapped[float] = mapped_column(Float)


class ProposalRow(Base):
    """Why a trial was proposed."""

    __tablename__ = "dasearch_proposal"
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("dasearch_study.id"), index=True)
    trial_number: Mapped[int]
    source: Mapped[str] = mapped_column(String(40))
    layout: Mapped[str] = mapped_column(Text)
    theta: Mapped[str | None] = mapped_column(Text)
    acquisition: Mapped[float | None] = mapped_column(Float)
    mean: Mapped[float | None] = mapped_column(Float)
    sd: Mapped[float | None] = mapped_column(Float)
    seconds: Mapped[float] = mapped_column(Float)


class ConfirmationRow(Base):
    """One training of a candidate or control with a fresh seed."""

    __tablename__ = "dasearch_confirmation"
    __table_args__ = (UniqueConstraint("study_id", "layout", "seed"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("dasearch_study.id"), index=True)
    layout: Mapped[str] = mapped_column(Text)
    role: Mapped[str] = mapped_column(String(40))
    seed: Mapped[int]
    metrics: Mapped[str] = mapped_column(Text)
    seconds: Mapped[float] = mapped_column(Float)


class ResultRow(Base):
    """One row of the closing table: a metric of a model or baseline on the test split."""

    __tablename__ = "dasearch_result"
    __table_args__ = (UniqueConstraint("study_id", "name", "metric"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("dasearch_study.id"), index=True)
    name: Mapped[str] = mapped_column(String(40))
    layout: Mapped[str | None] = mapped_column(Text)
    metric: Mapped[str] = mapped_column(String(40))
    value: Mapped[float] = mapped_column(Float)
    low: Mapped[float | None] = mapped_column(Float)
    high: Mapped[float | None] = mapped_column(Float)


class ComparisonRow(Base):
    """What `ResultRow` does not hold of the same row: its spread over seeds, and the winner's lead over it."""

    __tablename__ = "dasearch_comparison"
    __table_args__ = (UniqueConstraint("study_id", "name", "metric"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("dasearch_study.id"), index=True)
    name: Mapped[str] = mapped_column(String(40))
    metric: Mapped[str] = mapped_column(String(40))
    seeds: Mapped[int]
    sd: Mapped[float | None] = mapped_column(Float)
    lead: Mapped[float | None] = mapped_column(Float)
    lead_low: Mapped[float | None] = mapped_column(Float)
    lead_high: Mapped[float | None] = mapped_column(Float)
    p: Mapped[float | None] = mapped_column(Float)


class FinalTrainingRow(Base):
    """One training of the final phase with its own test metrics."""

    __tablename__ = "dasearch_final"
    __table_args__ = (UniqueConstraint("study_id", "name", "seed"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("dasearch_study.id"), index=True)
    name: Mapped[str] = mapped_column(String(40))
    layout: Mapped[str | None] = mapped_column(Text)
    seed: Mapped[int]
    metrics: Mapped[str] = mapped_column(Text)
    parameters: Mapped[int] = mapped_column(BigInteger)
    seconds: Mapped[float] = mapped_column(Float)
    peak_memory: Mapped[int] = mapped_column(BigInteger)


class LaterTrainingRow(Base):
    """A training after the search; ``run`` as of `EpochRow`, times in seconds since 1970."""

    __tablename__ = "dasearch_training"
    __table_args__ = (UniqueConstraint("study_id", "run"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("dasearch_study.id"), index=True)
    run: Mapped[str] = mapped_column(String(300))
    phase: Mapped[str] = mapped_column(String(20))
    label: Mapped[str] = mapped_column(Text)
    layout: Mapped[str] = mapped_column(Text)
    place: Mapped[int]
    total: Mapped[int]
    began: Mapped[float] = mapped_column(Float)
    ended: Mapped[float | None] = mapped_column(Float)


class AblationRow(Base):
    """One training of an ablation; ``run`` and ``variant`` are hashes of what decides its result beside the seed."""

    __tablename__ = "dasearch_ablation"
    __table_args__ = (UniqueConstraint("run", "variant", "seed"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    run: Mapped[str] = mapped_column(String(16), index=True)
    variant: Mapped[str] = mapped_column(String(16))
    seed: Mapped[int]
    metrics: Mapped[str] = mapped_column(Text)
    parameters: Mapped[int] = mapped_column(BigInteger)
    seconds: Mapped[float] = mapped_column(Float)


class ArtifactRow(Base):
    """A file or folder that the study made."""

    __tablename__ = "dasearch_artifact"
    __table_args__ = (UniqueConstraint("study_id", "path"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("dasearch_study.id"), index=True)
    kind: Mapped[str] = mapped_column(String(40))
    path: Mapped[str] = mapped_column(String(500))
    sha256: Mapped[str] = mapped_column(String(64))


class PriorTrial(NamedTuple):
    """A layout of a study's space, what another study found it worth in its own units, and which study that was."""

    layout: Layout
    value: float
    source: str


class Stored(NamedTuple):
    """A study as it was begun."""

    name: str
    settings: dict[str, Any]
    space: dict[str, Any]
    space_hash: str
    dataset: dict[str, Any]
    phase: str
    versions: dict[str, str]
    created: float


class Progress(NamedTuple):
    """How far a study is, from counts alone: as quick for a thousand trials as for ten.

    Attributes:
        states: trials by their state, in lower case.
        best: score of the complete trials.
        heard: the last heartbeat of a trial that runs.
        version: another one whenever anything that is recorded of the study changed.
    """

    name: str
    settings: dict[str, Any]
    phase: str
    created: float
    states: dict[str, int]
    best: float | None
    heard: datetime | None
    version: str


class TrialRecord(NamedTuple):
    """A trial as Optuna's tables have it.

    Attributes:
        state: of `optuna.trial.TrialState`, in lower case.
        params: the choice of each parameter, by name; of a waiting trial what it was enqueued with.
        curve: intermediate values by step; one that is not finite is left out.
        retry_of: the number of the failed trial that this one repeats.
    """

    number: int
    state: str
    score: float | None
    params: dict[str, Any]
    curve: dict[int, float]
    attributes: dict[str, Any]
    retry_of: int | None
    started: datetime | None
    ended: datetime | None

    @property
    def signal(self) -> float | None:
        """What the surrogate learns from a complete trial."""
        return None if self.score is None else mean_of_curve(self.curve, self.score)

    @property
    def seconds(self) -> float | None:
        """Of training, its share where several ran side by side; of the attempt where nothing was trained to the end."""
        attempt = (self.ended - self.started).total_seconds() if self.started and self.ended else None
        kept: float | None = self.attributes.get("seconds", attempt)
        return kept


class Confirmation(NamedTuple):
    layout: Layout
    role: str
    seed: int
    metrics: dict[str, float]
    seconds: float


class Result(NamedTuple):
    """A metric of one row of the closing table: mean over seeds and users, its 95% interval over users.

    Attributes:
        sd: over seeds; None for a single one.
        lead: the winner's mean lead over this row, with its 95% interval; None for the winner itself, under each of its names.
        p: of the paired t test over users against the winner, after Holm's correction.
    """

    name: str
    layout: str | None
    metric: str
    value: float
    low: float | None
    high: float | None
    seeds: int = 1
    sd: float | None = None
    lead: Interval | None = None
    p: float | None = None


class FinalTraining(NamedTuple):
    """One training of the final phase; ``metrics`` on the test split, ``peak_memory`` in bytes."""

    name: str
    layout: str | None
    seed: int
    metrics: dict[str, float]
    parameters: int
    seconds: float
    peak_memory: int


class LaterTraining(NamedTuple):
    """A training of the confirmation or the final phase: its place among ``total``, and when it ran.

    Attributes:
        run: as of `EpochRow`.
        began: of one that was interrupted, when it last went on.
        ended: None while it runs.
    """

    run: str
    phase: str
    label: str
    layout: Layout
    place: int
    total: int
    began: datetime
    ended: datetime | None = None


class AblationTraining(NamedTuple):
    """One training of an ablation; ``metrics`` on the validation split."""

    run: str
    variant: str
    seed: int
    metrics: dict[str, float]
    parameters: int
    seconds: float


class Artifact(NamedTuple):
    kind: str
    path: str
    sha256: str


class Store:
    """A study database at a SQLAlchemy URL; `open_store` makes one.

    Args:
        create: make the database and its tables where they are missing; else a missing one is an error.
        lock_seconds: how long to wait for an SQLite file that another process has locked.
    """

    def __init__(self, url: str, *, create: bool = True, lock_seconds: float = LOCK_SECONDS) -> None:
        self.url = url
        self._engine = _engine(url, lock_seconds)
        try:
            if create:
                Base.metadata.create_all(self._engine)
            elif not self._has(StudyRow):
                raise NoStudies(
                    f"{_shown(url)} holds no dasearch studies; name the database of a study, or run one first"
                )
        except (DatabaseError, sqlite3.DatabaseError) as error:
            raise StoreError(
                f"{_shown(url)} cannot be used as a study database ({_reason(error)}); {_remedy(error)}"
            ) from None

    def optuna_storage(self) -> optuna.storages.RDBStorage:
        """Optuna's view of the same database, with heartbeats."""
        return optuna.storages.RDBStorage(
            self.url,
            engine_kwargs=_engine_options(self.url, LOCK_SECONDS),
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=GRACE_SECONDS,
            heartbeat_stale_trial_callback=RETRY,
        )

    def close(self) -> None:
        self._engine.dispose()

    def damage(self) -> str | None:
        """What is wrong with an SQLite file by its own check, or with Optuna's tables by Optuna's; None for nothing."""
        try:
            if self._engine.dialect.name == "sqlite":
                with self._engine.connect() as connection:
                    found = str(connection.exec_driver_sql("PRAGMA quick_check(1)").scalar())
                if found != "ok":
                    return first_line(ValueError(found))
            self.optuna_storage().engine.dispose()
        except (DatabaseError, sqlite3.DatabaseError, RuntimeError) as error:  # the last: a schema it does not know
            return _reason(error)
        return None

    def optuna_version(self) -> str:
        """The Optuna that made its tables here."""
        with Session(self._engine) as session:
            return str(session.scalar(select(_VERSIONS.c.library_version)))

    def running(self, name: str) -> dict[int, datetime]:
        """The trials that say they run, by number: when each was last heard of, or began."""
        heard = func.coalesce(_HEARTBEATS.c.heartbeat, _TRIALS.c.datetime_start)
        joined = _TRIALS.join(_STUDIES, _STUDIES.c.study_id == _TRIALS.c.study_id).outerjoin(
            _HEARTBEATS, _HEARTBEATS.c.trial_id == _TRIALS.c.trial_id
        )
        kept = select(_TRIALS.c.number, heard).select_from(joined).where(_STUDIES.c.study_name == name, *_BEGUN)
        with Session(self._engine) as session:
            return {number: at.replace(tzinfo=UTC) for number, at in session.execute(kept.order_by(_TRIALS.c.number))}

    def study_names(self) -> list[str]:
        with Session(self._engine) as session:
            return list(session.scalars(select(StudyRow.name).order_by(StudyRow.created)))

    def progress(self, name: str) -> Progress:
        """How far a study is.

        Raises:
            StoreError: if there is no such study.
        """
        with Session(self._engine) as session:
            row = self._row(session, name)
            states = {str(state).lower(): tuple(counted) for state, *counted in session.execute(_states(name))}
            running = session.execute(_running(name)).one()
            own = [
                session.scalar(select(func.count()).where(kept.study_id == row.id))
                for kept in (EpochRow, ProposalRow, ConfirmationRow, ResultRow, ArtifactRow)
            ]
            later = tuple((training.run, training.ended) for training in self._later_trainings(session, row))
            recorded = (row.settings, row.phase, sorted(states.items()), tuple(running[1:]), own, later)
            return Progress(
                name=row.name,
                settings=json.loads(row.settings),
                phase=row.phase,
                created=row.created,
                states={state: counted[0] for state, counted in states.items()},
                best=states.get("complete", (0, None))[1],
                heard=_utc(running[0]),
                version=hashlib.sha256(repr(recorded).encode()).hexdigest()[:16],
            )

    def study(self, name: str) -> Stored | None:
        """The study as it was begun, or None."""
        with Session(self._engine) as session:
            row = session.scalar(select(StudyRow).where(StudyRow.name == name))
            return None if row is None else _stored(row)

    def begun(self, name: str) -> Stored:
        """The study as it was begun.

        Raises:
            StoreError: if there is no such study.
        """
        with Session(self._engine) as session:
            return _stored(self._row(session, name))

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
        """Record a new study: Optuna's part first, so that a study that can be seen here is whole.

        Args:
            costly: whether trials have a cost beside their score, which Optuna minimises.
        """
        directions = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE][: 1 + costly]
        optuna.create_study(study_name=name, storage=self.optuna_storage(), directions=directions, load_if_exists=True)
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

    def prior(self, name: str) -> list[PriorTrial]:
        """What the study was begun with; nothing, for most."""
        if not inspect(self._engine).has_table(PriorRow.__tablename__):  # older databases lack it
            return []
        with Session(self._engine) as session:
            study = self._row(session, name)
            rows = session.scalars(select(PriorRow).filter_by(study_id=study.id).order_by(PriorRow.id))
            return [PriorTrial(_layout(study, row.layout), row.value, row.source) for row in rows]

    def add_costs(self, name: str, costs: Mapping[Cost, SiteCosts]) -> None:
        """Record what the study's layouts cost."""
        with Session(self._engine) as session, session.begin():
            study = self._row(session, name).id
            session.add_all(
                CostRow(study_id=study, name=cost.value, costs=json.dumps(own.record())) for cost, own in costs.items()
            )

    def costs(self, name: str) -> dict[Cost, SiteCosts]:
        """What the study's layouts cost; nothing, for a study without a cost."""
        if not self._has(CostRow):
            return {}
        with Session(self._engine) as session:
            study = self._row(session, name).id
            rows = session.scalars(select(CostRow).filter_by(study_id=study).order_by(CostRow.id))
            return {Cost(row.name): SiteCosts(**json.loads(row.costs)) for row in rows}

    def withdraw(self, name: str) -> None:
        """Take back a study that `begin` recorded, with all that is known of it."""
        with Session(self._engine) as session, session.begin():
            row = self._row(session, name)
            for table in (EpochRow, ProposalRow, PriorRow, CostRow):
                session.execute(delete(table).where(table.study_id == row.id))
            session.delete(row)
        optuna.delete_study(study_name=name, storage=self.optuna_storage())

    def update_settings(self, name: str, settings: Mapping[str, Any]) -> None:
        """Record a change that a study may make after it began, such as a larger budget."""
        with Session(self._engine) as session, session.begin():
            self._row(session, name).settings = json.dumps(dict(settings))

    def enter_phase(self, name: str, phase: str) -> None:
        with Session(self._engine) as session, session.begin():
            self._row(session, name).phase = phase

    def add_epoch(self, name: str, run: str, epoch: Epoch) -> None:
        """Record an epoch; one that is there already (its training was resumed) is replaced."""
        with Session(self._engine) as session, session.begin():
            study = self._row(session, name).id
            row = session.scalar(select(EpochRow).filter_by(study_id=study, run=run, number=epoch.number))
            row = row or EpochRow(study_id=study, run=run, number=epoch.number)
            row.losses, row.metrics, row.seconds = json.dumps(epoch.losses), json.dumps(epoch.metrics), epoch.seconds
            session.add(row)

    def epochs(self, name: str, run: str) -> list[Epoch]:
        with Session(self._engine) as session:
            rows = session.scalars(
                select(EpochRow).filter_by(study_id=self._row(session, name).id, run=run).order_by(EpochRow.number)
            )
            return [Epoch(row.number, json.loads(row.losses), json.loads(row.metrics), row.seconds) for row in rows]

    def epochs_by_run(self, name: str) -> dict[str, list[Epoch]]:
        """Every recorded epoch of a study."""
        found: dict[str, list[Epoch]] = defaultdict(list)
        with Session(self._engine) as session:
            kept = (EpochRow.run, EpochRow.number, EpochRow.losses, EpochRow.metrics, EpochRow.seconds)
            of_study = EpochRow.study_id == self._row(session, name).id
            for run, number, losses, metrics, seconds in session.execute(
                select(*kept).where(of_study).order_by(EpochRow.number)
            ):
                found[run].append(Epoch(number, json.loads(losses), json.loads(metrics), seconds))
        return dict(found)

    def trials(self, name: str) -> list[TrialRecord]:
        """Every trial, by number, without Optuna's objects: of those 1,000 trials of 90 sites take seconds to build."""
        with Session(self._engine) as session:
            study = session.scalar(select(_STUDIES.c.study_id).where(_STUDIES.c.study_name == name))
            rows = session.execute(select(*_TRIALS.c).where(_TRIALS.c.study_id == study).order_by(_TRIALS.c.number))
            parts = {part: _of_trials(session, study, part, kept) for part, kept in _TRIAL_PARTS.items()}
            return [
                _trial(row._mapping, {part: found[row.trial_id] for part, found in parts.items()}) for row in rows.all()
            ]

    def add_proposal(self, name: str, proposal: Proposal) -> None:
        with Session(self._engine) as session, session.begin():
            session.add(
                ProposalRow(
                    study_id=self._row(session, name).id,
                    trial_number=proposal.trial_number,
                    source=proposal.source,
                    layout=json.dumps(dict(proposal.layout)),
                    theta=None if proposal.theta is None else json.dumps(dict(proposal.theta)),
                    acquisition=proposal.acquisition,
                    mean=proposal.mean,
                    sd=proposal.sd,
                    seconds=proposal.seconds,
                )
            )

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
                    theta=None if row.theta is None else json.loads(row.theta),
                    acquisition=row.acquisition,
                    mean=row.mean,
                    sd=row.sd,
                    seconds=row.seconds,
                )
                for row in rows
            ]

    def add_confirmation(self, name: str, confirmation: Confirmation) -> None:
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

    def confirmations(self, name: str) -> list[Confirmation]:
        with Session(self._engine) as session:
            study = self._row(session, name)
            rows = session.scalars(select(ConfirmationRow).filter_by(study_id=study.id).order_by(ConfirmationRow.id))
            return [
                Confirmation(_layout(study, row.layout), row.role, row.seed, json.loads(row.metrics), row.seconds)
                for row in rows
            ]

    def begin_training(self, name: str, training: LaterTraining) -> None:
        """Record that a training after the search begins; of one that ended before, its times stay."""
        with Session(self._engine) as session, session.begin():
            key = {"study_id": self._row(session, name).id, "run": training.run}
            row = session.scalar(select(LaterTrainingRow).filter_by(**key)) or LaterTrainingRow(**key)
            if row.ended is None:
                row.phase, row.label, row.layout = training.phase, training.label, str(training.layout)
                row.place, row.total, row.began = training.place, training.total, training.began.timestamp()
            session.add(row)

    def end_training(self, name: str, run: str, ended: datetime) -> None:
        """Record that a training that `begin_training` recorded is over."""
        with Session(self._engine) as session, session.begin():
            study = self._row(session, name).id
            row = session.scalars(select(LaterTrainingRow).filter_by(study_id=study, run=run)).one()
            row.ended = ended.timestamp() if row.ended is None else row.ended

    def later_trainings(self, name: str) -> list[LaterTraining]:
        """Every training after the search, in the order in which they began."""
        with Session(self._engine) as session:
            return self._later_trainings(session, self._row(session, name))

    def _later_trainings(self, session: Session, study: StudyRow) -> list[LaterTraining]:
        if not self._has(LaterTrainingRow):
            return []
        rows = session.scalars(
            select(LaterTrainingRow).filter_by(study_id=study.id).order_by(LaterTrainingRow.began, LaterTrainingRow.id)
        )
        return [
            LaterTraining(
                row.run,
                row.phase,
                row.label,
                _layout(study, row.layout),
                row.place,
                row.total,
                datetime.fromtimestamp(row.began, UTC),
                None if row.ended is None else datetime.fromtimestamp(row.ended, UTC),
            )
            for row in rows
        ]

    def finish(
        self, name: str, results: list[Result], artifacts: list[Artifact], trainings: Sequence[FinalTraining] = ()
    ) -> None:
        """Record the test results and artifacts and end the study, in one transaction."""
        with Session(self._engine) as session, session.begin():
            row = self._row(session, name)
            for result in results:
                session.add_all(_result_rows(row.id, result))
            for training in trainings:
                record = {**training._asdict(), "metrics": json.dumps(training.metrics)}
                session.add(FinalTrainingRow(study_id=row.id, **record))
            session.add_all(ArtifactRow(study_id=row.id, **artifact._asdict()) for artifact in artifacts)
            row.phase = "done"

    def results(self, name: str) -> list[Result]:
        with Session(self._engine) as session:
            study = self._row(session, name).id
            compared: dict[tuple[str, str], ComparisonRow] = {}
            if self._has(ComparisonRow):
                rows = session.scalars(select(ComparisonRow).filter_by(study_id=study))
                compared = {(row.name, row.metric): row for row in rows}
            found = session.scalars(select(ResultRow).filter_by(study_id=study).order_by(ResultRow.id))
            return [_result(row, compared.get((row.name, row.metric))) for row in found]

    def final_trainings(self, name: str) -> list[FinalTraining]:
        """Every training behind the closing table."""
        with Session(self._engine) as session:
            rows = session.scalars(
                select(FinalTrainingRow).filter_by(study_id=self._row(session, name).id).order_by(FinalTrainingRow.id)
            )
            return [
                FinalTraining(r.name, r.layout, r.seed, json.loads(r.metrics), r.parameters, r.seconds, r.peak_memory)
                for r in rows
            ]

    def add_ablation(self, training: AblationTraining) -> None:
        with Session(self._engine) as session, session.begin():
            session.add(AblationRow(**{**training._asdict(), "metrics": json.dumps(training.metrics)}))

    def ablations(self, run: str) -> list[AblationTraining]:
        """The trainings of one ablation."""
        with Session(self._engine) as session:
            rows = session.scalars(select(AblationRow).filter_by(run=run).order_by(AblationRow.id))
            return [
                AblationTraining(r.run, r.variant, r.seed, json.loads(r.metrics), r.parameters, r.seconds) for r in rows
            ]

    def artifacts(self, name: str) -> list[Artifact]:
        with Session(self._engine) as session:
            rows = session.scalars(
                select(ArtifactRow).filter_by(study_id=self._row(session, name).id).order_by(ArtifactRow.id)
            )
            return [Artifact(row.kind, row.path, row.sha256) for row in rows]

    def _has(self, kept: type[Base]) -> bool:
        """Whether the database has a table; those of 0.1's first weeks lack some."""
        return inspect(self._engine).has_table(kept.__tablename__)

    def _row(self, session: Session, name: str) -> StudyRow:
        row = session.scalar(select(StudyRow).where(StudyRow.name == name))
        if row is None:
            known = ", ".join(self.study_names()) or "none"
            raise StoreError(f"there is no study {name!r} in {_shown(self.url)}; studies there: {known}")
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


SCORED = 0  # of a trial's values, its score; a second one is its cost
# Optuna's tables, as far as `Store.trials` reads them
_STUDIES = table("studies", column("study_id"), column("study_name"))
_TRIALS = table(
    "trials",
    *(column(key) for key in ("trial_id", "study_id", "number", "state")),
    *(column(key, DateTime) for key in ("datetime_start", "datetime_complete")),
)
_VALUES = table("trial_values", column("trial_id"), column("objective"), column("value"))
_HEARTBEATS = table("trial_heartbeats", column("trial_id"), column("heartbeat", DateTime))
_VERSIONS = table("version_info", column("library_version"))
_BEGUN = (_TRIALS.c.datetime_start.is_not(None), _TRIALS.c.datetime_complete.is_(None))  # of trials that run
_PARAMS = table("trial_params", column("trial_id"))
_INTERMEDIATES = table("trial_intermediate_values", column("trial_id"))
_TRIAL_PARTS = {
    "trial_values": ("objective", "value"),
    "trial_params": ("param_name", "param_value", "distribution_json"),
    "trial_intermediate_values": ("step", "intermediate_value"),
    "trial_user_attributes": ("key", "value_json"),
    "trial_system_attributes": ("key", "value_json"),
}
_SYSTEM_KEYS = ("retry_history", "fixed_params")  # a claim is as long as a layout and not needed


def _states(name: str) -> Select[Any]:
    """By state: number of trials, best value, last trial, last end."""
    kept = (
        func.count(),
        func.max(_VALUES.c.value),
        func.max(_TRIALS.c.trial_id),
        func.max(_TRIALS.c.datetime_complete),
    )
    joined = _TRIALS.join(_STUDIES, _STUDIES.c.study_id == _TRIALS.c.study_id).outerjoin(
        _VALUES, (_VALUES.c.trial_id == _TRIALS.c.trial_id) & (_VALUES.c.objective == SCORED)
    )
    chosen = select(_TRIALS.c.state, *kept).select_from(joined).where(_STUDIES.c.study_name == name)
    return chosen.group_by(_TRIALS.c.state)


def _running(name: str) -> Select[Any]:
    """Of the trials that run: last heartbeat, number of parameters, number of intermediate values."""
    study = select(_STUDIES.c.study_id).where(_STUDIES.c.study_name == name).scalar_subquery()
    trials = select(_TRIALS.c.trial_id).where(_TRIALS.c.study_id == study, *_BEGUN)
    heard = select(func.max(_HEARTBEATS.c.heartbeat)).where(_HEARTBEATS.c.trial_id.in_(trials))
    counts = (select(func.count()).where(of.c.trial_id.in_(trials)) for of in (_PARAMS, _INTERMEDIATES))
    return select(heard.scalar_subquery(), *(count.scalar_subquery() for count in counts))


def _of_trials(
    session: Session, study: int | None, part: str, kept: tuple[str, ...]
) -> dict[int, list[tuple[Any, ...]]]:
    """The rows of one of Optuna's tables, by trial."""
    rows_of = table(part, column("trial_id"), *(column(key) for key in kept))
    query = (
        select(*rows_of.c).join(_TRIALS, _TRIALS.c.trial_id == rows_of.c.trial_id).where(_TRIALS.c.study_id == study)
    )
    if part == "trial_system_attributes":
        query = query.where(rows_of.c.key.in_(_SYSTEM_KEYS))
    found: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
    for trial, *values in session.execute(query):
        found[trial].append(tuple(values))
    return found


def _trial(row: Mapping[Any, Any], parts: Mapping[str, list[tuple[Any, ...]]]) -> TrialRecord:
    system = {key: json.loads(value) for key, value in parts["trial_system_attributes"]}
    params = {key: _distribution(kept).to_external_repr(value) for key, value, kept in parts["trial_params"]}
    retried = system.get("retry_history") or [None]
    return TrialRecord(
        number=row["number"],
        state=str(row["state"]).lower(),
        score=dict(parts["trial_values"]).get(SCORED),
        params={**system.get("fixed_params", {}), **params},
        curve={step: value for step, value in sorted(parts["trial_intermediate_values"]) if value is not None},
        attributes={key: json.loads(value) for key, value in parts["trial_user_attributes"]},
        retry_of=retried[-1],
        started=_utc(row["datetime_start"]),
        ended=_utc(row["datetime_complete"]),
    )


def _utc(stored: datetime | None) -> datetime | None:
    """Optuna keeps UTC without saying so."""
    return None if stored is None else stored.replace(tzinfo=UTC)


@lru_cache(maxsize=256)
def _distribution(record: str) -> BaseDistribution:
    """One of Optuna's, as it stands in a database."""
    return json_to_distribution(record)


def _result_rows(study: int, result: Result) -> list[Base]:
    lead = result.lead or (None, None, None)
    key = {"study_id": study, "name": result.name, "metric": result.metric}
    return [
        ResultRow(**key, layout=result.layout, value=result.value, low=result.low, high=result.high),
        ComparisonRow(
            **key, seeds=result.seeds, sd=result.sd, lead=lead[0], lead_low=lead[1], lead_high=lead[2], p=result.p
        ),
    ]


def _result(row: ResultRow, compared: ComparisonRow | None) -> Result:
    found = Result(row.name, row.layout, row.metric, row.value, row.low, row.high)
    if compared is None:
        return found
    lead = None
    if compared.lead is not None and compared.lead_low is not None and compared.lead_high is not None:
        lead = Interval(compared.lead, compared.lead_low, compared.lead_high)
    return found._replace(seeds=compared.seeds, sd=compared.sd, lead=lead, p=compared.p)


def open_store(url: str | None, output: str, *, create: bool, lock_seconds: float = LOCK_SECONDS) -> Store:
    """The store at a URL, or by default the SQLite file in the output folder; arguments as of `Store`.

    Raises:
        NoStudies: where ``create`` is False, for a database or a file that is not there.
        StoreError: for a file that is no database, a folder that cannot be written, an unknown kind of database.
    """
    if url is None:
        folder = Path(output).expanduser()
        path = folder / DATABASE
        if create:
            require_writable(folder)
        elif not path.is_file():
            raise NoStudies(
                f"there are no studies under {folder} yet; start one with `dasearch run`, or give --storage"
            )
        url = f"sqlite:///{path}"
    elif "://" not in url:
        url = f"sqlite:///{url}"
    if not create and url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).is_file():
        raise NoStudies(f"there is no database {url.removeprefix('sqlite:///')}; check --storage")
    return Store(url, create=create, lock_seconds=lock_seconds)


def require_writable(folder: Path) -> None:
    """Make the folder, or say in one sentence why it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StoreError(
            f"the output folder {folder} cannot be written ({error.strerror}); choose another with --set output=FOLDER"
        ) from None


def _engine_options(url: str, lock_seconds: float) -> dict[str, Any]:
    return {"connect_args": {"timeout": lock_seconds}} if url.startswith("sqlite") else {}


def _engine(url: str, lock_seconds: float) -> Engine:
    try:
        parsed = make_url(url)
        engine = create_engine(parsed, **_engine_options(url, lock_seconds))
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise StoreError(
            f"{url} is not a database URL dasearch can open ({_reason(error)}); use sqlite:///FILE or postgresql://..."
        ) from None
    if parsed.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _write_ahead)
    return engine


def _write_ahead(connection: sqlite3.Connection, _: object) -> None:
    """Readers do not wait for a writer: `dasearch status` answers while a study runs."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA foreign_keys=ON")


def _shown(url: str) -> str:
    return (
        url.removeprefix("sqlite:///")
        if url.startswith("sqlite")
        else make_url(url).render_as_string(hide_password=True)
    )


def _reason(error: Exception) -> str:
    return first_line(getattr(error, "orig", None) or error)


def _remedy(error: Exception) -> str:
    if "not a database" in _reason(error):
        return "name another file, or move this one away"
    return "check that its folder exists and can be written"


def _layout(study: StudyRow, text: str) -> Layout:
    """A layout as the study's own space writes it; of a space that cannot be read, by the shipped letters."""
    space = _space(study.space)
    return Layout.parse(text) if space is None else space.parse(text)


@lru_cache(maxsize=8)
def _space(record: str) -> SearchSpace | None:
    """The search space of a study's row; None for one that this version cannot read."""
    try:
        return SearchSpace.from_record(json.loads(record))
    except ValidationError:
        return None
