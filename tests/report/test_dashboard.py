"""The dashboard as a browser meets it: every address, studies at their extremes, and who is let in."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from urllib.parse import quote

import optuna
import pytest
from starlette.testclient import TestClient

from dasearch.cli import run_command
from dasearch.errors import WrongUse
from dasearch.layout import Layout
from dasearch.report.dashboard.app import application
from dasearch.report.dashboard.live import progress_sentences, seconds_left, share
from dasearch.report.dashboard.numbers import numbers
from dasearch.report.dashboard.pages import AGAINST, layout_map, proposal_tables, worth_comparing
from dasearch.report.dashboard.reading import Reader
from dasearch.report.dashboard.records import finite
from dasearch.report.dashboard.security import Visitors, is_local, visitors_for
from dasearch.report.dashboard.server import first_command
from dasearch.report.figures import FIGURES
from dasearch.report.figures.trials import trial_curves, trial_difference
from dasearch.report.theme import LIGHT, THEMES, words
from dasearch.report.view import State, read_view
from dasearch.search.store import Progress, Store, open_store
from tests.report import stored, views
from tests.report.stored import (
    NAME,
    empty_study,
    evaluate,
    evaluate_elsewhere,
    give_up,
    large_study,
    later_space,
    optuna_study,
)

PLACE = "http://127.0.0.1:8765"
LAYOUTS = {"SSS-SSS": 0.10, "PPP-PPP": 0.08, "SPS-PPS": 0.13, "SPP-PPS": 0.14, "SPS-SPS": 0.12}
BAD_NAME = "<script>alert(1)</script> & \"ünï\" 50%/'x'?#"


def reader(folder: Path) -> Reader:
    return Reader(partial(open_store, None, str(folder), create=False, lock_seconds=0.2))


def client(folder: Path, visitors: Visitors | None = None) -> TestClient:
    return TestClient(application(reader(folder), visitors), base_url=PLACE, raise_server_exceptions=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A read-only study of five complete trials, a failed one and a waiting one."""
    folder = tmp_path_factory.mktemp("dashboard")
    store = empty_study(folder)
    for layout, score in LAYOUTS.items():
        number = evaluate(store, layout, score)
        store.add_proposal(NAME, stored.proposal(number, Layout.parse(layout)))
    optuna_study(store).ask()
    study = optuna_study(store)
    study.tell(study.ask(), state=optuna.trial.TrialState.FAIL)
    store.close()
    return folder


def addresses(name: str = NAME) -> list[str]:
    study = f"/studies/{quote(name, safe='')}"
    pages = ["/", "/api", study, f"/compare?before={quote(name, safe='')}&after={quote(name, safe='')}"]
    return [*pages, "/api/studies", f"/api{study}", f"/api{study}/version"]


def of_figures(name: str = NAME) -> list[str]:
    study = f"/studies/{quote(name, safe='')}"
    return [f"{top}{study}/figures/{key}" for key in FIGURES for top in ("", "/api")]


def of_trials(name: str = NAME) -> list[str]:
    study = f"/studies/{quote(name, safe='')}"
    two = [
        "compare?before=0&after=2",
        "figures/trial-difference?trial=0&trial=2",
        "figures/trial-curves?trial=0&trial=2",
    ]
    return [
        f"{top}{study}/{rest}" for rest in ("trials/0", "figures/trial-curves?trial=0", *two) for top in ("", "/api")
    ]


@pytest.mark.parametrize("address", [*addresses(), *of_figures(), *of_trials()])
def test_every_address(folder: Path, address: str) -> None:
    answer = client(folder).get(address)
    assert answer.status_code == 200
    kind = "application/json" if address.startswith("/api/") else "text/html"
    assert answer.headers["content-type"].startswith(kind)
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self';" in policy
    assert "http" not in policy
    if kind == "text/html":
        assert not re.search(r"<script(?![^>]* src=)|<style| style=| on\w+=|https?://", answer.text)
        assert '<main id="main"' in answer.text
        assert 'class="skip"' in answer.text


