"""The dashboard in a real browser while a real study runs: Playwright with Debian's Chromium."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dasearch.errors import StoreError
from dasearch.layout import Layout
from dasearch.report.dashboard.reading import Reader
from dasearch.report.dashboard.server import Address, listening, server, url
from dasearch.report.figures import FIGURES
from dasearch.search.store import Confirmation, open_store
from tests.report.stored import NAME, empty_study, evaluate
from tests.training.studies import small_study

CHROMIUM = Path("/usr/bin/chromium")
playwright = pytest.importorskip("playwright.sync_api", reason="the browser test needs dasearch[test]'s playwright")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="no /usr/bin/chromium: apt-get install chromium")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
BUDGET = 12
LIVE = 90_000  # milliseconds in which a busy machine finishes two tiny trials


@dataclass
class Seen:
    """Console errors and requested addresses of a browser."""

    complaints: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)

    def watch(self, page: Any, place: str) -> None:
        page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("requestfailed", self._failed)
        page.on("request", lambda request: self._asked(request.url, place))

    def _failed(self, request: Any) -> None:
        if request.failure != "net::ERR_ABORTED":  # what a page still asked for when it was left
            self.complaints.append(f"{request.failure}: {request.url}")

    def _asked(self, address: str, place: str) -> None:
        if not address.startswith((place, "data:", "blob:")):
            self.elsewhere.append(address)


@pytest.fixture(scope="module")
def running_study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The output folder of a study that a separate process runs."""
    folder = tmp_path_factory.mktemp("live")
    settings = small_study(folder, search={"budget": BUDGET}, trial={"epochs": 3})
    (folder / "toy.yaml").write_text(settings.yaml())
    script = "import sys; from dasearch.cli import run_command; sys.exit(run_command(sys.argv[1:]))"
    arguments = [sys.executable, "-c", script, "run", str(folder / "toy.yaml")]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for_trials(folder / "runs", process)
        yield folder / "runs"
    finally:
        process.terminate()
        process.wait()


def _wait_for_trials(output: Path, process: subprocess.Popen[bytes], wanted: int = 1) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        try:
            store = open_store(None, str(output), create=False)
            done = store.progress(NAME).states.get("complete", 0) if NAME in store.study_names() else 0
            store.close()
        except StoreError:
            done = 0
        if done >= wanted:
            return
        time.sleep(0.1)
    pytest.fail("the study never finished a trial")


class Served:
    """A dashboard on a free port, in a thread."""

    def __init__(self, output: Path) -> None:
        self.listener = listening(Address("127.0.0.1", 0))
        self.place = url("127.0.0.1", self.listener.getsockname()[1])
        self.server = server(Reader(partial(open_store, None, str(output), create=False, lock_seconds=3.0)), None)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]}, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        self.listener.close()


@pytest.fixture
def served(running_study: Path) -> Iterator[Served]:
    dashboard = Served(running_study)
    yield dashboard
    dashboard.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


def complete(page: Any) -> int:
    found = re.search(r"(\d+) of \d+ evaluations", page.locator("#now").inner_text())
    assert found is not None
    return int(found[1])


def see_figures(page: Any) -> None:
    """Scroll to every figure until it is drawn and has its text alternative."""
    for place in page.locator("[data-figure]").all():
        place.scroll_into_view_if_needed()
        place.locator("svg.main-svg").first.wait_for(timeout=30_000)
        caption = place.locator("xpath=..").locator("figcaption strong")
        playwright.expect(caption).not_to_have_text("", timeout=30_000)
        assert len(place.get_attribute("aria-label")) > 20


def settled(page: Any, link: Any) -> float:
    """The position of a link once the visible figures are drawn: unchanged for a second."""
    places = [link.bounding_box()["y"]]
    while len(places) < 6 or (len(set(places[-6:])) > 1 and len(places) < 100):
        page.wait_for_timeout(200)
        places.append(link.bounding_box()["y"])
    return places[-1]


def open_numbers(page: Any, key: str) -> None:
    """By keyboard: figures above may still be drawn, and move what a pointer aims at."""
    page.locator(f"#figure-{key} summary").focus()
    page.keyboard.press("Enter")
    page.locator(f"#figure-{key} .numbers table").wait_for()


