"""SIGKILLs of a driver and its workers, Ctrl-C and SIGTERM: `benchmarks.kills` shortened, with fixed moments."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from dasearch.search.executors.own_folder import PREFIX
from dasearch.search.study import Study
from tests.search.kills import PROC as PROCESSES
from tests.search.kills import Ending, Killer, Place, Run, differences, drawn, ending, require_kept, seen, wait_for

pytestmark = pytest.mark.skipif(not PROCESSES.is_dir(), reason="needs /proc to find what a run started")
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="workers run on Ray, which is not installed")
SEARCH = {"budget": 6, "confirm_seeds": 2}
LONG = {"budget": 40}
SENTENCE = "interrupted; resume with: dasearch resume "


@cache
def straight(pending: int) -> Ending:
    """What the study comes to in one process that nothing kills."""
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        Study(place.settings(search={**SEARCH, "pending": pending})).run()
        return ending(place)


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where runs have their temporary folders; its path is short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="k-"))
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder)


def killed(place: Place, victims: list[str], seed: int) -> None:
    """The study through its kills, against the one that nothing kills."""
    expected = straight(place.workers or 1)
    moments, _ = drawn(len(victims), len(expected.curves), seed, workers=False)
    tally = Killer(place, place.settings(search=SEARCH), moments, victims).run()
    found = [victim for _, victim in tally.kills]
    assert found  # the study of a quick machine may end before its last kill
    assert found == victims[: len(found)]
    assert tally.ending is not None
    assert differences(tally.ending, expected) == []


@pytest.mark.slow
def test_a_study_in_one_process_survives_kills(tmp_path: Path) -> None:
    killed(Place(tmp_path), ["driver"] * 3, seed=1)


@pytest.mark.slow
def test_a_study_in_postgresql_survives_kills(tmp_path: Path, database: str) -> None:
    killed(Place(tmp_path, database), ["driver"] * 2, seed=2)


@pytest.mark.slow
@needs_ray
def test_a_study_in_workers_survives_kills(tmp_path: Path, temporary: Path) -> None:
    """A worker's and the driver's; what the killed driver left among temporary files went with the next start."""
    killed(Place(tmp_path, workers=2), ["worker", "driver"], seed=3)
    assert not list(temporary.glob(f"{PREFIX}*"))


def control_c(run: Run) -> None:
    """As a terminal sends it: to every process of the foreground."""
    os.killpg(run.process.pid, signal.SIGINT)


def terminate(run: Run) -> None:
    run.process.terminate()


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "stop"), [(None, terminate), pytest.param(2, control_c, marks=needs_ray)])
def test_a_signal_stops_a_run_and_two_end_it(
    tmp_path: Path, temporary: Path, workers: int | None, stop: Callable[[Run], None]
) -> None:
    """Once: with a sentence, and the next run resumes. Twice: without a further message."""
    place = Place(tmp_path, workers=workers)
    settings = place.settings(search=LONG)
    first = Run(place, settings)
    wait_for(place, first, 3)
    stop(first)
    assert first.code() == 130, first.text
    assert SENTENCE in first.text
    first.require_nothing_left()
    assert not list(temporary.glob(f"{PREFIX}*"))
    kept = seen(place)
    second = Run(place, settings)
    require_kept(kept, wait_for(place, second, len(kept.epochs) + 2))
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(second.process.pid, number)
    assert second.code() == 130, second.text
    assert SENTENCE not in second.text
    second.require_nothing_left(agents=True)