def test_static_files_come_from_here_and_plotly_may_be_kept(folder: Path) -> None:
    found = client(folder)
    page = found.get(f"/studies/{NAME}").text
    files = re.findall(r'(?:src|href)="(/static/[^"]+)"', page)
    assert len(files) == 4
    answers = {name: found.get(name) for name in files}
    assert all(answer.status_code == 200 for answer in answers.values())
    (plotly,) = (answer for name, answer in answers.items() if "plotly" in name)
    assert "immutable" in plotly.headers["cache-control"]
    assert "plotly.js" in plotly.text[:200]
    assert found.get("/static/base.html").status_code == 404
    assert found.get("/static/..%2Fapp.py").status_code == 404


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("key", [key for key in FIGURES if key != "timeline"])
def test_figures_are_the_figure_functions_own(folder: Path, key: str, theme: str) -> None:
    store = open_store(None, str(folder), create=False)
    wanted = FIGURES[key].draw(read_view(store, NAME), THEMES[theme])
    store.close()
    answer = client(folder).get(f"/api/studies/{NAME}/figures/{key}?theme={theme}").json()
    assert answer == json.loads(wanted.to_json())


def test_json_tells_what_was_stored(folder: Path) -> None:
    found = client(folder)
    study = found.get(f"/api/studies/{NAME}").json()
    assert {t["layout"]: t["score"] for t in study["trials"] if t["state"] == "complete"} == LAYOUTS
    assert study["best"] == {"trial": 3, "score": 0.14}
    assert study["settings"]["name"] == NAME
    trial = found.get(f"/api/studies/{NAME}/trials/3").json()
    assert [(e["number"], e["losses"], e["metrics"]) for e in trial["epochs"]] == [
        (1, {"total": 3.0}, {"MRR": pytest.approx(0.12)}),
        (2, {"total": 2.0}, {"MRR": 0.14}),
    ]
    assert trial["proposal"]["source"] == "startup"
    changes = found.get(f"/api/studies/{NAME}/compare?before=0&after=3").json()
    assert changes["score"] == pytest.approx(0.04)
    assert [site["site"] for site in changes["sites"]] == [
        "layer01.context",
        "layer01.recommendation",
        "layer02.causal",
        "layer02.context",
    ]
    (row,) = found.get("/api/studies").json()["studies"]
    assert (row["trials"]["complete"], row["trials"]["fail"], row["best"]) == (5, 1, 0.14)


def test_pages_say_and_link_what_was_stored(folder: Path) -> None:
    found = client(folder)
    assert f'<a href="/studies/{NAME}">{NAME}</a>' in found.get("/").text
    page = found.get(f"/studies/{NAME}").text
    assert "search: 5 of 30 evaluations complete, the best so far MRR 0.1400 (trial 3)." in page
    assert f'<a href="/studies/{NAME}/trials/3">3</a>' in page
    assert '<button type="button">layout</button>' in page
    assert "<caption><span>Every trial</span></caption>" in page
    trial = found.get(f"/studies/{NAME}/trials/1").text
    assert f'href="/studies/{NAME}/compare?before=3&amp;after=1"' in trial
    assert trial.count('<td class="placed shade-E69F00">') == 6
    assert "Layout: S serial, P parallel" in trial
    assert "loss: total" in trial
    compared = found.get(f"/studies/{NAME}/compare?before=0&after=3").text
    assert "4 sites differ; MRR +0.0400 in one training each" in compared
    assert "layer02.causal" in compared


MISSING = {
    "/studies/toi": "did you mean toy?",
    "/api/studies/toi": "did you mean toy?",
    "/api/studies/toi/version": "did you mean toy?",
    "/studies/toy/trials/99": "has no trial 99; its trials are 0 to 6",
    "/api/studies/toy/trials/99": "has no trial 99",
    "/api/studies/toy/trials/99999999999999999999": "has no trial",
    "/studies/toy/figures/layut": "did you mean layout?",
    "/studies/toy/compare?before=0&after=5": "rial 5 of &#39;toy&#39; has no layout yet",
    "/studies/toy/figures/trial-difference?trial=1": "ive two trials",
    "/nowhere": "no such page",
    "/api/nowhere": "no such page",
}


