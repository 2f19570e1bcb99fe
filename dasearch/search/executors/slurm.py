"""Jobs as jobs of SLURM, each queued by itself: for a site where no allocation is held. Or as processes of this machine.

What a job says comes as lines of JSON in a file that driver and job see alike; SLURM is asked what became of a job that
says no more. Only the driver queues a training again: a job that SLURM began anew would train twice at once. submitit
writes the scripts; what it pickles is the name of `train` and texts, and no result of it is read.
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
FOLDER = "slurm"  # in a study's output: scripts, logs, and what jobs say
QUEUED = "queued"  # in it: the numbers that SLURM gave
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
ENDED = {*BROKEN, "COMPLETED", "FINISHED", "INTERRUPTED"}  # the last two of a process
TICK = 0.25  # seconds between two looks at what jobs say
LOOK = 15.0  # seconds between two questions to SLURM, which answers many
SETTLE = 10.0  # seconds in which the last lines of a job that ended come through a network disk
END = 15.0  # seconds in which processes that are told to end do
NEVER = 60 * 24 * 365  # minutes; a process of this machine has a deadline of its own only where its job has


def train(record: str, bundles: str, stream: str, cpus: int) -> None:
    """What a job of SLURM does.

    Args:
        record: the job, as JSON.
        bundles: where prepared studies lie.
        stream: the file for what it says; the job ends where that is gone.
        cpus: its threads.
    """
    _leave_signals_to_slurm()
    said, job = Path(stream), read_job(json.loads(record), cpus=cpus)
    threading.Thread(target=_end_without, args=(said,), daemon=True).start()
    work_or_fail(job, lambda: opened(Path(bundles), job.prepared, cpus=cpus), partial(_append, said))


@dataclass(kw_only=True, eq=False)
class _Busy(Watched):
    """A job that was queued.

    Attributes:
        handle: submitit's.
        read: how many bytes of what it said.
        ended: when SLURM was first seen to say so, on the monotonic clock; ``state``: as what.
    """

    handle: Any
    stream: Path
    read: int = 0
    ended: float | None = None
    state: str = ""


class SlurmExecutor(Watching[_Busy]):
    """The executor of ``--slurm``.

    Args:
        output: as of `Watching`.
        workers: ``slurm``: as of `asked_of_slurm`, or ``local``.

    Raises:
        StudyError: where submitit or SLURM's programs are missing, or what is asked cannot be.
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
        """Queue what there is room for, and tell what jobs said since; a tick's rest where they said nothing."""
        self._fill()
        if not self._busy:
            return
        told = [self._hear(busy, heard) for busy in list(self._busy)]
        self._look()
        for busy in list(self._busy):
            self._judge(busy, heard)
        self._ending = [handle for handle in self._ending if not handle.done()]
        if not any(told):
            time.sleep(TICK)

    def close(self) -> None:
        """End the jobs, and remove what was saved for them; the logs stay where one ended without a result."""
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
        given = {"time": None, "wckey": None, "job_name": f"dasearch-{self._settings.name}"}  # None: as the site has it
        own = {"cpus_per_task": self._cpus, "additional_parameters": {"no-requeue": True}}
        queue.update_parameters(**{**given, **cards, **asked, **own})
        return queue

    def _started(self, job: Job) -> _Busy:
        stream = self._folder / f"{job.number}-{job.attempt}-{secrets.token_hex(4)}.jsonl"
        stream.touch()
        texts = (json.dumps(job.record()), str(self._bundles), str(stream))
        try:
            handle = self._queue.submit(train, *texts, self._cpus)
        except Exception as error:  # submitit has no kind of its own for what sbatch says
            raise DasearchError(f"SLURM took no job: {first_line(error)}; run the same command again") from error
        if not self._local:
            with (self._folder / QUEUED).open("a") as numbers:
                numbers.write(f"{handle.job_id}\n")
        return _Busy(job=job, handle=handle, stream=stream)

    def _hear(self, busy: _Busy, heard: Heard) -> bool:
        """Tell what a job said since, in whole lines; whether that was anything."""
        with busy.stream.open("rb") as said:
            said.seek(busy.read)
            lines = said.read().split(b"\n")[:-1]
        for line in lines:
            busy.read += len(line) + 1
            busy.tell(json.loads(line), heard)
        return bool(lines)

    def _look(self) -> None:
        """Ask what became of the jobs, in one question for all."""
        if not self._busy or (not self._local and time.monotonic() - self._looked < LOOK):
            return
        self._busy[0].handle.get_info(mode="force")
        self._looked = time.monotonic()
        for busy in self._busy:
            state = _state(busy.handle)
            if busy.ended is None and state in ENDED:
                busy.ended, busy.state = time.monotonic(), state

    def _judge(self, busy: _Busy, heard: Heard) -> None:
        """Part from a job that is over, hangs, or ended without a result."""
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
    """What ``KEY=VALUE,KEY=VALUE`` asks of SLURM, as submitit's parameters; nothing for ``local``.

    Raises:
        StudyError: where submitit or SLURM's programs are missing, or for a parameter that is unknown or malformed.
    """
    text = workers.slurm or ""
    _imported()
    if text == LOCAL:
        return {}
    asked = dict(_parameter(part) for part in re.split(r",(?=[\w-]+=)", text))
    if workers.gpus % 1:
        raise StudyError("a job of SLURM has whole GPUs; give --gpus-per-worker a whole number")
    for program in PROGRAMS:
        if shutil.which(program) is None:
            raise StudyError(
                f"--slurm needs {program}, which this machine does not have; use a login node of the cluster, or --slurm local"
            )
    return asked


