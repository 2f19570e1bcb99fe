"""Studies that are killed: `dasearch run` in separate processes, SIGKILLs at seeded moments, the database after each.

Needs ``/proc``. A run and all that it starts carry a mark in their environment, by which they are found when it is gone.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dasearch.config import StudySettings
from dasearch.errors import StoreError
from dasearch.search.store import Store, open_store
from dasearch.search.study import Status, status
from tests.training.studies import merged, small_study

PROC = Path("/proc")
MARK = "DASEARCH_KILLED_RUN"
NAME = "toy"  # of the study
WORK = ("search", "confirmation", "final")
POLL = 0.02  # seconds
PATIENCE = 300.0  # seconds for a run to go on, on a busy machine
LEFT = 120.0  # seconds for the processes of a run that is over to end
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")  # wait a minute for Ray's server when that is killed, then end
LONGEST_DELAY = 0.5  # seconds of a kill after the epoch that it waits for
Say = Callable[[str], None]


@dataclass(frozen=True)
class Place:
    """Where a study runs: its folder, its database (None: the file in the folder), and its workers (None: its own process)."""

    folder: Path
    storage: str | None = None
    workers: int | None = None

    def settings(self, **changes: Any) -> StudySettings:
        """A study of short trials that ends only by its budget."""
        fast = {
            "search": {"batch": 1, "pending": self.workers or 1, "stop_when_flat": False},
            "comparison": {"encoders": [], "variations": []},
            "output": str(self.folder / "runs"),
        }
        return small_study(self.folder, **merged(fast, changes))

    def store(self) -> Store:
        return open_store(self.storage, str(self.folder / "runs"), create=False)

    def command(self, settings: StudySettings) -> list[str]:
        """What runs the study."""
        file = self.folder / "study.yaml"
        file.write_text(yaml.safe_dump(settings.model_dump(mode="json", exclude_unset=True)))
        storage = [] if self.storage is None else ["--storage", self.storage]
        workers = [] if self.workers is None else ["--workers", str(self.workers), "--cpus-per-worker", "1"]
        return [sys.executable, "-m", "dasearch.cli", "run", str(file), *storage, *workers]


class Run:
    """A process that runs a study, in its own session as in a terminal."""

    def __init__(self, place: Place, settings: StudySettings) -> None:
        self.mark = uuid.uuid4().hex
        self.log = place.folder / f"run-{self.mark}.log"
        environment = {**os.environ, MARK: self.mark, "OMP_NUM_THREADS": "1"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                place.command(settings),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    @property
    def over(self) -> bool:
        return self.process.poll() is not None

    @property
    def text(self) -> str:
        """What it has printed."""
        return self.log.read_text()

    def kill(self) -> None:
        """End the process itself and nothing that it started."""
        self.process.kill()
        self.process.wait()

    def code(self) -> int:
        """Its exit code, waited for."""
        return self.process.wait(PATIENCE)

    def workers(self) -> list[int]:
        """Processes of its workers that train, or have trained."""
        return [pid for pid in self.processes() if _command(pid).startswith("ray::Worker")]

    def processes(self) -> list[int]:
        """Everything that it started and that is there still, itself included."""
        wanted = f"{MARK}={self.mark}".encode()
        return [pid for pid in _pids() if wanted in _read(pid, "environ").split(b"\0") and not _dead(pid)]

    def require_nothing_left(self, *, agents: bool = False) -> None:
        """Of a run that is over.

        Args:
            agents: let those of a killed one wait.

        Raises:
            AssertionError: naming what is there still, which is ended.
        """
        until = time.monotonic() + LEFT
        while (left := self._left(agents=agents)) and time.monotonic() < until:
            time.sleep(POLL)
        names = [_command(pid) for pid in left]
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert not names, f"left of a run that is over: {names}"

    def _left(self, *, agents: bool) -> list[int]:
        return [pid for pid in self.processes() if not (agents and _command(pid).startswith(AGENTS))]


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit())


def _read(pid: int, what: str) -> bytes:
    """A file of a process; empty if the process ended or belongs to another user."""
    try:
        return (PROC / str(pid) / what).read_bytes()
    except OSError:
        return b""


def _command(pid: int) -> str:
    return _read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()


def _dead(pid: int) -> bool:
    """A zombie: ended, and not yet waited for."""
    return _read(pid, "stat").rpartition(b")")[2].split()[:1] in ([b"Z"], [])


class Seen(NamedTuple):
    """The records of a running study.

    Attributes:
        version: another one whenever anything else is.
        epochs: of every training, by run and number: losses, metrics and seconds, which a second training would change.
    """

    phase: str
    version: str
    epochs: dict[tuple[str, int], tuple[Any, ...]]


NOTHING = Seen("", "", {})


def seen(place: Place) -> Seen:
    """`NOTHING` where the study has not begun."""
    try:
        with closing(place.store()) as store:
            progress = store.progress(NAME)
            found = store.epochs_by_run(NAME)
    except StoreError:
        return NOTHING
    epochs = {(run, one.number): (one.losses, one.metrics, one.seconds) for run, own in found.items() for one in own}
    return Seen(progress.phase, progress.version, epochs)


def require_kept(before: Seen, after: Seen) -> None:
    """Every epoch that was recorded is there as it was, so none was trained again.

    Raises:
        AssertionError: naming those that are not.
    """
    changed = [key for key, values in before.epochs.items() if after.epochs.get(key) != values]
    assert not changed, f"recorded epochs are gone or were trained again: {changed}"


class Ending(NamedTuple):
    """What a study comes to, without its times."""

    trials: list[tuple[str, float | None]]
    curves: list[tuple[str, int, dict[str, float]]]
    confirmed: list[tuple[str, int, dict[str, float]]]
    standings: list[tuple[Any, ...]]
    results: list[Any]
    trainings: list[Any]


def ending(place: Place) -> Ending:
    """Of a study that is done.

    Raises:
        AssertionError: if its budget is not met exactly, or a layout was evaluated twice.
    """
    with closing(place.store()) as store:
        found = status(store, NAME)
        require_exact(found)
        curves = [(run, one.number, one.metrics) for run, own in store.epochs_by_run(NAME).items() for one in own]
        confirmed = [(str(one.layout), one.seed, one.metrics) for one in store.confirmations(NAME)]
        trainings = [one._replace(seconds=0.0, peak_memory=0) for one in store.final_trainings(NAME)]
    return Ending(
        [(str(trial.layout), trial.score) for trial in found.completed],
        sorted(curves, key=lambda one: one[:2]),
        sorted(confirmed, key=lambda one: one[:2]),
        [(str(one.layout), one.role, one.score, one.gain, one.simultaneous_interval) for one in found.standings],
        found.results,
        sorted(trainings, key=lambda one: (one.name, one.seed)),
    )


def differences(found: Ending, expected: Ending) -> list[str]:
    """The parts in which two endings differ, each with its first difference."""
    parts = zip(Ending._fields, found, expected, strict=True)
    return [
        f"{name}: {next(pair for pair in zip_longest(own, other) if pair[0] != pair[1])}"
        for name, own, other in parts
        if own != other
    ]


def require_exact(found: Status) -> None:
    """The budget is met exactly, by different layouts, and nothing runs or waits."""
    states = Counter(trial.state for trial in found.trials)
    assert found.phase == "done", found.phase
    assert len({trial.layout for trial in found.completed}) == len(found.completed) == found.budget, states
    assert set(states) <= {"complete", "fail"}, states


@dataclass
class Tally:
    """The kills of one study.

    Attributes:
        kills: the phase and the victim of each.
        seconds: from the first start to the end.
    """

    kills: list[tuple[str, str]] = field(default_factory=list)
    starts: int = 0
    seconds: float = 0.0
    ending: Ending | None = None


@dataclass
class Killer:
    """Runs a study to its end through kills.

    Attributes:
        moments: for each kill, the recorded epochs that it waits for, and the seconds after them.
        victims: of each: ``driver`` or ``worker``.
        thorough: wait at the end until the agents of killed runs have ended as well.
    """

    place: Place
    settings: StudySettings
    moments: Sequence[tuple[int, float]]
    victims: Sequence[str]
    say: Say = lambda text: None
    thorough: bool = False

    def run(self) -> Tally:
        """Kill, check, resume.

        Raises:
            AssertionError: for whatever a kill cost.
        """
        began, tally = time.monotonic(), Tally()
        self._killed = list[Run]()
        run = self._start(tally)
        for moment, victim in zip(self.moments, self.victims, strict=True):
            if not self._waited(run, *moment):
                break
            run = self._kill(run, victim, tally)
        assert run.code() == 0, run.text
        run.require_nothing_left()
        tally.seconds, tally.ending = time.monotonic() - began, ending(self.place)
        for before in self._killed:
            before.require_nothing_left(agents=not self.thorough)
        return tally

    def _start(self, tally: Tally) -> Run:
        tally.starts += 1
        self._at_start = self._now = seen(self.place)
        return Run(self.place, self.settings)

    def _waited(self, run: Run, epochs: int, delay: float) -> bool:
        """Until a run works, so many epochs are recorded and the delay is over; False for a run that ended before."""
        until = time.monotonic() + PATIENCE
        while not self._works() or len(self._now.epochs) < epochs:
            assert time.monotonic() < until, f"no progress after {self._now.phase}:\n{run.text}"
            if run.over:
                return False
            time.sleep(POLL)
            self._look()
        time.sleep(delay)
        self._look()
        return not run.over

    def _works(self) -> bool:
        """Whether the process does what a kill could harm: it has changed what was recorded since the last kill."""
        return self._now.phase in WORK and self._now.version != self._at_start.version

    def _look(self) -> None:
        before, self._now = self._now, seen(self.place)
        require_kept(before, self._now)

    def _kill(self, run: Run, victim: str, tally: Tally) -> Run:
        """One kill and its cost; the resumed run, or a new one."""
        workers = run.workers() if victim == "worker" else []
        phase, epochs = self._now.phase, len(self._now.epochs)
        if workers:
            os.kill(workers[len(tally.kills) % len(workers)], signal.SIGKILL)
        else:
            run.kill()
        tally.kills.append((phase, "worker" if workers else "driver"))
        self.say(f"kill {len(tally.kills)}: {tally.kills[-1][1]} in {phase}, {epochs} epochs")
        self._look()
        if workers:
            self._at_start = self._now
            return run
        run.require_nothing_left(agents=True)
        self._look()
        self._killed.append(run)
        return self._start(tally)


def drawn(kills: int, epochs: int, seed: int, *, workers: bool) -> tuple[list[tuple[int, float]], list[str]]:
    """Moments over a study of so many epochs, in their order, and victims, as `Killer` wants them."""
    generator = random.Random(seed)
    moments = [
        (place, generator.uniform(0, LONGEST_DELAY)) for place in sorted(generator.choices(range(epochs), k=kills))
    ]
    return moments, [generator.choice(("driver", "worker")) if workers else "driver" for _ in range(kills)]


def wait_for(place: Place, run: Run, epochs: int) -> Seen:
    """Until a run has recorded so many epochs.

    Raises:
        AssertionError: if it ends before, or takes too long.
    """
    until = time.monotonic() + PATIENCE
    while len((found := seen(place)).epochs) < epochs:
        assert not run.over, run.text
        assert time.monotonic() < until, run.text
        time.sleep(POLL)
    return found


def uninterrupted(place: Place, settings: StudySettings) -> Ending:
    """What a study comes to that nothing kills."""
    run = Run(place, settings)
    assert run.code() == 0, run.text
    run.require_nothing_left()
    return ending(place)
