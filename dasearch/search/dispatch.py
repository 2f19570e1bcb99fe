"""Trainings as jobs: submitted, retried after a lost worker or too little memory, and collected."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dasearch.errors import BrokenTraining
from dasearch.search.executors.base import Event, Executor, Job, Kind, out_of_memory
from dasearch.search.executors.tasks import OnEpoch, Task
from dasearch.search.objective import Outcome, Prepared
from dasearch.training.shared import Say

OnOver = Callable[[int, Outcome], None]
MOST_ATTEMPTS = 3  # of a training whose worker is lost: it resumes from its checkpoint twice


@dataclass
class Batch:
    """Trainings submitted together, and their outcomes.

    Attributes:
        on_epoch: callback for each epoch, with the position of its training; some epochs repeat.
        on_over: callback for the outcome of a training, with its position.
        outcomes: by position.
        workers: of each training, by position, as ``machine:process``, the last attempt last.
        smaller: positions of the trainings that ran out of memory and were retried with smaller batches.
    """

    task: Task
    prepared: Prepared
    checkpoints: Path
    on_epoch: OnEpoch
    on_over: OnOver
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    workers: dict[int, list[str]] = field(default_factory=dict)
    smaller: set[int] = field(default_factory=set)

    @property
    def over(self) -> bool:
        """Whether every training of the batch has an outcome."""
        return len(self.outcomes) == len(self.task.names)

    def end(self, place: int, outcome: Outcome) -> None:
        """Record the outcome of a training, and call ``on_over``."""
        self.outcomes[place] = outcome
        self.on_over(place, outcome)

    @property
    def in_order(self) -> list[Outcome]:
        """The outcomes of a finished batch, in the order of its trainings."""
        return [self.outcomes[place] for place in range(len(self.task.names))]


@dataclass
class _Flight:
    """A submitted job: its batch, the positions of its trainings in it, and which of them are unfinished."""

    job: Job
    batch: Batch
    places: Sequence[int]
    left: set[int]


class Dispatcher:
    """Submits the batches of a study to its executor and retries lost trainings.

    Args:
        say: callback for messages on failures and retries.
    """

    def __init__(self, executor: Executor, say: Say) -> None:
        self.executor, self._say = executor, say
        self._numbers = itertools.count(1)
        self._flights: dict[int, _Flight] = {}

    @property
    def idle(self) -> int:
        """Number of jobs that can run at once."""
        return self.executor.slots - len(self._flights)

    def submit(
        self,
        task: Task,
        prepared: Prepared,
        checkpoints: Path,
        on_epoch: OnEpoch,
        on_over: OnOver = lambda place, outcome: None,
    ) -> Batch:
        """Submit a task as one job; each of its trainings resumes from its own checkpoint."""
        batch = Batch(task, prepared, checkpoints, on_epoch, on_over)
        self._send(batch, task, range(len(task.names)), attempt=1)
        return batch

    def wait(self) -> None:
        """Block until at least one event is handled."""
        self.executor.advance(self._heard)

    def _send(self, batch: Batch, task: Task, places: Sequence[int], attempt: int) -> None:
        job = Job(next(self._numbers), task, batch.prepared, batch.checkpoints, attempt)
        self._flights[job.number] = _Flight(job, batch, places, set(places))
        self.executor.submit(job)

    def _heard(self, event: Event) -> None:
        flight = self._flights.get(event.job)
        if flight is None or event.attempt != flight.job.attempt:  # of an abandoned attempt
            return
        if event.kind is Kind.LOST:
            self._lost(flight, event.text)
        elif event.kind is Kind.BEGAN:
            for place in flight.places:
                flight.batch.workers.setdefault(place, []).append(event.text)
        elif event.kind is Kind.SAYS:
            self._say(event.text)
        elif event.kind is Kind.EPOCH and event.epoch is not None:
            flight.batch.on_epoch(flight.places[event.place], event.epoch)
        elif (outcome := event.fit or event.error) is not None:
            self._over(flight, flight.places[event.place], outcome)

    def _over(self, flight: _Flight, place: int, outcome: Outcome) -> None:
        batch, job = flight.batch, flight.job
        flight.left.discard(place)
        if not flight.left:
            del self._flights[job.number]
        smaller = job.task.part([flight.places.index(place)]).smaller()
        wanted = isinstance(outcome, Exception) and out_of_memory(outcome)
        if wanted and smaller is not None and place not in batch.smaller:
            batch.smaller.add(place)
            self._say(f"{smaller.names[0]} did not fit into memory; retrying with {smaller.rows()}")
            self._send(batch, smaller, [place], job.attempt)
        else:
            batch.end(place, outcome)

    def _lost(self, flight: _Flight, cause: str) -> None:
        """Resubmit each of its trainings alone, so that one that crashes its worker does not stop the others."""
        job = flight.job
        del self._flights[job.number]
        for place in sorted(flight.left):
            if job.attempt < MOST_ATTEMPTS:
                alone = job.task.part([flight.places.index(place)])
                self._say(f"{alone.names[0]}: {cause}; it resumes from its last epoch")
                self._send(flight.batch, alone, [place], job.attempt + 1)
            else:
                flight.batch.end(place, BrokenTraining(f"{cause}, {MOST_ATTEMPTS} times"))
