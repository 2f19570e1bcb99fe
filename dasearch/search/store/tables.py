"""Our own tables, prefixed ``dasearch_``, for what Optuna does not store.

A change of them needs a migration in `schema`.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Float, ForeignKey, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """Declarative base of our own tables."""


class SchemaRow(Base):
    """The schema version of these tables: one row."""

    __tablename__ = "dasearch_schema"
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


class StudyRow(Base):
    """A study as resolved when it began; ``ends`` as in `Progress`, in seconds since 1970."""

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
    ends: Mapped[float | None] = mapped_column(Float)


class PriorRow(Base):
    """A prior trial of a study's warm start, as a layout of its own space."""

    __tablename__ = "dasearch_prior"
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("dasearch_study.id"), index=True)
    layout: Mapped[str] = mapped_column(Text)
    value: Mapped[float] = mapped_column(Float)
    source: Mapped[str] = mapped_column(Text)


class CostRow(Base):
    """The costs of a study's layouts: one of `Cost`, as in `SiteCosts.record`."""

    __tablename__ = "dasearch_cost"
    __table_args__ = (UniqueConstraint("study_id", "name"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("dasearch_study.id"), index=True)
    name: Mapped[str] = mapped_column(String(40))
    costs: Mapped[str] = mapped_column(Text)


class EpochRow(Base):
    """One epoch of one training; ``run`` is its name, as in `runs.RunId`."""

    __tablename__ = "dasearch_epoch"
    __table_args__ = (UniqueConstraint("study_id", "run", "number"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("dasearch_study.id"), index=True)
    run: Mapped[str] = mapped_column(Text)
    number: Mapped[int]
    losses: Mapped[str] = mapped_column(Text)
    metrics: Mapped[str] = mapped_column(Text)
    seconds: Mapped[float] = mapped_column(Float)


class ProposalRow(Base):
    """Why a trial was proposed; ``probabilities`` as in `Proposal`; older versions stored their ``theta`` instead."""

    __tablename__ = "dasearch_proposal"
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("dasearch_study.id"), index=True)
    trial_number: Mapped[int]
    source: Mapped[str] = mapped_column(String(40))
    layout: Mapped[str] = mapped_column(Text)
    theta: Mapped[str | None] = mapped_column(Text)
    probabilities: Mapped[str | None] = mapped_column(Text)
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
    """One row of the results table: a metric of a model or baseline on the test split, as in `records.Result`."""

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
    seeds: Mapped[int] = mapped_column(server_default="1")
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
    """A training after the search; ``run`` as in `EpochRow`, times in seconds since 1970, ``workers`` a JSON list."""

    __tablename__ = "dasearch_training"
    __table_args__ = (UniqueConstraint("study_id", "run"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("dasearch_study.id"), index=True)
    run: Mapped[str] = mapped_column(Text)
    phase: Mapped[str] = mapped_column(String(20))
    label: Mapped[str] = mapped_column(Text)
    layout: Mapped[str] = mapped_column(Text)
    place: Mapped[int]
    total: Mapped[int]
    began: Mapped[float] = mapped_column(Float)
    ended: Mapped[float | None] = mapped_column(Float)
    workers: Mapped[str] = mapped_column(Text, server_default="[]")
    reason: Mapped[str | None] = mapped_column(Text)


class AblationRow(Base):
    """One training of an ablation; ``run`` and ``variant`` are hashes of everything but the seed that determines its result."""

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
    """A file or folder that the study saved."""

    __tablename__ = "dasearch_artifact"
    __table_args__ = (UniqueConstraint("study_id", "path"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("dasearch_study.id"), index=True)
    kind: Mapped[str] = mapped_column(String(40))
    path: Mapped[str] = mapped_column(Text)
    sha256: Mapped[str] = mapped_column(String(64))
