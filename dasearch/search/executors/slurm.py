"""Runs jobs as SLURM jobs, each queued separately, for use without an allocation; or as processes of this machine.

The events of a job are lines of JSON in a file that driver and job share; SLURM is queried for jobs that write no more.
Only the driver resubmits a training: a job restarted by SLURM would train twice at once. submitit writes the scripts; it
pickles only the name of `train` and strings, and none of its results is read.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from dasearch.config import StudySettings
from dasearch.errors import BrokenTraining, DasearchError, StudyError, first_line, suggestion
from dasearch.search.executors.base import Event, Heard, Job, Workers
from dasearch.search.executors.watch import Watched, Watching
from dasearch.search.executors.work import opened, overtime, read_job, work_or_fail
from dasearch.threads import cores

if TYPE_CHECKING:
    from types import ModuleType

LOCAL = "local"
FOLDER = "slurm"  # in a study's output: scripts, logs, and event files
QUEUED = "queued"  # in it: the job ids of SLURM
PROGRAMS = ("sbatch", "srun", "sacct", "scancel")
PARAMETERS = (
    "account",
    "comment",
    "constraint",
    "cpus_per_gpu",
    "cpus_per_task",
    "dependency",
    "exclude",
    "exclusive",
    "gpus_per_node",
    "gpus_per_task",
    "gres",
    "job_name",
    "mail_type",
    "mail_user",
    "mem",
    "mem_per_cpu",
    "mem_per_gpu",
    "nodelist",
    "partition",
    "qos",
    "setup",
    "time",
    "wckey",
)
CARDS = ("gpus_per_node", "gpus_per_task", "gres")
BROKEN = ("BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT")
ENDED = {*BROKEN, "COMPLETED", "FINISHED", "INTERRUPTED"}  # the last two are states of a local process
TICK = 0.25  # seconds between two reads of the event files
LOOK = 15.0  # seconds between two queries to SLURM, which serves many users
SETTLE = 10.0  # seconds for the last lines of an ended job to appear on a network disk
END = 15.0  # seconds for terminated processes to end
NEVER = 60 * 24 * 365  # minutes; a local process has a deadline only where its job has one


def train(record: str, bundles: str, stream: str, cpus: int) -> None:
    """Entry point of a SLURM job.

    Args:
        record: the job, as JSON.
        bundles: folder of the prepared studies.
        stream: the event file; the job ends if it is removed.
        cpus: its threads.
    """
    _leave_signals_to_slurm()
    said, job = Path(stream), read_job(json.loads(record), cpus=cpus)
    threading.Thread(target=_end_without, args=(said,), daemon=True).start()
    work_or_fail(job, lambda: opened(Path(bundles), job.prepared, cpus=cpus), partial(_append, said))


@dataclass(kw_only=True, eq=False)
class _Busy(Watched):
    """A queued job.

    Attributes:
        handle: of submitit.
        read: number of bytes read from its event file.
        ended: monotonic time when SLURM first reported its end; ``state``: the reported state.
    """

    handle: Any
    stream: Path
    read: int = 0
    ended: float | None = None
    state: str = ""


class SlurmExecutor(Watching[_Busy]):
    """The executor of ``--slurm``.

    Args:
        output: as in `Watching`.
        workers: ``slurm``: as in `asked_of_slurm`, or ``local``.

    Raises:
        StudyError: where submitit or SLURM's programs are missing, or the request is invalid.
    """

    def __init__(self, settings: StudySettings, workers: Workers, output: Path) -> None:
        asked = asked_of_slurm(workers)
        gpus = 1.0 if any(card in asked for card in CARDS) else workers.gpus
        super().__init__(settings, output, slots=workers.count, cpus=_cpus(workers, asked), gpus=gpus)
        self._local = workers.slurm == LOCAL
        self._folder = output.resolve() / FOLDER
        self._queue = self._submitit(workers, asked)
        self._ending = list[Any]()
        self._looked, self._logs_wanted = time.monotonic(), False

    def advance(self, heard: Heard) -> None:
        """Submit jobs while there is room, and deliver new events; sleeps for a tick where there are none."""
        self._fill()
        if not self._busy:
            return
        delivered = [self._hear(busy, heard) for busy in list(self._busy)]
        self._look()
        for busy in list(self._busy):
            self._judge(busy, heard)
        self._ending = [handle for handle in self._ending if not handle.done()]
        if not any(delivered):
            time.sleep(TICK)

    def close(self) -> None:
        """End the jobs and remove their files; the logs are kept where a job ended without a result."""
        self.cancel()
        last = time.monotonic() + END
        while self._ending and time.monotonic() < last:
            time.sleep(TICK)
            self._ending = [handle for handle in self._ending if not handle.done()]
        self._remove_bundles()
        _clear(self._folder, logs=not self._logs_wanted)

    def _submitit(self, workers: Workers, asked: dict[str, Any]) -> Any:
        submitit = _imported()
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._local:
            queue = submitit.LocalExecutor(self._folder)
            queue.update_parameters(timeout_min=NEVER, gpus_per_node=ceil(workers.gpus))
            return queue
        queue = submitit.SlurmExecutor(self._folder)
        cards = {"gpus_per_node": int(workers.gpus)} if workers.gpus else {}
        given = {"time": None, "wckey": None, "job_name": f"dasearch-{self._settings.name}"}  # None: the site's default
        own = {"cpus_per_task": self._cpus, "additional_parameters": {"no-requeue": True}}
        queue.update_parameters(**{**given, **cards, **asked, **own})
        return queue

    def _started(self, job: Job) -> _Busy:
        stream = self._folder / f"{job.number}-{job.attempt}-{secrets.token_hex(4)}.jsonl"
        stream.touch()
        texts = (json.dumps(job.record()), str(self._bundles), str(stream))
        try:
            handle = self._queue.submit(train, *texts, self._cpus)
        except Exception as error:  # submitit has no exception class for errors of sbatch
            raise DasearchError(f"SLURM rejected the job: {first_line(error)}; run the same command again") from error
        if not self._local:
            with (self._folder / QUEUED).open("a") as numbers:
                numbers.write(f"{handle.job_id}\n")
        return _Busy(job=job, handle=handle, stream=stream)

    def _hear(self, busy: _Busy, heard: Heard) -> bool:
        """Deliver a job's new events, by whole lines; return whether there were any."""
        with busy.stream.open("rb") as said:
            said.seek(busy.read)
            lines = said.read().split(b"\n")[:-1]
        for line in lines:
            busy.read += len(line) + 1
            busy.tell(json.loads(line), heard)
        return bool(lines)

    def _look(self) -> None:
        """Query the states of all jobs at once."""
        if not self._busy or (not self._local and time.monotonic() - self._looked < LOOK):
            return
        self._busy[0].handle.get_info(mode="force")
        self._looked = time.monotonic()
        for busy in self._busy:
            state = _state(busy.handle)
            if busy.ended is None and state in ENDED:
                busy.ended, busy.state = time.monotonic(), state

    def _judge(self, busy: _Busy, heard: Heard) -> None:
        """Release a job that finished, hangs, or ended without a result."""
        if not busy.left:
            self._busy.remove(busy)
            self._ending.extend([busy.handle] if self._local else [])
        elif busy.hangs:
            self._give_up(busy)
            busy.fail(overtime(busy.job), heard)
        elif busy.ended is not None and (self._local or time.monotonic() - busy.ended > SETTLE):
            self._hear(busy, heard)
            if busy.left:
                self._give_up(busy)
                self._without_result(busy, heard)

    def _without_result(self, busy: _Busy, heard: Heard) -> None:
        self._logs_wanted = True
        if busy.state == "OUT_OF_MEMORY":
            busy.fail(BrokenTraining("its SLURM job ran out of memory", memory=True), heard)
        elif busy.state == "TIMEOUT":
            busy.lose("its SLURM job reached its time limit", heard)
        else:
            busy.lose(f"its worker was lost ({busy.state}, {busy.handle.paths.stderr})", heard)

    def _end(self, busy: _Busy) -> None:
        busy.stream.unlink(missing_ok=True)
        if busy.ended is None:
            busy.handle.cancel(check=False)
        self._ending.extend([busy.handle] if self._local else [])


