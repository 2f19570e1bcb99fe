"""A report as a reader opens it: parsed, not searched for words."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import plotly.graph_objects as go
import pytest
import yaml

from dasearch.config import flattened, parse_study
from dasearch.layout import Layout
from dasearch.report import Format
from dasearch.report.document import (
    Section,
    Table,
    commands,
    facts_table,
    log_section,
    sections,
    shown,
    verdict_sentences,
)
from dasearch.report.figures import FIGURES
from dasearch.report.page import as_html, as_markdown, in_script, write_figure, write_report
from dasearch.report.theme import LIGHT, words
from dasearch.report.view import State, StudyView, Trial, read_view
from tests.report.stored import NAME, large_study
from tests.report.views import BEGUN, LAYOUTS, complete, finished, later_trainings, view

LARGEST = 6_000_000  # bytes of a report of 100 trials
NASTY = '<script>alert("1")</script> & ünï·コード | *x*'
ORDINARY = {
    key: drawing for key, drawing in FIGURES.items() if key not in ("front", "settings")
}  # of one metric, and layouts alone
VERDICT = 2  # paragraphs before it: what the page is, and what it says without JavaScript
VOID = {"meta", "link", "br", "hr", "img", "input"}
LOADS = {"src", "href", "data", "action", "poster", "srcset"}  # attributes that can make a browser ask for something


class Page(HTMLParser):
    """What a browser would see of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.scripts: dict[str, str] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.texts.setdefault(tag, []).append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open:
            return
        self.texts[self._open[-1]][-1] += data
        if self._open[-1] == "script" and (identifier := self.elements[-1][1].get("id")):
            self.scripts[identifier] = self.scripts.get(identifier, "") + data

    def having(self, attribute: str) -> list[str]:
        return [str(found[attribute]) for _, found in self.elements if attribute in found]

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(as_html(finished()))


def test_nothing_is_asked_of_the_network(page: Page) -> None:
    asked = [str(value) for _, found in page.elements for key, value in found.items() if key in LOADS]
    assert asked
    assert all(value.startswith("#") for value in asked)
    styles = page.texts["style"][0]
    assert "url(" not in styles
    assert "@import" not in styles
    (policy,) = (
        found["content"] for tag, found in page.elements if found.get("http-equiv") == "Content-Security-Policy"
    )
    assert str(policy).startswith("default-src 'none';")
    assert "http" not in str(policy)


def test_every_figure_is_there_with_words_and_its_own_data(page: Page) -> None:
    assert page.having("data-figure") == list(dict.fromkeys(page.having("data-figure")))
    assert sorted(page.having("data-figure")) == sorted(ORDINARY)
    study = finished()
    for key, (title, _, draw) in ORDINARY.items():
        spec = json.loads(page.scripts[f"spec-{key}"])
        figure = draw(study, LIGHT)
        assert len(spec["data"]) == len(figure.data) > 0
        assert "template" not in spec["layout"]
        assert f"{title}. {words(figure)}" in page.having("aria-label")
    likely = json.loads(page.scripts["spec-probabilities"])["data"][0]
    assert likely["x"] == [2, 3, 4]
    assert set(json.loads(page.scripts["templates"])) == {"light", "dark"}


