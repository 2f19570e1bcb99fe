"""How long a large study keeps its reader waiting: seconds, and seconds of processor, of every view of a study of 1,000 trials.

``python -m benchmarks.views`` writes the trials row by row, opens each page, figure and endpoint of the dashboard on a server
that has just begun, so that nothing is kept from the one before, and writes a report of each form.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from starlette.testclient import TestClient

from dasearch.report import Format
from dasearch.report.dashboard.app import application
from dasearch.report.dashboard.reading import Reader
from dasearch.report.figures import FIGURES
from dasearch.report.page import write_report
from dasearch.report.view import read_view
from dasearch.search.store import open_store
from tests.report.stored import NAME, large_study

BOUND = 2.0  # seconds


def addresses() -> Iterator[str]:
    """Every kind of page and endpoint."""
    study = f"/studies/{NAME}"
    yield from ("/", study, f"{study}/trials/500", f"{study}/compare?before=0&after=500")
    yield f"/compare?before={NAME}&after={NAME}"
    yield from ("/api/studies", f"/api{study}", f"/api{study}/version", f"/api{study}/trials/500")
    for key in FIGURES:
        yield from (f"{study}/figures/{key}", f"/api{study}/figures/{key}")


def ask(folder: Path, address: str) -> None:
    """Of a server that has read nothing yet."""
    connect = partial(open_store, None, str(folder), create=False)
    answer = TestClient(application(Reader(connect), None), base_url="http://127.0.0.1").get(address)
    assert answer.status_code == 200, answer.text


def report(folder: Path, form: Format) -> None:
    """As `dasearch report` writes it."""
    store = open_store(None, str(folder), create=False)
    write_report(read_view(store, NAME), folder / f"report.{form.value}", form)
    store.close()


def seconds(view: Callable[[], None], times: int) -> tuple[float, float]:
    """Wall and processor time of the quickest of several."""
    found = []
    for _ in range(times):
        wall, processor = time.perf_counter(), time.process_time()
        view()
        found.append((time.perf_counter() - wall, time.process_time() - processor))
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--times", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        large_study(folder, trials=given.trials, layers=given.layers).close()
        views: dict[str, Callable[[], None]] = {address: partial(ask, folder, address) for address in addresses()}
        views |= {f"report, {form.value}": partial(report, folder, form) for form in Format}
        ask(folder, "/")  # what a first request imports is not counted
        took = {what: seconds(view, given.times) for what, view in views.items()}
    for what, (wall, processor) in sorted(took.items(), key=lambda one: -one[1][0]):
        print(f"{wall:6.2f} s ({processor:.2f})  {what}")
    walls = [wall for wall, _ in took.values()]
    print(f"{sum(wall < BOUND for wall in walls)} of {len(walls)} below {BOUND:.0f} s, the slowest {max(walls):.2f} s")


if __name__ == "__main__":
    main()
