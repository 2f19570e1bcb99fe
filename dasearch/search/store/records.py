"""What the store gives and takes: typed rows without a database."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from dasearch.bayes import mean_of_curve
from dasearch.layout import Layout
from dasearch.training.metrics import Interval


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
    def surrogate_target(self) -> float | None:
        """What the surrogate learns from a complete trial."""
        return None if self.score is None else mean_of_curve(self.curve, self.score)

    @property
    def seconds(self) -> float | None:
        """Of training, its share where several ran side by side; of the attempt where nothing was trained to the end."""
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


class PostSearchTraining(NamedTuple):
    """A training of the confirmation or the final phase: its place among ``total``, and when it ran.

    Attributes:
        run: as of `EpochRow`.
        began: of one that was interrupted, when it last went on.
        ended: None while it runs.
        workers: where it was trained, ``machine:process``, an attempt after the other; nothing of one in the study's process.
        reason: why it failed; None unless it did.
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
    """A file or folder that a study made."""

    kind: str
    path: str
    sha256: str