def test_headings_tables_and_links_are_whole(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    identifiers = page.having("id")
    assert len(set(identifiers)) == len(identifiers)
    assert {link.removeprefix("#") for link in page.having("href")} <= set(identifiers)
    assert page.having("href")[0] == "#main"  # the skip link comes first
    assert page.count("caption") == page.count("table") >= 8
    assert all(caption.strip() for caption in page.texts["caption"])
    assert page.count("main") == page.count("nav") == 1
    named = {found.get("aria-labelledby") for tag, found in page.elements if tag in ("figure", "section")}
    assert None not in named
    assert named <= set(identifiers)


def test_the_verdict_comes_first(page: Page) -> None:
    assert page.texts["p"][VERDICT].startswith("SPP-PPS came out best, but its gain over all-serial (+0.0450 ±")
    assert "In NDCG@10 the winner is significantly above popularity." in page.texts["p"]


def test_tables_have_every_number() -> None:
    tables = {table.caption: table for section in sections(finished()) for table in section.tables}
    trials = tables["Every trial"].rows
    assert [row[0] for row in trials] == [str(n) for n in range(8)]
    assert trials[3] == ("3", "SPP-PPS", "complete", "0.1400", "11.0", "1,003", "1", "")
    assert trials[6][-1] == "repeats trial 5; loss <b>nan</b>"
    (confirmation,) = (
        table for caption, table in tables.items() if caption.startswith("Confirmation with fresh seeds")
    )
    assert [row[1] for row in confirmation.rows] == ["candidate", "all-serial", "all-parallel"]
    assert confirmation.rows[0][4].startswith("+0.0450 ±0.0635")  # t(1) = 12.706 times sd .00707 over the root of 2
    assert confirmation.rows[1][4:] == ("", "")
    (results,) = (table for caption, table in tables.items() if caption.startswith("Test split"))
    assert results.rows[1][-2:] == ("+0.1000 [+0.0800, +0.1200]", "<.001")


def test_the_configuration_is_one_that_can_be_run_again(page: Page) -> None:
    listing = next(code for code in page.texts["code"] if code.startswith("name: toy"))
    assert parse_study(yaml.safe_load(listing)) == finished().settings
    assert "dasearch run toy.yaml --budget 5" in page.texts["code"][-1].splitlines()


@pytest.mark.parametrize("form", Format)
def test_names_are_text(form: Format) -> None:
    trial = Trial(5, State.PRUNED, Layout.parse("PSS-SSS"), started=BEGUN, ended=BEGUN, reason=NASTY)
    study = finished(name=NASTY, dataset={"name": NASTY, "fingerprint": "x"}, versions={NASTY: NASTY})
    study = view([*study.trials[:5], trial], name=NASTY, dataset=study.dataset, versions=study.versions)
    if form is Format.MD:
        text = as_markdown(study)
        assert "<script>" not in text.split("```")[0]
        assert "&lt;script>" in text
        lines = [line for line in text.splitlines() if line.startswith("| name |")]
        assert {line.replace("\\|", "").count("|") for line in lines} == {3}
        return
    page = Page(as_html(study))
    assert page.texts["h1"] == [NASTY]
    assert NASTY in page.texts["td"]
    assert page.count("script") == len(page.having("data-figure")) + 3  # the figures, their templates, plotly.js, ours
    hover = json.loads(page.scripts["spec-timeline"])["data"][1]["hovertext"]
    assert "&lt;script&gt;" in hover[0]


def test_json_in_a_page_cannot_end_its_script() -> None:
    value = {"</script><b>": "&amp;<!--"}
    assert not set("<>&") & set(in_script(value))
    assert json.loads(in_script(value)) == value


EXTREMES = {
    "no trials": view(),
    "one": view([complete(0, Layout.parse("SSS-SSS"), 0.1)]),
    "two": view([complete(0, Layout.parse("SSS-SSS"), 0.1), complete(1, Layout.parse("PPP-PPP"), 0.1)]),
    "failed alone": view([Trial(n, State.FAIL, reason="it was interrupted") for n in range(3)]),
    "running": view([Trial(0, State.RUNNING, started=BEGUN)]),
    "thirty layers": view(
        [complete(0, Layout.all_serial(30), 0.1), complete(1, Layout.all_parallel(30), 0.2)], layers=30
    ),
}


@pytest.mark.parametrize("study", EXTREMES.values(), ids=EXTREMES)
def test_studies_at_the_edges(study: StudyView) -> None:
    page = Page(as_html(study))
    here = ORDINARY.keys() - {"results"}  # of a study whose test split was read
    drawn = {key: bool(FIGURES[key].draw(study, LIGHT).data) for key in here}
    assert {f"figure-{key}" for key in here} <= set(page.having("id"))
    assert sorted(page.having("data-figure")) == sorted(key for key in here if drawn[key])
    said = [words(FIGURES[key].draw(study, LIGHT)) for key in here if not drawn[key]]
    assert set(said) <= set(page.texts["p"])
    assert page.texts["p"][VERDICT] == verdict_sentences(study)[0]
    assert as_markdown(study).startswith("# toy: dasearch report\n\n## Verdict\n")


def test_verdicts_before_confirmation() -> None:
    (sentence,) = verdict_sentences(EXTREMES["failed alone"])
    assert sentence == "No trial is complete yet, so there is no verdict (3 failed)."
    (sentence,) = verdict_sentences(EXTREMES["one"])
    assert sentence.startswith("Not confirmed yet: SSS-SSS is the best of 1 evaluation with MRR 0.1000")
    assert "its phase is final" in verdict_sentences(finished(phase="final"))[-1]


def test_a_hundred_trials_stay_small(tmp_path: Path) -> None:
    store = large_study(tmp_path, trials=100, layers=12)
    path = write_report(read_view(store, NAME), tmp_path / "made" / "report.html", Format.HTML)
    store.close()
    assert path.stat().st_size < LARGEST
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    Page(path.read_text())


def test_an_interrupted_report_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_report(finished(), tmp_path / "report.md", Format.MD)
    before = path.read_text()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_report(finished(name="other"), path, Format.MD)
    assert path.read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == ["report.md"]


def test_markdown_has_the_same_tables() -> None:
    text = as_markdown(finished())
    for section in sections(finished()):
        assert f"## {section.title}" in text
        for table in section.tables:
            assert text.count(f"**{table.caption}**".replace("|", "\\|")) == 1 or not table.rows
    assert "| 3 | SPP-PPS | complete | 0.1400 | 11.0 | 1,003 | 1 |  |" in text
    assert "- Was the surrogate calibrated?: " in text


def test_data_statistics_are_shown_where_they_are_recorded() -> None:
    recorded = {
        "name": "toy data",
        "fingerprint": "ab12",
        "statistics": {"users": 2204, "density": 0.11236, "tied_last": 0.0},
    }
    (data,) = (section for section in sections(finished(dataset=recorded)) if section.key == "data")
    assert ("users", "2,204") in data.tables[0].rows
    assert ("density", "0.1124") in data.tables[0].rows
    assert not data.sentences
    (without,) = (section for section in sections(finished()) if section.key == "data")
    assert "dasearch data stats complete-journey counts them" in without.sentences[0]


def test_a_training_that_stands_in_two_rows_took_its_time_once() -> None:
    (winner,) = finished().final_trainings
    same, other = winner._replace(name="all-serial"), winner._replace(name="llmrec", layout=None, seconds=20.0)
    rows = dict(facts_table(finished(final_trainings=(winner, same, other))).rows)
    assert rows["training"] == "0:50 in trials, 2:08 after them"  # six confirmations of 8 s, 60 s and 20 s


def test_trainings_after_the_search_have_their_times() -> None:
    (_, trainings, *_) = log_section(finished(later_trainings=later_trainings())).tables
    began = "2026-01-01 00:01 UTC"
    assert trainings.rows == (
        ("confirmation", "1 of 6", "all-serial, seed 1", "SSS-SSS", began, "8.0", ""),
        ("confirmation", "2 of 6", "all-serial, seed 2", "SSS-SSS", began, "8.0", ""),
        ("final", "1 of 4", "winner <b>, seed 0", "SSS-SSS", "2026-01-01 00:02 UTC", "runs", ""),
    )


def test_what_failed_is_said_by_its_cause_and_where_it_was_tried() -> None:
    first, second, _ = later_trainings()
    lost = second._replace(workers=("a:1", "b:2"), reason="its worker was lost")
    again = complete(0, Layout.parse(LAYOUTS[0]), 0.1, workers=("a:1", "a:3"))
    slow = [complete(n, Layout.parse(LAYOUTS[n]), 0.1, state=State.PRUNED, reason="it took too long") for n in (1, 2)]
    found = view([again, *slow], later_trainings=(first._replace(workers=("a:1",)), lost))
    trials = next(section for section in sections(found) if section.key == "trials")
    assert trials.sentences == (
        "2 trials failed: it took too long",
        "1 confirmation training failed: its worker was lost",
    )
    assert [row[-1] for row in trials.tables[0].rows] == [
        "attempt 1 in a:1, attempt 2 in a:3",
        "it took too long",
        "it took too long",
    ]
    notes = [row[-1] for row in log_section(found).tables[1].rows]
    assert notes == ["", "its worker was lost; attempt 1 in a:1, attempt 2 in b:2"]
    markdown = as_markdown(found)
    assert "2 trials failed: it took too long" in markdown
    assert "attempt 1 in a:1, attempt 2 in a:3" in markdown


def test_a_table_without_rows_is_left_out() -> None:
    page = Page(as_html(view()))
    assert "Every trial" not in page.texts["caption"]
    assert isinstance(sections(view())[0], Section)
    assert Table("x", ("a",), ()).rows == ()


def test_values_as_people_read_them() -> None:
    assert [shown(v) for v in (1234, 0.25, True, None, ["a", 2], "x")] == ["1,234", "0.25", "yes", "none", "a, 2", "x"]
    assert flattened({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "d": [1]}
    assert commands(finished(name="a b"))[0] == "dasearch run 'a b.yaml' --budget 5"
    assert len(LAYOUTS) == 5


def test_the_page_of_a_figure_sends_its_data_nowhere(tmp_path: Path) -> None:
    write_figure(go.Figure(go.Bar(x=[1], y=[2])), tmp_path / "figure.html")
    text = (tmp_path / "figure.html").read_text()
    (config,) = re.findall(r'\{[^{}]*"showSendToCloud"[^{}]*\}', text)
    assert json.loads(config)["showSendToCloud"] is False