def asked_of_slurm(workers: Workers) -> dict[str, Any]:
    """The request ``KEY=VALUE,KEY=VALUE`` as submitit's parameters; empty for ``local``.

    Raises:
        StudyError: where submitit or SLURM's programs are missing, or for a parameter that is unknown or malformed.
    """
    text = workers.slurm or ""
    _imported()
    if text == LOCAL:
        return {}
    asked = dict(_parameter(part) for part in re.split(r",(?=[\w-]+=)", text))
    if workers.gpus % 1:
        raise StudyError("SLURM jobs have whole GPUs; give --gpus-per-worker an integer")
    for program in PROGRAMS:
        if shutil.which(program) is None:
            raise StudyError(
                f"--slurm needs {program}, which this machine does not have; use a login node of the cluster, or --slurm local"
            )
    return asked


def end_left_over(output: Path) -> None:
    """End the jobs of a killed driver, so that they do not train at the same time as new ones.

    Args:
        output: of the study.
    """
    queued = output / FOLDER / QUEUED
    if queued.exists() and shutil.which("scancel"):
        subprocess.run(["scancel", *queued.read_text().split()], capture_output=True, check=False)
    _clear(output / FOLDER)


def _parameter(part: str) -> tuple[str, Any]:
    key, _, value = part.partition("=")
    key = key.replace("-", "_")
    if not value:
        raise StudyError(f"--slurm reads local, or KEY=VALUE,KEY=VALUE as in partition=gpu,time=120, and not {part!r}")
    if key not in PARAMETERS:
        near = suggestion(key, list(PARAMETERS)) or f"; known: {', '.join(PARAMETERS)}"
        raise StudyError(f"--slurm has no parameter {key!r}{near}")
    if key == "setup":
        return key, [value]
    return key, True if value == "true" else int(value) if value.isdecimal() else value


