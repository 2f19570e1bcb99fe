"""Checks of a study: its database, trials, checkpoints, model, versions, disk.

Checking is read-only. `mend` removes files that no training can use and returns lost trials to the queue, but not while
the study runs.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import optuna

from dasearch.config import StudySettings, parse_study, resolve_output
from dasearch.errors import NoStudies, StoreError
from dasearch.folders import place_of, remove, sha256, unfinished_name
from dasearch.search.domain import Domain, trial_run
from dasearch.search.events import CONFIRMATION, DONE
from dasearch.search.executors.places import BUNDLES
from dasearch.search.loop import give_back
from dasearch.search.objective import checkpoint_name
from dasearch.search.store import GRACE_SECONDS, Artifact, Store, Stored, TrialRecord, open_store, require_writable
from dasearch.search.store.locks import locked_in
from dasearch.search.study import stored_space
from dasearch.training.checkpoints import load_tensors
from dasearch.version import installed_version

LEAST_FREE = (
    2**30
)  # bytes: a saved model is as large as its backbone (SmolLM2 540 MB), checkpoints and database beside it
OPEN = ("waiting", "running")  # states of unfinished trials
FOLDERS = (
    "checkpoints",
    "ablation-checkpoints",
    "models/checkpoints",
)  # lock files of a study; the first is its own run's
UNFINISHED = (
    ".*.safetensors-*",
    unfinished_name("*.safetensors", "*"),
)  # temporary files of killed writers; the first: of earlier versions


@dataclass(frozen=True)
class Check:
    """The result of one check; where it failed, ``says`` names the fix."""

    name: str
    good: bool
    says: str


@dataclass(frozen=True)
class Leftovers:
    """Remains of a killed process.

    Attributes:
        lost: running trials without a process.
        damaged, orphaned: checkpoints that are unreadable or unused.
        prepared: the folder prepared for workers, where there are none any more; else None.
    """

    lost: tuple[int, ...]
    damaged: tuple[Path, ...]
    orphaned: tuple[Path, ...]
    prepared: Path | None


class StoredStudy:
    """A stored study, and the folder of its checkpoints and models.

    Args:
        folder: None: the one in its settings.

    Raises:
        StoreError: if there is no such study in the database.
    """

    def __init__(self, store: Store, name: str, folder: Path | None = None) -> None:
        self.store = store
        self.stored: Stored = store.begun(name)
        self.settings: StudySettings = parse_study(self.stored.settings, source=f"study {name}")
        self.folder = folder or resolve_output(self.settings)
        self.domain = Domain.of(self.settings, stored_space(self.stored))

    @property
    def name(self) -> str:
        """The study's name."""
        return self.stored.name

    def leftovers(self) -> Leftovers:
        """The current remains of killed processes."""
        checkpoints = [path for folder in FOLDERS for path in sorted((self.folder / folder).glob("*.safetensors"))]
        damaged = tuple(path for path in checkpoints if not _is_readable(path))
        own = self.folder / FOLDERS[0]
        needless = self._needless([path for path in checkpoints if path.parent == own and path not in damaged])
        killed = sorted(path for pattern in UNFINISHED for path in own.glob(pattern))
        unused = [path for path in (*needless, *killed) if _is_left(path)]
        return Leftovers(self._lost(), damaged, tuple(unused), self._prepared())

    def _prepared(self) -> Path | None:
        """The workers' folder, if no driver holds the lock of the study's folder."""
        folder = self.folder / BUNDLES
        if not folder.is_dir():
            return None
        try:
            with locked_in(self.folder):
                return folder
        except StoreError:
            return None

    def _lost(self) -> tuple[int, ...]:
        oldest = datetime.now(UTC) - timedelta(seconds=GRACE_SECONDS)
        return tuple(number for number, heartbeat in self.store.running(self.name).items() if heartbeat < oldest)

    def _needless(self, checkpoints: Sequence[Path]) -> list[Path]:
        """Checkpoints that no training resumes from; those of the final phase are used until the study is done."""
        if self.stored.phase == DONE:
            return list(checkpoints)
        trials = [t for t in self.store.trials(self.name) if t.state in OPEN and self.domain.holds(t.params)]
        needed = {self._checkpoint(trial) for trial in trials}
        later = self.store.later_trainings(self.name)
        ended = {checkpoint_name(t.run) for t in later if t.phase == CONFIRMATION and t.ended is not None}
        return [
            path
            for path in checkpoints
            if (path.name not in needed if path.name.startswith("trial_") else path.name in ended)
        ]

    def _checkpoint(self, trial: TrialRecord) -> str:
        point = self.domain.point(trial.params)
        return checkpoint_name(trial_run(point.layout, self.domain.named(point.values)))


def examine_study(name: str, *, output: str, storage: str | None) -> list[Check]:
    """Check a study; only its database where that is damaged.

    Raises:
        NoStudies: if there is no database.
        StoreError: if the database has no such study.
    """
    damage = database_damage(output, storage)
    if damage is not None:
        return [Check("database", good=False, says=f"{damage}; restore a copy of it")]
    with closing(open_store(storage, output, create=False)) as store:
        return checks(StoredStudy(store, name, _folder(name, output, storage)))


def mend_study(name: str, *, output: str, storage: str | None) -> list[str]:
    """`mend` a study, unless its database is damaged; one line per action."""
    if database_damage(output, storage) is not None:
        return []
    with closing(open_store(storage, output, create=False)) as store:
        return mend(StoredStudy(store, name, _folder(name, output, storage)))


def database_damage(output: str, storage: str | None) -> str | None:
    """Why an existing database cannot be used; None where it can.

    Raises:
        NoStudies: if there is no database.
    """
    try:
        with closing(open_store(storage, output, create=False)) as store:
            return store.damage()
    except NoStudies:
        raise
    except StoreError as error:
        return str(error)