@pytest.mark.parametrize(("address", "sentence"), MISSING.items())
def test_what_is_not_there(folder: Path, address: str, sentence: str) -> None:
    answer = client(folder).get(address)
    assert answer.status_code == 404
    said = answer.json()["error"] if address.startswith("/api/") else answer.text
    assert sentence in said


@pytest.mark.parametrize(
    "address",
    [
        "/compare",
        "/compare?before=toy",
        "/studies/toy/compare?before=1&after=two",
        "/studies/toy/compare?before=-1&after=2",
        "/api/studies/toy/figures/layout?theme=pink",
        "/studies/toy/figures/trial-curves?trial=²",
    ],
)
def test_wrong_queries(folder: Path, address: str) -> None:
    assert client(folder).get(address).status_code == 400


# --- extremes ---------------------------------------------------------------------------------------------------------


def failed(store: Store) -> None:
    study = optuna_study(store)
    for _ in range(2):
        study.tell(study.ask(), state=optuna.trial.TrialState.FAIL)


def one(store: Store) -> None:
    evaluate(store, "SSS-SSS", 0.1)


def two(store: Store) -> None:
    one(store)
    evaluate(store, "PPP-PPP", 0.2)


def running(store: Store) -> None:
    trial = optuna_study(store).ask()
    trial.suggest_categorical("layer01.causal", ["serial", "parallel"])


@pytest.mark.parametrize("fill", [lambda store: None, one, two, failed, running], ids=["0", "1", "2", "failed", "runs"])
def test_studies_at_their_extremes(tmp_path: Path, fill: object) -> None:
    store = empty_study(tmp_path)
    fill(store)  # type: ignore[operator]
    store.close()
    found = client(tmp_path)
    for address in [*addresses(), *of_figures()]:
        assert found.get(address).status_code == 200, address


def test_trials_with_choices_from_elsewhere_are_listed(tmp_path: Path) -> None:
    store = empty_study(tmp_path)
    evaluate_elsewhere(store)
    evaluate_elsewhere(store)
    store.close()
    found = client(tmp_path)
    for address in [*addresses(), *of_figures(), f"/studies/{NAME}/trials/1", f"/api/studies/{NAME}/trials/1"]:
        assert found.get(address).status_code == 200, address
    assert (
        "layer01.causal is &#39;none&#39;, which is not a choice of this search space"
        in found.get(f"/studies/{NAME}").text
    )
    record = found.get(f"/api/studies/{NAME}").json()
    assert (record["best"], record["winner"]) == (None, None)
    assert record["verdict"][0].startswith("No complete trial has a layout of this search space")
    refused = found.get(f"/studies/{NAME}/compare?before=0&after=1")
    assert (refused.status_code, "rial 0 of &#39;toy&#39; has no layout" in refused.text) == (404, True)


def test_a_search_space_of_a_later_version_is_a_sentence(tmp_path: Path) -> None:
    empty_study(tmp_path).close()
    later_space(tmp_path)
    found = client(tmp_path)
    assert found.get("/").status_code == found.get("/api/studies").status_code == 200
    for address in (f"/studies/{NAME}", f"/api/studies/{NAME}", f"/compare?before={NAME}&after={NAME}"):
        answer = found.get(address)
        assert answer.status_code == 503
        assert "cannot be read (there is no choice" in answer.text


def test_workers_and_causes_are_shown(tmp_path: Path) -> None:
    store = empty_study(tmp_path)
    evaluate(store, "SPS-PPS", 0.2, workers=["a:1"])
    give_up(store, "PPP-PPP", "its worker was <lost>, 3 times", ["a:1", "b:2", "b:3"])
    store.close()
    site, study = client(tmp_path), f"/studies/{NAME}"
    attempts = "attempt 1 in a:1, attempt 2 in b:2, attempt 3 in b:3"
    trial, row = (site.get(f"/api{study}{rest}").json() for rest in ("/trials/1", ""))
    assert trial["workers"] == row["trials"][1]["workers"] == ["a:1", "b:2", "b:3"]
    assert trial["reason"] == row["trials"][1]["reason"] == "its worker was <lost>, 3 times"
    page = site.get(f"{study}/trials/1").text
    assert attempts in page
    assert "its worker was &lt;lost&gt;, 3 times" in page
    assert "in a:1" in site.get(f"{study}/trials/0").text
    whole = site.get(study).text
    assert "1 trial failed: its worker was &lt;lost&gt;, 3 times" in whole
    assert f"its worker was &lt;lost&gt;, 3 times; {attempts}" in whole


