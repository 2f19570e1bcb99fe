"""Typed records that the store reads and writes, independent of the database."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from dasearch.bayes import mean_of_curve
from dasearch.layout import Layout
from dasearch.training.metrics import Interval


class PriorTrial(NamedTuple):
    """A layout of a study's space, its score in another study in that study's units, and the other study's name."""

    layout: Layout
    value: float
    source: str


class Stored(NamedTuple):
    """A study as recorded at its beginning."""

    name: str
    settings: dict[str, Any]
    space: dict[str, Any]
    space_hash: str
    dataset: dict[str, Any]
    phase: str
    versions: dict[str, str]
    created: float


class Progress(NamedTuple):
    """Progress of a study from counts only: its time does not depend on the number of trials.

    Attributes:
        states: trials by their state, in lower case.
        best: score of the complete trials.
        heard: the last heartbeat of a running trial.
        version: changes whenever any record of the study changes.
        ends: estimated by the process that runs it; None where it is unknown, or none runs.
    """

    name: str
    settings: dict[str, Any]
    phase: str
    created: float
    states: dict[str, int]
    best: float | None
    heard: datetime | None
    version: str
    ends: datetime | None = None


class TrialRecord(NamedTuple):
    """A trial in Optuna's tables.

    Attributes:
        state: of `optuna.trial.TrialState`, in lower case.
        params: the choice of each parameter, by name; for a waiting trial its enqueued parameters.
        curve: intermediate values by step, without non-finite ones.
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
    def surrogate_target(self) -> float | None:
        """The signal of a complete trial, which the surrogate is fitted to."""
        return None if self.score is None else mean_of_curve(self.curve, self.score)

    @property
    def seconds(self) -> float | None:
        """Seconds of training, its share where several ran side by side; of the attempt where no training finished."""
        attempt = (self.ended - self.started).total_seconds() if self.started and self.ended else None
        kept: float | None = self.attributes.get("seconds", attempt)
        return kept


class Confirmation(NamedTuple):
    """A training of a layout with one seed after the search, and its validation metrics."""

    layout: Layout
    role: str
    seed: int
    metrics: dict[str, float]
    seconds: float


class Result(NamedTuple):
    """A metric of one row of the results table: mean over seeds and users, its 95% interval over users.

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


class PostSearchTraining(NamedTuple):
    """A training of the confirmation or the final phase: its position among ``total``, and when it ran.

    Attributes:
        run: as in `EpochRow`.
        began: its start, or the last resumption after an interruption.
        ended: None while it runs.
        workers: ``machine:process``, one per attempt; empty for the study's own process.
        reason: the cause of a failure; None unless it failed.
    """

    run: str
    phase: str
    label: str
    layout: Layout
    place: int
    total: int
    began: datetime
    ended: datetime | None = None
    workers: tuple[str, ...] = ()
    reason: str | None = None


class AblationTraining(NamedTuple):
    """One training of an ablation; ``metrics`` on the validation split."""

    run: str
    variant: str
    seed: int
    metrics: dict[str, float]
    parameters: int
    seconds: float


class Artifact(NamedTuple):
    """A file or folder that a study saved."""

    kind: str
    path: str
    sha256: str