def fits(page: Any) -> bool:
    """Nothing makes the page itself scroll sideways."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


@pytest.mark.slow
def test_a_study_is_followed_without_reload(served: Served, browser: Any) -> None:
    context, seen = browser.new_context(viewport=DESKTOP), Seen()
    page = context.new_page()
    seen.watch(page, served.place)
    page.goto(f"{served.place}/studies/{NAME}")
    page.evaluate("window.stays = true")
    before, rows = complete(page), page.locator("#trials tbody tr").count()
    page.locator("#figure-best-so-far svg.main-svg").first.wait_for()
    open_numbers(page, "best-so-far")
    link = page.locator("#trials tbody a").first
    link.focus()
    at = settled(page, link)
    playwright.expect(page.locator("#trials tbody tr")).not_to_have_count(rows, timeout=LIVE)
    playwright.expect(page.locator("#now")).not_to_contain_text(f" {before} of", timeout=LIVE)
    assert complete(page) > before
    assert page.locator("#trials tbody tr").count() > rows
    assert page.evaluate("window.stays") is True
    assert page.evaluate("document.activeElement.textContent") == "0"
    assert link.bounding_box()["y"] == pytest.approx(at, abs=60)
    assert page.locator("#figure-best-so-far details").get_attribute("open") is not None
    assert "evaluations complete" in page.locator("#announcement").inner_text()
    assert not seen.complaints
    assert not seen.elsewhere
    context.close()


@pytest.mark.slow
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_while_trials_finish(served: Served, browser: Any, size: dict[str, int], scheme: str) -> None:
    context, seen = browser.new_context(viewport=size, color_scheme=scheme), Seen()
    page = context.new_page()
    seen.watch(page, served.place)
    page.goto(served.place)
    assert fits(page)
    page.get_by_role("link", name=NAME, exact=True).click()
    page.wait_for_url(f"**/studies/{NAME}")
    see_figures(page)
    always = page.locator("[data-figure]:not([data-figure$='/results'])")  # there once the test split was read
    assert always.count() == len(
        FIGURES.keys() - {"front", "settings", "results"}
    )  # no cost, no settings beside layouts
    assert fits(page)
    page.locator("#trials tbody a").first.click()
    page.wait_for_url("**/trials/0")
    see_figures(page)
    assert fits(page)
    page.goto(f"{served.place}/studies/{NAME}")
    page.locator("#compare input[name=after]").fill("1")
    page.locator("#compare button").click()
    page.wait_for_url("**/compare?before=0&after=1")
    see_figures(page)
    assert fits(page)
    for address in [f"/compare?before={NAME}&after={NAME}", "/api", f"/studies/{NAME}/figures/best-so-far"]:
        page.goto(served.place + address)
        see_figures(page)
        assert fits(page), address
    assert not seen.complaints
    assert not seen.elsewhere
    context.close()


def boxes(page: Any, selector: str) -> list[dict[str, float]]:
    return [place.bounding_box() for place in page.locator(selector).all()]


def apart(one: dict[str, float], other: dict[str, float]) -> bool:
    return (
        one["x"] + one["width"] <= other["x"]
        or other["x"] + other["width"] <= one["x"]
        or one["y"] + one["height"] <= other["y"]
        or other["y"] + other["height"] <= one["y"]
    )


def test_the_toolbar_lies_on_nothing_and_sends_nothing_away(tmp_path: Path, browser: Any) -> None:
    """Of a wide figure and of one beside another, whose legend has two rows."""
    with closing(empty_study(tmp_path)) as store:
        for layout, score in {"SSS-SSS": 0.1, "PPP-PPP": 0.2, "SPS-SPS": 0.3}.items():
            evaluate(store, layout, score)
        for role, text in {"all-serial": "SSS-SSS", "all-parallel": "PPP-PPP", "random": "SSP-SPS"}.items():
            for seed in (1, 2):
                one = Confirmation(Layout.parse(text), role, seed, {"MRR": 0.1 + 0.01 * seed}, 8.0)
                store.add_confirmation(NAME, one)
    dashboard = Served(tmp_path)
    context = browser.new_context(viewport=DESKTOP)
    page = context.new_page()
    for address in (f"/studies/{NAME}/figures/best-so-far", f"/studies/{NAME}"):
        page.goto(dashboard.place + address)
        figure = page.locator("[data-figure$='best-so-far']")
        figure.locator(".legend .traces").nth(5).wait_for(timeout=30_000)
        figure.hover()
        place = "[data-figure$='best-so-far'] "
        (bar,) = boxes(page, f"{place}.modebar")
        under = [
            *boxes(page, f"{place}.legend .traces"),
            *boxes(page, f"{place}.xtitle"),
            *boxes(page, f"{place}.xtick"),
        ]
        assert len(under) > 7
        assert all(apart(bar, one) for one in under)
        names = [button.get_attribute("data-title") for button in figure.locator(".modebar-btn").all()]
        assert names == ["Download plot as a PNG", "Zoom in", "Zoom out", "Reset axes"]
    context.close()
    dashboard.stop()


def test_by_keyboard(served: Served, browser: Any) -> None:
    context, seen = browser.new_context(viewport=DESKTOP), Seen()
    page = context.new_page()
    seen.watch(page, served.place)
    page.goto(f"{served.place}/studies/{NAME}")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    button = page.locator("#trials thead button", has_text="MRR")
    button.focus()
    for direction in ("ascending", "descending"):
        page.keyboard.press("Enter")
        assert button.locator("xpath=..").get_attribute("aria-sort") == direction
        cells = page.locator("#trials tbody tr td:nth-child(4)").all_inner_texts()
        scores = [float(cell) for cell in cells if cell]
        assert scores == sorted(scores, reverse=direction == "descending")
        assert "" not in cells[: len(scores)]
    assert page.evaluate("document.activeElement.textContent") == "MRR"
    page.locator("#theme").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert not seen.complaints
    context.close()


def test_numbers_opened_before_the_script_has_loaded_are_filled(tmp_path: Path, browser: Any) -> None:
    store = empty_study(tmp_path)
    evaluate(store, "SSS-SSS", 0.1)
    store.close()
    dashboard, held = Served(tmp_path), []
    context = browser.new_context(viewport=DESKTOP)
    page = context.new_page()
    page.route("**/static/dashboard.js", lambda route: held.append(route))  # playwright marks what it calls
    page.goto(f"{dashboard.place}/studies/{NAME}", wait_until="commit")
    summary = page.locator("#figure-best-so-far summary")
    summary.focus()
    page.keyboard.press("Enter")
    page.locator("#figure-best-so-far details[open]").wait_for()
    page.wait_for_timeout(200)  # the toggle event is over before anyone listens
    assert page.locator("#figure-best-so-far table").count() == 0
    (script,) = held
    script.continue_()
    page.locator("#figure-best-so-far .numbers table").wait_for()
    assert "0.1" in page.locator("#figure-best-so-far .numbers table").inner_text()
    context.close()
    dashboard.stop()


def test_the_first_study_appears_without_reload(tmp_path: Path, browser: Any) -> None:
    dashboard, seen = Served(tmp_path), Seen()
    context = browser.new_context(viewport=PHONE)
    page = context.new_page()
    seen.watch(page, dashboard.place)
    page.goto(dashboard.place)
    page.evaluate("window.stays = true")
    assert "No study has begun" in page.locator("#none").inner_text()
    assert fits(page)
    empty_study(tmp_path).close()
    page.get_by_role("link", name=NAME, exact=True).wait_for(timeout=30_000)
    assert page.locator("#none").count() == 0
    assert page.evaluate("window.stays") is True
    assert not seen.complaints
    context.close()
    dashboard.stop()


def test_it_says_that_the_server_is_gone(running_study: Path, browser: Any) -> None:
    dashboard = Served(running_study)
    context = browser.new_context(viewport=PHONE)
    page = context.new_page()
    page.goto(f"{dashboard.place}/studies/{NAME}")
    dashboard.stop()
    gone = page.locator("#gone")
    gone.wait_for(state="visible", timeout=30_000)
    assert "The server does not answer" in gone.inner_text()
    assert fits(page)
    context.close()


def test_nothing_of_a_name_runs(tmp_path: Path, browser: Any) -> None:
    """In names of studies and of data, in pages, figures and tables."""
    store = empty_study(tmp_path, source="<img src=x onerror='window.ran = true'>")
    for layout, score in {"SSS-SSS": 0.1, "PPP-PPP": 0.2, "SPS-SPS": 0.3}.items():
        evaluate(store, layout, score)
    store.close()
    bad = "<img src=x onerror='window.ran = true'>"
    database = tmp_path / "dasearch.db"
    with sqlite3.connect(database) as connection:
        connection.execute("update dasearch_study set name = ?", (bad,))
        connection.execute("update studies set study_name = ?", (bad,))
    dashboard, seen = Served(tmp_path), Seen()
    context = browser.new_context(viewport=DESKTOP)
    page = context.new_page()
    seen.watch(page, dashboard.place)
    page.goto(dashboard.place)
    page.get_by_role("link", name=bad).click()
    page.wait_for_url("**/studies/*")
    see_figures(page)
    open_numbers(page, "curves")
    assert page.evaluate("window.ran") is None
    assert page.locator("h1").inner_text() == bad
    assert not seen.complaints
    assert not seen.elsewhere
    context.close()
    dashboard.stop()