def test_names_are_text(tmp_path: Path) -> None:
    """dasearch itself accepts plainer names; a database may have been written by anything."""
    empty_study(tmp_path, source="<img src=x onerror=alert(2)>").close()
    with sqlite3.connect(tmp_path / "dasearch.db") as connection:
        connection.execute("update dasearch_study set name = ?", (BAD_NAME,))
        connection.execute("update studies set study_name = ?", (BAD_NAME,))
    found = client(tmp_path)
    for address in [*addresses(BAD_NAME), *of_figures(BAD_NAME)]:
        answer = found.get(address)
        assert answer.status_code == 200, address
        if not address.startswith("/api/"):
            assert "<script>alert" not in answer.text
            assert "<img" not in answer.text
    (link,) = re.findall(r'href="(/studies/[^"]+)"', found.get("/").text)
    assert (
        "<h1>&lt;script&gt;alert(1)&lt;/script&gt; &amp; &#34;ünï&#34; 50%/&#39;x&#39;?#</h1>" in found.get(link).text
    )
    assert "&lt;img src=x" in found.get(link).text
    assert "<b>" not in found.get("/studies/<b>x").text


def test_a_thousand_trials_of_thirty_layers(tmp_path: Path) -> None:
    """Every address of one server answers; how fast, and each by itself, is for benchmarks/views.py to say."""
    large_study(tmp_path, trials=1000, layers=30).close()
    found = client(tmp_path)
    for address in [*addresses(), *of_trials(), *of_figures()]:
        assert found.get(address).status_code == 200, address


# --- live -------------------------------------------------------------------------------------------------------------


def test_a_version_changes_with_what_is_recorded_and_else_stays(tmp_path: Path) -> None:
    store = empty_study(tmp_path)
    versions = [store.progress(NAME).version]

    def changed() -> bool:
        versions.append(store.progress(NAME).version)
        return versions[-1] != versions[-2]

    assert not changed()
    trial = optuna_study(store).ask()
    assert changed()
    trial.suggest_categorical("layer01.causal", ["serial", "parallel"])
    assert changed()
    trial.report(0.1, 0)
    assert changed()
    store.add_proposal(NAME, stored.proposal(0, Layout.parse("SSS-SSS")))
    assert changed()
    optuna_study(store).tell(trial.number, 0.1)
    assert changed()
    store.enter_phase(NAME, "confirmation")
    assert changed()
    assert not changed()
    progress = store.progress(NAME)
    assert (progress.states, progress.best, progress.heard) == ({"complete": 1}, 0.1, None)
    store.close()


def test_a_study_is_read_again_only_when_it_changed(tmp_path: Path) -> None:
    store = empty_study(tmp_path)
    one(store)
    found = reader(tmp_path)
    first = found.snapshot(NAME)
    assert found.snapshot(NAME) is first
    assert first.figure("layout", (), LIGHT) is first.figure("layout", (), LIGHT)
    evaluate(store, "PPP-PPP", 0.2)
    assert len(found.snapshot(NAME).view.completed) == 2
    store.close()


def test_a_trial_that_gives_no_sign_of_life(tmp_path: Path) -> None:
    store = empty_study(tmp_path)
    running(store)
    found = client(tmp_path)
    before = found.get(f"/api/studies/{NAME}/version").json()
    with sqlite3.connect(tmp_path / "dasearch.db") as connection:
        connection.execute("insert into trial_heartbeats(trial_id, heartbeat) values (1, '2026-01-01 00:00:00')")
    assert "its process may have ended" in found.get(f"/studies/{NAME}").text
    assert found.get(f"/api/studies/{NAME}/version").json() != before
    store.close()