def end_left_over(output: Path) -> None:
    """End the jobs of a driver that was killed, whoever trains now: none may train beside them.

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
        raise StudyError(f"--slurm knows no {key!r}{near}")
    if key == "setup":
        return key, [value]
    return key, True if value == "true" else int(value) if value.isdecimal() else value


def _cpus(workers: Workers, asked: dict[str, Any]) -> int:
    """Threads of each worker: as given, or its share of this machine, where it runs on it."""
    given = workers.cpus or asked.get("cpus_per_task")
    if given is None:
        return max(1, cores() // workers.count) if workers.slurm == LOCAL else 1
    return int(given)


def _state(handle: Any) -> str:
    """As SLURM names it, without who did it: ``CANCELLED by 1000``."""
    words = str(handle.state).split()
    return words[0].rstrip("+") if words else ""


def _imported() -> ModuleType:
    """submitit, which would shut every logger's handlers to install its own."""
    os.environ.setdefault("SUBMITIT_LOG_LEVEL", "NOCONFIG")
    try:
        import submitit
    except ModuleNotFoundError:
        raise StudyError('--slurm needs submitit, which is not installed; pip install "dasearch[slurm]"') from None
    logging.getLogger("submitit").setLevel(logging.CRITICAL)
    return submitit


def _clear(folder: Path, *, logs: bool = True) -> None:
    """Remove what jobs read and said; ``logs``: theirs as well. A job on this machine whose file is gone ends by that."""
    if logs or not folder.exists():
        shutil.rmtree(folder, ignore_errors=True)
        return
    for path in folder.iterdir():
        if not path.name.endswith(("_log.err", "_log.out")):
            path.unlink(missing_ok=True)


def _leave_signals_to_slurm() -> None:
    """submitit queues a job again on these; here SIGTERM ends it, and the warning before it lets it train on."""
    from submitit import JobEnvironment

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(getattr(signal, f"SIG{JobEnvironment.USR_SIG}"), signal.SIG_IGN)


def _end_without(stream: Path) -> NoReturn:
    """End this process when the driver, or one that follows it, has removed a job's file."""
    while True:
        try:
            stream.stat()
        except FileNotFoundError:
            os._exit(1)
        except OSError:  # a network disk that stammers
            pass
        time.sleep(1)


def _append(stream: Path, event: Event) -> None:
    """Add a line; opened and closed each time, which is when a network disk passes it on. Never makes the file."""
    with stream.open("r+b") as said:
        said.seek(0, os.SEEK_END)
        said.write(json.dumps(event.record()).encode() + b"\n")