def _cpus(workers: Workers, asked: dict[str, Any]) -> int:
    """Threads of each worker: as given, or its share of this machine for local processes."""
    given = workers.cpus or asked.get("cpus_per_task")
    if given is None:
        return max(1, cores() // workers.count) if workers.slurm == LOCAL else 1
    return int(given)


def _state(handle: Any) -> str:
    """The state without its suffix, such as of ``CANCELLED by 1000``."""
    words = str(handle.state).split()
    return words[0].rstrip("+") if words else ""


def _imported() -> ModuleType:
    """Import submitit, and keep the handlers of the loggers, which it would close."""
    os.environ.setdefault("SUBMITIT_LOG_LEVEL", "NOCONFIG")
    try:
        import submitit
    except ModuleNotFoundError:
        raise StudyError('--slurm needs submitit, which is not installed; pip install "dasearch[slurm]"') from None
    logging.getLogger("submitit").setLevel(logging.CRITICAL)
    return submitit


def _clear(folder: Path, *, logs: bool = True) -> None:
    """Remove input and event files of jobs; ``logs``: also their logs. A local job ends when its event file is removed."""
    if logs or not folder.exists():
        shutil.rmtree(folder, ignore_errors=True)
        return
    for path in folder.iterdir():
        if not path.name.endswith(("_log.err", "_log.out")):
            path.unlink(missing_ok=True)


def _leave_signals_to_slurm() -> None:
    """Replace submitit's handlers, which requeue a job: SIGTERM ends it, and SLURM's earlier warning is ignored."""
    from submitit import JobEnvironment

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(getattr(signal, f"SIG{JobEnvironment.USR_SIG}"), signal.SIG_IGN)


def _end_without(stream: Path) -> NoReturn:
    """End this process when the driver, or a later one, has removed the job's event file."""
    while True:
        try:
            stream.stat()
        except FileNotFoundError:
            os._exit(1)
        except OSError:  # a network disk with short failures
            pass
        time.sleep(1)


def _append(stream: Path, event: Event) -> None:
    """Append a line; closing the file each time publishes it on a network disk. Never creates the file."""
    with stream.open("r+b") as said:
        said.seek(0, os.SEEK_END)
        said.write(json.dumps(event.record()).encode() + b"\n")