def test_progress_in_words() -> None:
    view = views.finished(phase="search")
    silent = Progress("toy", {}, "search", 0.0, {}, None, None, "v")
    said = progress_sentences(view, silent)
    assert said[0] == "search: 5 of 5 evaluations complete, the best so far MRR 0.1400 (trial 3)."
    assert said[1] == f"Trial 7 runs: SSS-SSP, 1 of at most {view.settings.trial.epochs} epochs done."
    assert share(view) == ("evaluations", 5, 5)


def test_the_time_left_is_the_studys_own_estimate() -> None:
    view = views.finished(phase="final")
    now = datetime.now(UTC)
    progress = Progress("toy", {}, "final", 0.0, {}, None, None, "v")
    assert seconds_left(progress) is None
    ends = progress._replace(ends=now + timedelta(minutes=70))
    assert seconds_left(ends, now) == 4200
    assert seconds_left(ends, now + timedelta(minutes=69)) == 60
    assert seconds_left(ends, now + timedelta(minutes=71)) is None
    assert re.fullmatch(r"About 1:(10:00|09:\d\d) left at this pace\.", progress_sentences(view, ends)[-1])


def test_progress_of_a_batch_in_words() -> None:
    silent = Progress("toy", {}, "search", 0.0, {}, None, None, "v")
    view = views.finished(phase="search")
    (one,) = (trial for trial in view.trials if trial.state is State.RUNNING)
    ahead = replace(one, number=8, layout=Layout.parse("PSS-SSP"), curve={0: 0.1, 1: 0.1})
    asking = replace(one, number=9, layout=None, curve={})
    said = progress_sentences(replace(view, trials=(*view.trials, ahead, asking)), silent)
    epochs = view.settings.trial.epochs
    assert said[1:3] == [
        f"Trials 7 and 8 run side by side, 1 of at most {epochs} epochs done: SSS-SSP, PSS-SSP.",
        "Trial 9 runs: its layout is being proposed.",
    ]
    first, second, _ = views.later_trainings()
    batch = [second._replace(run=f"confirm/{place}", place=place, ended=None) for place in (3, 4)]
    ended = second._replace(ended=second.began, place=2)
    confirming = views.finished(phase="confirmation", later_trainings=(first, ended, *batch))
    assert share(confirming) == ("trainings with fresh seeds", 2, 6)
    assert progress_sentences(confirming, silent)[1] == (
        "2 of 6 trainings with fresh seeds are complete; 2 run side by side since 00:01 UTC: "
        "all-serial, seed 2: SSS-SSS; all-serial, seed 2: SSS-SSS."
    )


def test_progress_after_the_search() -> None:
    silent = Progress("toy", {}, "final", 0.0, {}, None, None, "v")
    first, second, final = views.later_trainings()
    later = (first, second._replace(ended=None))
    confirming = views.finished(phase="confirmation", later_trainings=later)
    assert progress_sentences(confirming, silent)[1] == (
        "1 of 6 trainings with fresh seeds are complete; all-serial, seed 2 runs since 00:01 UTC: SSS-SSS."
    )
    assert share(confirming) == ("trainings with fresh seeds", 1, 6)
    training = views.finished(phase="final", later_trainings=(first, second, final))
    assert (
        "0 of 4 final trainings are complete; winner <b>, seed 0 runs since" in progress_sentences(training, silent)[1]
    )
    lost = first._replace(ended=first.began, reason="its worker was lost")
    assert progress_sentences(views.finished(phase="confirmation", later_trainings=(lost, *later[1:])), silent)[1] == (
        "0 of 6 trainings with fresh seeds are complete, 1 failed; all-serial, seed 2 runs since 00:01 UTC: SSS-SSS."
    )
    apart = (first, second._replace(ended=None), second._replace(place=3, began=final.began, ended=None))
    assert progress_sentences(views.finished(phase="confirmation", later_trainings=apart), silent)[1].startswith(
        "1 of 6 trainings with fresh seeds are complete; 2 run side by side since 00:01 UTC: "
    )
    over = final._replace(place=4, ended=final.began)
    done = views.finished(phase="final", later_trainings=(first, second, over))
    assert progress_sentences(done, silent)[1] == (
        "4 of 4 final trainings are complete; ID models and the test split remain."
    )
    assert progress_sentences(views.finished(phase="final"), silent)[1] == (
        "6 trainings with fresh seeds are complete."  # of a study that kept no times
    )