def _folder(name: str, output: str, storage: str | None) -> Path | None:
    """The study's folder beside its database in the output folder, which may have been moved since."""
    return place_of(output, StoreError) / name if storage is None else None


def checks(study: StoredStudy) -> list[Check]:
    """All checks, in display order."""
    leftovers = study.leftovers()
    return [
        Check("database", good=True, says=f"readable; its tables are those of optuna {study.store.optuna_version()}"),
        check_trials(study, leftovers.lost),
        check_checkpoints(study, leftovers),
        check_prepared(leftovers.prepared),
        check_artifacts(study.store.artifacts(study.name)),
        check_versions(study.stored),
        check_disk(study.folder),
    ]


def check_trials(study: StoredStudy, lost: Sequence[int]) -> Check:
    """Every running trial has a process."""
    running = study.store.running(study.name)
    if not lost:
        return Check("trials", good=True, says=f"{len(running)} run, all with a heartbeat" if running else "none runs")
    numbers = ", ".join(map(str, lost))
    says = f"no heartbeat for over {GRACE_SECONDS} s of {numbers}; --fix returns them to the queue, as resuming does"
    return Check("trials", good=False, says=says)


def check_checkpoints(study: StoredStudy, found: Leftovers) -> Check:
    """Every checkpoint is readable, and some training resumes from it."""
    wrong = [f"{path} is damaged" for path in found.damaged]
    wrong += [f"{path} belongs to no unfinished training" for path in found.orphaned]
    if wrong:
        return Check("checkpoints", good=False, says=f"{', '.join(wrong)}; --fix removes")
    count = sum(len(list((study.folder / folder).glob("*.safetensors"))) for folder in FOLDERS)
    return Check("checkpoints", good=True, says=f"{count}, all readable" if count else "none")


def check_prepared(left: Path | None) -> Check:
    """No folder is prepared for workers of a killed driver."""
    if left is None:
        return Check("for workers", good=True, says="nothing left")
    return Check("for workers", good=False, says=f"{left} was left by a killed driver; --fix removes")


def check_artifacts(artifacts: Sequence[Artifact]) -> Check:
    """The study's saved files are unchanged."""
    wrong = []
    for one in artifacts:
        if not Path(one.path).exists():
            wrong.append(f"{one.path} is missing; restore it")
        elif sha256(Path(one.path)) != one.sha256:
            wrong.append(f"{one.path} was modified since it was saved; restore it")
    paths = ", ".join(one.path for one in artifacts)
    return Check(
        "saved model", good=not wrong, says="; ".join(wrong) or (f"{paths}, as saved" if paths else "none yet")
    )


def check_versions(stored: Stored) -> Check:
    """An unfinished study has the versions it began with; in a finished one, other versions only read results."""
    now = {name: installed_version(name) for name in stored.versions}
    others = [
        f"{name} {then}, here {now[name] or 'none'}" for name, then in stored.versions.items() if now[name] != then
    ]
    if not others:
        return Check("versions", good=True, says="those it began with")
    says = f"it began with {'; '.join(others)}"
    if stored.phase == DONE:
        return Check("versions", good=True, says=says)
    return Check(
        "versions", good=False, says=f"{says}: later trainings may differ from earlier ones; install the first"
    )


def check_disk(folder: Path) -> Check:
    """The disk has room for the study's files."""
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(nearest).free
    says = f"{free / 1e9:,.1f} GB free in {nearest}"
    if free < LEAST_FREE:
        return Check("disk", good=False, says=f"{says}, and a study may need {LEAST_FREE / 1e9:.1f}; make room")
    return Check("disk", good=True, says=says)


def mend(study: StoredStudy) -> list[str]:
    """Remove damaged and orphaned checkpoints and return lost trials to the queue; one line per action.

    Raises:
        StoreError: while another process runs the study.
    """
    require_writable(study.folder)
    with study.store.only_runner(study.name, study.folder):
        leftovers = study.leftovers()
        done = list(_removed(leftovers.damaged, "damaged; its training starts over"))
        done += _removed(leftovers.orphaned, "belongs to no unfinished training")
        done += _removed_bundles(study.folder / BUNDLES)
        if leftovers.lost:
            _give_back(study, leftovers.lost)
        return done + [f"returned trial {number} to the queue" for number in leftovers.lost]


def _removed(paths: Iterable[Path], reason: str) -> Iterable[str]:
    for path in paths:
        remove(path)
        yield f"removed {path}: {reason}"


def _removed_bundles(folder: Path) -> Iterable[str]:
    if folder.is_dir():
        shutil.rmtree(folder)
        yield f"removed {folder}: left by a killed driver"


def _give_back(study: StoredStudy, lost: Sequence[int]) -> None:
    storage = study.store.optuna_storage()
    loaded = optuna.load_study(study_name=study.name, storage=storage)
    running = loaded.get_trials(states=(optuna.trial.TrialState.RUNNING,))
    give_back(loaded, [trial for trial in running if trial.number in lost], study.domain)
    storage.engine.dispose()


def _is_readable(path: Path) -> bool:
    """Remove a file that a running training may remove at the same time."""
    try:
        load_tensors(path)
    except FileNotFoundError:
        return True
    except (ValueError, OSError):
        return False
    return True


def _is_left(path: Path) -> bool:
    """Whether a file is old enough that no training is about to remove it."""
    try:
        return time.time() - path.stat().st_mtime > GRACE_SECONDS
    except FileNotFoundError:
        return False


def summary(found: Sequence[Check]) -> str:
    """The summary line of a checkup."""
    wrong = [one.name for one in found if not one.good]
    return f"needs attention: {', '.join(wrong)}" if wrong else "no problems found"
