"""Runs jobs in Ray workers, on this machine or on a running cluster.

A worker is an actor that opens the prepared study by its hash and trains one job at a time. Ray never retries: a restarted
stream of events would lose epochs. A cluster on this machine requires a token that only this process and its workers know,
reports no statistics, and ends with the process.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from dasearch.config import StudySettings
from dasearch.errors import BrokenTraining, StudyError, first_line
from dasearch.search.executors.base import Event, Heard, Job, Workers, out_of_memory
from dasearch.search.executors.exchange import Exchange
from dasearch.search.executors.own_folder import OwnFolder
from dasearch.search.executors.tasks import Workshop
from dasearch.search.executors.watch import Watched, Watching
from dasearch.search.executors.work import opened, overtime, read_job, work_or_fail
from dasearch.search.objective import Prepared
from dasearch.threads import cores

if TYPE_CHECKING:
    from types import ModuleType

TICK = 1.0  # seconds between two checks of the jobs' deadlines
OBJECT_STORE = 100 * 2**20  # bytes; it carries only events


class Worker:
    """One worker.

    Args:
        bundles: folder of the prepared studies.
        cpus: its threads.
        exchange: as in `Exchange`; None: it shares the driver's output.
    """

    def __init__(self, bundles: str, cpus: int, exchange: tuple[str, str] | None = None) -> None:
        self._bundles, self._cpus = Path(bundles), cpus
        self._exchange = None if exchange is None else Exchange(*exchange)
        self._opened: tuple[str, Workshop] | None = None  # the last one opened; an ablation has several

    def train(self, record: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of a job, as JSON values."""
        job = read_job(record, cpus=self._cpus)
        events = SimpleQueue[Event | None]()
        thread = threading.Thread(target=self._work, args=(job, events), daemon=True)
        thread.start()
        while (event := events.get()) is not None:
            yield event.record()

    def _work(self, job: Job, told: SimpleQueue[Event | None]) -> None:
        try:
            work_or_fail(job, lambda: self._workshop(job.prepared), told.put, self._exchange)
        finally:
            told.put(None)

    def _workshop(self, prepared: Prepared) -> Workshop:
        if self._opened is None or self._opened[0] != prepared.name:
            self._opened = None  # frees its memory first
            self._opened = prepared.name, opened(self._bundles, prepared, cpus=self._cpus, exchange=self._exchange)
        return self._opened[1]


@dataclass(kw_only=True, eq=False)
class _Busy(Watched):
    """A worker and the job that it trains."""

    actor: Any
    events: Any  # Ray's generator of references


class RayExecutor(Watching[_Busy]):
    """The executor of ``--workers`` and ``--ray``.

    Args:
        output: as in `Watching`.

    Raises:
        StudyError: where Ray is not installed, or the cluster is smaller than the workers.
    """

    def __init__(self, settings: StudySettings, workers: Workers, output: Path) -> None:
        cpus = workers.cpus or max(1, cores() // workers.count)
        self._place = None if workers.exchange is None else (workers.exchange, settings.name)
        exchange = None if self._place is None else Exchange(*self._place)
        super().__init__(settings, output, slots=workers.count, cpus=cpus, gpus=workers.gpus, exchange=exchange)
        self._address = workers.address
        self._ray = _imported(own_cluster=workers.address is None)
        self._own_cluster = OwnFolder() if workers.address is None else None
        self._idle = list[Any]()
        try:
            self._connect()
            self._say_nothing()
            self._require_room()
        except BaseException:
            self.close()
            raise

    def advance(self, heard: Heard) -> None:
        """Assign jobs to idle workers, and deliver the events of one tick."""
        self._fill()
        if not self._busy:
            return
        streams = [busy.events for busy in self._busy]
        ready, _ = self._ray.wait(streams, num_returns=1, timeout=TICK)
        for busy in [busy for busy in self._busy if busy.events in ready]:
            self._hear(busy, heard)
        for busy in [busy for busy in self._busy if busy.hangs]:
            self._give_up(busy)
            busy.fail(overtime(busy.job), heard)

    def close(self) -> None:
        """End the workers, and the cluster where it is this study's own; remove what was saved for them."""
        if self._ray.is_initialized():
            self.cancel()
            for actor in self._idle:
                self._ray.kill(actor)
            self._idle.clear()
            self._ray.shutdown()
        if self._own_cluster is not None:
            self._own_cluster.remove()
        self._remove_bundles()

    def _connect(self) -> None:
        with _own_signals():
            if self._own_cluster is None:
                self._ray.init(address=self._address, log_to_driver=False, logging_level=logging.ERROR)
                return
            self._ray.init(
                address="local",
                num_cpus=self.slots * self._cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=OBJECT_STORE,
                _temp_dir=str(self._own_cluster.path),
            )

    def _say_nothing(self) -> None:
        """Silence Ray's messages on lost workers, which are events here; Ray has no public switch."""
        self._ray._private.worker._worker_logs_enabled = False

    def _require_room(self) -> None:
        """Reject workers that fit nowhere, which Ray would queue forever."""
        there = self._ray.cluster_resources()
        for name, each in (("CPU", float(self._cpus)), ("GPU", self._gpus)):
            most = int(there.get(name, 0) / each) if each else self.slots
            if most < self.slots:
                raise StudyError(
                    f"{self.slots} workers of {each:g} {name} each do not fit: there are {there.get(name, 0):g}; "
                    f"use at most --workers {most}"
                    if most
                    else f"there is no {each:g} {name} for a worker; request less"
                )

    def _started(self, job: Job) -> _Busy:
        actor = self._idle.pop() if self._idle else self._new_worker()
        events = actor.train.options(num_returns="streaming").remote(job.record())
        return _Busy(job=job, actor=actor, events=events)

    def _new_worker(self) -> Any:
        asked = {"num_cpus": self._cpus, "num_gpus": self._gpus, "max_restarts": 0, "max_task_retries": 0}
        return self._ray.remote(Worker).options(**asked).remote(str(self._bundles), self._cpus, self._place)

    def _hear(self, busy: _Busy, heard: Heard) -> None:
        """Deliver the next event of a worker, or its end."""
        try:
            record = self._ray.get(next(busy.events))
        except StopIteration:
            self._busy.remove(busy)
            self._idle.append(busy.actor)
            return
        except self._ray.exceptions.RayError as error:
            self._give_up(busy)
            if _ran_out_of_memory(error):
                busy.fail(BrokenTraining("its worker ran out of memory", memory=True), heard)
            else:
                busy.lose(f"its worker was lost ({first_line(error).rstrip('.')})", heard)
            return
        busy.tell(record, heard)

    def _end(self, busy: _Busy) -> None:
        self._ray.kill(busy.actor)


def _imported(*, own_cluster: bool) -> ModuleType:
    """Import Ray, which reads its token settings at import; by default it would store a token in the home folder."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if own_cluster and "ray" not in sys.modules:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import ray
    except ModuleNotFoundError:
        raise StudyError('workers run on Ray, which is not installed; pip install "dasearch[ray]"') from None
    return ray


def _ran_out_of_memory(error: Exception) -> bool:
    """Whether Ray killed the worker for memory; one killed by the system counts as lost."""
    return out_of_memory(error) or "running low on memory" in str(error)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the process's SIGTERM handler, which Ray would replace."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