# --- the database -----------------------------------------------------------------------------------------------------


def test_nothing_is_written(folder: Path) -> None:
    def content() -> str:
        with sqlite3.connect(folder / "dasearch.db") as connection:
            return hashlib.sha256("\n".join(connection.iterdump()).encode()).hexdigest()

    before, files = content(), {path.name for path in folder.iterdir()}
    found = client(folder)
    for address in [*addresses(), *of_figures(), *of_trials()]:
        found.get(address)
    assert content() == before
    assert {path.name for path in folder.iterdir()} <= files | {"dasearch.db-wal", "dasearch.db-shm"}


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_only_reading_is_answered(folder: Path, method: str) -> None:
    assert client(folder).request(method, f"/studies/{NAME}").status_code == 405


def test_a_locked_database(tmp_path: Path) -> None:
    empty_study(tmp_path / "begun").close()
    connection = sqlite3.connect(tmp_path / "dasearch.db")
    with sqlite3.connect(tmp_path / "begun" / "dasearch.db") as begun:
        begun.backup(connection)
    connection.execute("pragma locking_mode = exclusive")
    connection.execute("begin immediate")
    connection.execute("update dasearch_study set phase = 'search'")
    connection.commit()
    found = client(tmp_path)
    page, record = found.get(f"/studies/{NAME}"), found.get(f"/api/studies/{NAME}")
    connection.close()
    assert (page.status_code, record.status_code) == (503, 503)
    assert "database is locked" in page.text
    assert "database is locked" in record.json()["error"]
    assert found.get(f"/studies/{NAME}").status_code == 200


def test_a_database_that_vanishes_and_comes_back(tmp_path: Path) -> None:
    empty_study(tmp_path).close()
    found = client(tmp_path)
    assert found.get(f"/studies/{NAME}").status_code == 200
    path = tmp_path / "dasearch.db"
    path.rename(tmp_path / "away")
    answer = found.get(f"/studies/{NAME}")
    assert answer.status_code == 503
    assert "There are no studies under" in answer.text
    assert not path.exists()
    (tmp_path / "away").rename(path)
    assert found.get(f"/studies/{NAME}").status_code == 200


@pytest.mark.parametrize("before", ["nothing", "a folder", "tables of another program"])
def test_pages_wait_for_the_first_study(tmp_path: Path, before: str) -> None:
    output = tmp_path / "runs"
    if before != "nothing":
        output.mkdir()
    if before == "tables of another program":
        with sqlite3.connect(output / "dasearch.db") as connection:
            connection.execute("create table other(id)")
    connect = partial(open_store, None, str(output), create=False)
    waiting = Reader(connect, first_command(None, str(output)))
    found = TestClient(application(waiting, None), base_url=PLACE)
    page = found.get("/")
    assert page.status_code == 200
    assert f"<code>dasearch run --budget 30 --set output={output}</code>" in page.text
    assert found.get("/api/studies").json() == {"version": "", "studies": []}
    assert found.get(f"/studies/{NAME}").status_code == 503
    assert output.exists() == (before != "nothing")
    empty_study(output).close()
    assert found.get("/api/studies").json()["version"] != ""
    assert f'<a href="/studies/{NAME}">{NAME}</a>' in found.get("/").text
    assert "dasearch run" not in found.get("/").text


def test_the_command_that_begins_a_study() -> None:
    assert first_command(None, "runs") == "dasearch run --budget 30"
    assert first_command(None, "my runs") == "dasearch run --budget 30 --set 'output=my runs'"
    assert first_command("my.db", "runs") == "dasearch run --budget 30 --storage my.db"
    assert first_command("postgresql://me:secret@host/db", "runs") == "dasearch run --budget 30 --storage URL"


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "dasearch.db").write_bytes(b"no database" * 100)
    answer = client(tmp_path).get("/api/studies")
    assert answer.status_code == 503
    assert "file is not a database" in answer.json()["error"]


