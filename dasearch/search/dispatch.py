"""Trainings as jobs: submitted, tried again where a worker was lost or memory did not suffice, collected."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from dasearch.config import Recipe
from dasearch.errors import BrokenTraining
from dasearch.search.executors.base import Event, Executor, Job, Kind, out_of_memory
from dasearch.search.objective import Objective, Outcome, Run
from dasearch.training.progress import Epoch
from dasearch.training.shared import Say

MOST_ATTEMPTS = 3  # of a training whose worker is lost: it goes on from its checkpoint twice


@dataclass
class Batch:
    """Trainings submitted together, and what has become of each.

    Attributes:
        on_epoch: told each epoch with the place of its run, some twice.
        outcomes: by place.
        workers: where each run was trained, by place: ``machine:process``, the last attempt's last.
        recipes: of the runs whose memory did not suffice, by place: the same rows a step in smaller parts.
    """

    objective: Objective
    runs: Sequence[Run]
    on_epoch: Callable[[int, Epoch], None]
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    workers: dict[int, list[str]] = field(default_factory=dict)
    recipes: dict[int, Recipe] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        return len(self.outcomes) == len(self.runs)

    @property
    def in_order(self) -> list[Outcome]:
        """Of a batch that is over: what became of its runs."""
        return [self.outcomes[place] for place in range(len(self.runs))]

    def objective_of(self, place: int) -> Objective:
        """What trained a run in the end."""
        return replace(self.objective, recipe=self.recipes.get(place, self.objective.recipe))


@dataclass
class _Flight:
    """A job on its way: its batch, the places of its runs in it, and which of them are not over."""

    job: Job
    batch: Batch
    places: Sequence[int]
    left: set[int]


class Dispatcher:
    """Between a study and its executor.

    Args:
        say: told of what goes wrong and on.
    """

    def __init__(self, executor: Executor, say: Say) -> None:
        self.executor, self._say = executor, say
        self._numbers = itertools.count(1)
        self._flights: dict[int, _Flight] = {}

    @property
    def idle(self) -> int:
        """How many jobs could begin at once."""
        return self.executor.slots - len(self._flights)

    def submit(self, objective: Objective, runs: Sequence[Run], on_epoch: Callable[[int, Epoch], None]) -> Batch:
        """Train runs side by side in one job, each from its own checkpoint on."""
        batch = Batch(objective, runs, on_epoch)
        self._send(batch, range(len(runs)), attempt=1)
        return batch

    def wait(self) -> None:
        """Until something has happened."""
        self.executor.advance(self._heard)

    def _send(self, batch: Batch, places: Sequence[int], attempt: int) -> None:
        objective = batch.objective_of(places[0])
        job = Job(
            next(self._numbers),
            tuple(batch.runs[place] for place in places),
            objective.settings,
            objective.recipe,
            objective.users,
            objective.replace_every,
            objective.lora,
            objective.at_once,
            objective.folder,
            attempt,
        )
        self._flights[job.number] = _Flight(job, batch, places, set(places))
        self.executor.submit(job)

    def _heard(self, event: Event) -> None:
        flight = self._flights.get(event.job)
        if flight is None or event.attempt != flight.job.attempt:  # of an attempt that was given up
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
        batch = flight.batch
        flight.left.discard(place)
        if not flight.left:
            del self._flights[flight.job.number]
        smaller = _in_smaller_parts(flight.job.recipe)
        wanted = isinstance(outcome, Exception) and out_of_memory(outcome)
        if wanted and smaller is not None and place not in batch.recipes:
            batch.recipes[place] = smaller
            self._say(
                f"{batch.runs[place].name} did not fit into memory; it is tried again with batch_size={smaller.batch_size} "
                f"and accumulate={smaller.accumulate}"
            )
            self._send(batch, [place], flight.job.attempt)
        else:
            batch.outcomes[place] = outcome

    def _lost(self, flight: _Flight, cause: str) -> None:
        """Each of its trainings goes on alone, so that one that takes its worker down takes no other with it."""
        del self._flights[flight.job.number]
        for place in sorted(flight.left):
            if flight.job.attempt < MOST_ATTEMPTS:
                self._say(f"{flight.batch.runs[place].name}: {cause}; it goes on from its last epoch")
                self._send(flight.batch, [place], flight.job.attempt + 1)
            else:
                error = BrokenTraining(f"{cause}, {MOST_ATTEMPTS} times")
                flight.batch.outcomes[place] = error


def _in_smaller_parts(recipe: Recipe) -> Recipe | None:
    """Half of the rows of a forward pass, and as many rows a step; None where they cannot be halved."""
    if recipe.batch_size % 2:
        return None
    return recipe.model_copy(update={"batch_size": recipe.batch_size // 2, "accumulate": 2 * recipe.accumulate})
