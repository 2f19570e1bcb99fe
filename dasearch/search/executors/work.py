"""Runs a job on any executor: from the job and the prepared study to its events."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dasearch.errors import BrokenTraining, ExchangeError
from dasearch.search.executors.base import Event, Heard, Job, Kind
from dasearch.search.executors.exchange import Exchange
from dasearch.search.executors.places import bundle_object, checkpoint_object
from dasearch.search.executors.tasks import Workshop, with_threads
from dasearch.search.objective import Prepared, checkpoint_name
from dasearch.training.bundle import load_bundle
from dasearch.training.progress import Epoch


def work(job: Job, workshop: Workshop, tell: Heard, exchange: Exchange | None = None) -> None:
    """Train a job's task, and report each epoch and then the outcome of each training.

    Args:
        job: to be run.
        workshop: the prepared study.
        tell: callback for events; an exception in it ends the job.
        exchange: receives checkpoints before their epochs are reported; None: the driver shares the folder.
    """
    if exchange is None:
        _work(job, workshop, tell, job.checkpoints, lambda place: None)
        return
    names = [checkpoint_name(name) for name in job.task.names]
    objects = [checkpoint_object(job.checkpoints / name) for name in names]
    with tempfile.TemporaryDirectory(prefix="dasearch-checkpoints-") as folder:
        files = [Path(folder) / name for name in names]
        for name, file in zip(objects, files, strict=True):
            exchange.get(name, file)
        _work(job, workshop, tell, Path(folder), lambda place: exchange.put(objects[place], files[place]))


def _work(job: Job, workshop: Workshop, tell: Heard, folder: Path, saved: Callable[[int], None]) -> None:
    began, minutes = time.monotonic(), job.task.minutes

    def event(kind: Kind, place: int = 0, **parts: object) -> Event:
        return Event(job.number, job.attempt, kind, place, **parts)  # type: ignore[arg-type]

    def on_epoch(place: int, epoch: Epoch) -> None:
        try:
            saved(place)
            tell(event(Kind.EPOCH, place, epoch=epoch))
        except Exception as error:
            raise _Unheard(error) from error
        if minutes is not None and time.monotonic() - began > 60 * minutes:
            raise overtime(job)

    def say(text: str) -> None:
        tell(event(Kind.SAYS, text=text))

    tell(event(Kind.BEGAN, text=this_process()))
    try:
        outcomes = job.task.train(workshop, folder, on_epoch, say)
    except _Unheard as stopped:
        raise stopped.error from None
    for place, outcome in enumerate(outcomes):
        if isinstance(outcome, Exception):
            tell(event(Kind.FAILED, place, error=outcome))
        else:
            tell(event(Kind.DONE, place, fit=outcome))


def work_or_fail(job: Job, opened: Callable[[], Workshop], tell: Heard, exchange: Exchange | None = None) -> None:
    """Train a job in a worker, which opens the prepared study first; an error outside the trainings fails them."""
    try:
        work(job, opened(), tell, exchange)
    except ExchangeError as error:  # not an error of the trainings: they resume from their uploaded checkpoints
        tell(Event(job.number, job.attempt, Kind.LOST, text=str(error)))
    except Exception as error:
        for place in range(len(job.task.names)):
            tell(Event(job.number, job.attempt, Kind.FAILED, place, error=error))


def read_job(record: dict[str, Any], *, cpus: int) -> Job:
    """The job of its JSON values, for a worker with this many cores."""
    job = Job.from_record(record)
    return replace(job, task=job.task.with_threads(cpus))


def opened(bundles: Path, prepared: Prepared, *, cpus: int, exchange: Exchange | None = None) -> Workshop:
    """Open a prepared study from a folder of bundles or an exchange, in a worker with this many cores."""
    if exchange is not None:
        with tempfile.TemporaryDirectory(prefix="dasearch-prepared-") as folder:
            exchange.get_folder(bundle_object(prepared.name), Path(folder) / prepared.name)
            return opened(Path(folder), prepared, cpus=cpus)
    return Workshop(load_bundle(bundles, prepared.name, with_threads(prepared.settings, cpus)))


def this_process() -> str:
    """As ``machine:process``."""
    return f"{platform.node()}:{os.getpid()}"


def elsewhere(workers: Sequence[str]) -> list[str]:
    """The workers of a training; empty for one that this process trained at its first attempt."""
    return [] if list(workers) == [this_process()] else list(workers)


def overtime(job: Job) -> BrokenTraining:
    """The exception that ends a job after its time limit."""
    return BrokenTraining(f"it took longer than its {job.task.minutes_each:g} minutes")


class _Unheard(BaseException):
    """An error in a callback for an epoch, not in the training."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error