# --- who may ask ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "", "localhost.evil"])
def test_another_name_for_this_machine_is_refused(folder: Path, host: str) -> None:
    assert client(folder).get("/", headers={"host": host}).status_code == 421
    assert client(folder).get("/api/studies", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:99", "[::1]:8765", "127.1.2.3"])
def test_names_of_loopback_are_answered(folder: Path, host: str) -> None:
    assert client(folder).get("/", headers={"host": host}).status_code == 200


def test_a_token_is_needed_where_other_machines_reach_it(folder: Path) -> None:
    visitors = Visitors("a-token-of-some-length")
    found = client(folder, visitors)
    for path in ["/", f"/api/studies/{NAME}", "/static/dashboard.js", "/nowhere"]:
        refused = found.get(path, headers={"host": "lab.example"})
        assert refused.status_code == 401
        assert NAME not in refused.text
        assert "content-security-policy" in refused.headers
    for wrong in ("Bearer", "Bearer x", "Basic a-token-of-some-length", "Bearer ä", "a-token-of-some-length"):
        assert found.get("/", headers={"authorization": wrong.encode()}).status_code == 401
    right = {"authorization": "Bearer a-token-of-some-length", "host": "lab.example"}
    assert found.get("/", headers=right).status_code == 200


def test_the_link_lets_one_browser_in_once(folder: Path) -> None:
    visitors = Visitors("a-token-of-some-length")
    found = client(folder, visitors)
    link = visitors.link
    assert found.get("/enter?ticket=wrong").status_code == 403
    answer = found.get(link, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "a-token-of-some-length" not in cookie
    assert found.get("/").status_code == 200
    other = client(folder, visitors)
    assert other.get(link).status_code == 403
    assert other.get("/enter").status_code == 403
    assert other.get("/enter?ticket=None").status_code == 403
    assert other.get("/", headers={"cookie": "dasearch-visitor=x"}).status_code == 401


def test_where_a_token_is_asked() -> None:
    assert visitors_for("127.0.0.1", allow_remote=False, token=None) is None
    assert visitors_for("::1", allow_remote=True, token=None) is None
    first, second = (visitors_for("0.0.0.0", allow_remote=True, token=None) for _ in range(2))
    assert first is not None
    assert second is not None
    assert len(first.token) >= 40
    assert first.token != second.token
    assert visitors_for("127.0.0.1", allow_remote=False, token="x" * 16) is not None
    with pytest.raises(WrongUse, match=r"other machines can reach 0\.0\.0\.0; add --allow-remote"):
        visitors_for("0.0.0.0", allow_remote=False, token="x" * 16)
    with pytest.raises(WrongUse, match="a token of 5 characters is too short; give at least 16"):
        visitors_for("0.0.0.0", allow_remote=True, token="short")


@pytest.mark.parametrize(
    ("name", "local"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("example.org", False), ("", False)],
)
def test_what_is_local(name: str, local: bool) -> None:
    assert is_local(name) is local


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_refuses_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    empty_study(tmp_path).close()
    here = ["dashboard", "--output", str(tmp_path)]
    refused = {
        "other machines can reach 0.0.0.0": [*here, "--host", "0.0.0.0"],
        "a token of 3 characters": [*here, "--token", "abc"],
        "cannot be used (Address already in use)": [*here, "--port", str(taken.getsockname()[1])],
        "file is not a database": ["dashboard", "--storage", str(tmp_path / "text.db")],
    }
    (tmp_path / "text.db").write_text("no database" * 100)
    for sentence, arguments in refused.items():
        assert run_command(arguments) == 2
        said = capsys.readouterr().err
        assert sentence in said
        assert len(said.strip().splitlines()) == 1
    taken.close()


def lines(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    yield from iter(process.stdout.readline, "")


@pytest.mark.parametrize("begun", [True, False], ids=["a study", "no study yet"])
def test_the_command_serves_until_it_is_interrupted(tmp_path: Path, begun: bool) -> None:
    import httpx2

    if begun:
        empty_study(tmp_path).close()
    arguments = [sys.executable, "-m", "dasearch.cli", "dashboard", "--output", str(tmp_path), "--port", "0"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        said = next(lines(process))
        place = re.search(r"http://127\.0\.0\.1:\d+", said)
        assert place is not None, said
        assert httpx2.get(f"{place[0]}/").status_code == 200
        assert httpx2.get(f"{place[0]}/studies/{NAME}").status_code == (200 if begun else 503)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out, err) == (0, "dashboard stopped\n", "")


# --- parts ------------------------------------------------------------------------------------------------------------


def test_numbers_of_figures() -> None:
    view = views.finished()
    table = numbers(FIGURES["best-so-far"].draw(view, LIGHT), "caption")
    assert table.headings == ("series", "trial", "validation MRR", "point")
    scores = [(row[1], row[2], row[3]) for row in table.rows if row[0] == "evaluation"]
    assert scores[3] == ("3", "0.14", "SPP-PPS")
    confirmation = numbers(FIGURES["confirmation"].draw(view, LIGHT), "caption")
    assert "all-serial, SSS-SSS" in {cell for row in confirmation.rows for cell in row}
    layout = numbers(FIGURES["layout"].draw(view, LIGHT), "caption")
    assert layout.headings == ("", "causal", "context", "recommendation")
    assert [row[0] for row in layout.rows] == ["layer 1", "layer 2"]
    told = numbers(FIGURES["timeline"].draw(view, LIGHT), "caption")
    assert any("loss <b>nan</b>" in row[0] for row in told.rows)
    assert not numbers(FIGURES["layout"].draw(views.view(), LIGHT), "caption").rows


def test_curves_of_trials() -> None:
    view = views.finished()
    alone = trial_curves(view, [0], LIGHT)
    assert [trace.name for trace in alone.data] == ["best (trial 3)", "trial 0"]
    assert list(alone.data[1].x) == [1, 2]
    assert list(alone.data[1].y) == [0.08, 0.10]
    assert words(alone) == "Trial 0: 2 epochs, the best 0.1000 after epoch 2."
    both = trial_curves(view, [0, 3], LIGHT)
    assert [trace.name for trace in both.data] == ["trial 0", "trial 3"]
    assert not trial_curves(views.view([views.Trial(0, views.State.WAITING)]), [0], LIGHT).data
    with pytest.raises(WrongUse, match="give one or two trials"):
        trial_curves(view, [0, 1, 2], LIGHT)
    with pytest.raises(WrongUse, match="has no trial 9"):
        trial_curves(view, [9], LIGHT)
    assert words(trial_difference(view, [0, 3], LIGHT)).startswith("From trial 0 to trial 3")


def test_map_of_a_layout() -> None:
    rows = layout_map(views.space(), Layout.parse("SPS-PPP"), before=Layout.parse("SSS-PPP"))
    assert [label for label, _ in rows] == ["layer 1", "layer 2"]
    assert ["".join(cell.letter for cell in cells) for _, cells in rows] == ["SPS", "PPP"]
    assert [cell.changed for _, cells in rows for cell in cells] == [False, True, False, False, False, False]


def test_a_trials_probabilities_beside_what_was_proposed() -> None:
    """Layer 1 was proposed as SPP, where serial was the likeliest choice of the last site."""
    study = views.finished()
    chosen = study.trial(3)
    proposed = study.proposals[3]
    assert proposed.probabilities is not None
    moved = replace(proposed, probabilities={**proposed.probabilities, "layer01.recommendation": [0.2]})
    tables = proposal_tables(replace(study, proposals=(moved,)), chosen)
    assert tables[1].headings == ("site", "proposed", "serial", "parallel", "note")
    assert tables[1].rows[:3] == (
        ("1 causal", "serial", "0.850", "0.150", ""),
        ("1 context", "parallel", "0.050", "0.950", ""),
        ("1 recommendation", "parallel", "0.800", "0.200", AGAINST),
    )
    assert [row[-1] for row in proposal_tables(study, chosen)[1].rows] == [""] * 6


def test_a_trial_worth_comparing_with_the_first() -> None:
    view = views.finished()
    assert worth_comparing(view) == 3  # the best
    assert worth_comparing(views.view(view.trials[:2])) == 1  # the first is the best itself
    assert worth_comparing(views.view(view.trials[:1])) is None


def test_json_has_no_infinity() -> None:
    assert finite({"a": [float("nan"), 1.0, (float("inf"), "x")]}) == {"a": [None, 1.0, [None, "x"]]}
