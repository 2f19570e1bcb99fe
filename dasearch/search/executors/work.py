"""What runs a job, wherever it runs: from the job and the prepared study to its events."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from dasearch.config import StudySettings
from dasearch.errors import BrokenTraining
from dasearch.search.executors.base import Event, Heard, Job, Kind
from dasearch.search.objective import Objective, Users, data_bo
from dasearch.training.materials import Materials
from dasearch.training.progress import Epoch


class Workshop:
    """A prepared study, as jobs want it.

    Args:
        materials: of all users.
    """

    def __init__(self, materials: Materials) -> None:
        self._materials = {Users.EVERYONE: materials}

    def objective(self, job: Job) -> Objective:
        """What trains a job's runs."""
        materials = self._of(job.users, job.settings).under(job.settings)
        return Objective(
            job.settings,
            materials,
            job.recipe,
            job.replace_every,
            job.checkpoints,
            lora=job.lora,
            users=job.users,
            counted=job.at_once,
        )

    def _of(self, users: Users, settings: StudySettings) -> Materials:
        if users not in self._materials:
            everyone = self._materials[Users.EVERYONE]
            self._materials[users] = everyone.on(data_bo(settings, everyone.development))
        return self._materials[users]


def work(job: Job, workshop: Workshop, tell: Heard) -> None:
    """Train a job's runs and tell each epoch, then what became of each run; what telling raises ends the job."""
    began = time.monotonic()

    def event(kind: Kind, place: int = 0, **parts: object) -> Event:
        return Event(job.number, job.attempt, kind, place, **parts)  # type: ignore[arg-type]

    def on_epoch(place: int, epoch: Epoch) -> None:
        try:
            tell(event(Kind.EPOCH, place, epoch=epoch))
        except Exception as error:
            raise _Unheard(error) from error
        if job.minutes is not None and time.monotonic() - began > 60 * job.minutes:
            raise overtime(job)

    def say(text: str) -> None:
        tell(event(Kind.SAYS, text=text))

    tell(event(Kind.BEGAN, text=this_process()))
    try:
        outcomes = workshop.objective(job).train_together(job.runs, on_epoch=on_epoch, say=say)
    except _Unheard as stopped:
        raise stopped.error from None
    for place, outcome in enumerate(outcomes):
        if isinstance(outcome, Exception):
            tell(event(Kind.FAILED, place, error=outcome))
        else:
            tell(event(Kind.DONE, place, fit=outcome))


def work_or_fail(job: Job, opened: Callable[[], Workshop], tell: Heard) -> None:
    """Train a job in a worker, which has to open the prepared study first; an error outside the trainings fails its runs."""
    try:
        work(job, opened(), tell)
    except Exception as error:
        for place in range(len(job.runs)):
            tell(Event(job.number, job.attempt, Kind.FAILED, place, error=error))


def read_job(record: dict[str, Any], *, cpus: int) -> Job:
    """A job from its JSON values, in a worker of so many cores."""
    job = Job.from_record(record)
    return replace(job, settings=with_threads(job.settings, cpus))


def with_threads(settings: StudySettings, cpus: int) -> StudySettings:
    """With as many threads as a worker has cores."""
    return settings.model_copy(update={"threads": cpus})


def this_process() -> str:
    """As ``machine:process``."""
    return f"{platform.node()}:{os.getpid()}"


def elsewhere(workers: Sequence[str]) -> list[str]:
    """The workers of a training; none of one that this process trained at its first attempt."""
    return [] if list(workers) == [this_process()] else list(workers)


def overtime(job: Job) -> BrokenTraining:
    """What ends a job that takes longer than it may."""
    return BrokenTraining(f"it took longer than its {job.recipe.minutes:g} minutes")


class _Unheard(BaseException):
    """An error of whoever heard of an epoch, which is none of the training."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error
