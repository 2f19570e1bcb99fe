"""Tables and lines of progress in the room that a terminal has, at the depths of real backbones."""

import os
import pty
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from dasearch.commands import Place
from dasearch.config import parse_study
from dasearch.fitting import progress_line, shortened, show_table
from dasearch.layout import Layout
from dasearch.report.ablation import ablation_table
from dasearch.report.terminal import Layouts, show_status, summary
from dasearch.search.ablation import Scored, Variant
from dasearch.search.confirmation import OBJECTIVE
from dasearch.search.events import ABLATION, CONFIRMATION, SEARCH, TRIAL, Finished, Training
from dasearch.search.progress import Terminal
from dasearch.search.store import Artifact, Confirmation, Result
from dasearch.search.study import Status, status
from dasearch.shipped import shipped
from dasearch.short_layout import WIDTH, layout_id
from dasearch.training.metrics import Interval
from dasearch.training.progress import Epoch
from tests.report.stored import NAME, large_study

DEPTHS, WIDTHS = (12, 30), (80, 120)
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
Watched = Callable[[int, Callable[[Console], None]], list[str]]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    """The lines, live ones too, that something writes on a pseudo-terminal of so many columns."""
    main, end = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")

    def lines(columns: int, show: Callable[[Console], None]) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        written = bytearray()
        with open(end, "w", buffering=1, closefd=False, encoding="utf-8") as terminal:
            console = Console(file=Draining(terminal, main, written), highlight=False)
            assert (console.is_terminal, console.width) == (True, columns)
            show(console)
        return [line for line in re.split(r"[\r\n]+", ESCAPE.sub("", written.decode())) if line.strip()]

    yield lines
    os.close(main)
    os.close(end)


class Draining:
    """A terminal's file that is read as it is written, for a pseudo-terminal holds little."""

    def __init__(self, terminal: object, main: int, written: bytearray) -> None:
        self.terminal, self.main, self.written = terminal, main, written

    def write(self, text: str) -> int:
        """Line by line, whose ends the terminal makes two letters of."""
        for line in text.splitlines(keepends=True):
            self.terminal.write(line)
            self.terminal.flush()
            wanted = len(self.written) + len(line.encode()) + line.count("\n")
            while len(self.written) < wanted:
                self.written += os.read(self.main, 4096)
        return len(text)

    def flush(self) -> None:
        """All is read as it is written."""

    def isatty(self) -> bool:
        return os.isatty(self.terminal.fileno())

    def fileno(self) -> int:
        return self.terminal.fileno()


@pytest.fixture(params=DEPTHS)
def deep(request: pytest.FixtureRequest, tmp_path: Path) -> Status:
    """A study of so many layers that is done."""
    layers = request.param
    with closing(large_study(tmp_path, trials=4, layers=layers)) as store:
        best = status(store, NAME).best.layout
        roles = {
            "candidate 1": best,
            "all-serial": Layout.all_serial(layers),
            "all-parallel": Layout.all_parallel(layers),
        }
        for role, layout in roles.items():
            for seed in (1, 2):
                store.add_confirmation(NAME, Confirmation(layout, role, seed, {"MRR": 0.1 + 0.01 * seed}, 8.0))
        rows = {"winner": str(best), "all-serial": str(Layout.all_serial(layers)), "SASRec": None}
        store.finish(NAME, [result for name, text in rows.items() for result in results(name, text)], [], [])
        return status(store, NAME)


def results(name: str, layout: str | None) -> list[Result]:
    lead = None if name == "winner" else Interval(0.02, 0.01, 0.03)
    p = None if name == "winner" else 0.012
    return [Result(name, layout, metric, 0.12, 0.11, 0.13, 3, 0.002, lead, p) for metric in ("MRR", "NDCG@10")]


@pytest.mark.parametrize("columns", WIDTHS)
def test_status_of_a_deep_study_fits_and_cuts_no_number(watched: Watched, deep: Status, columns: int) -> None:
    lines = watched(columns, lambda console: show_status(console, deep))
    assert max(map(len, lines)) <= columns
    shown = "\n".join(lines)
    for trial in deep.trials:
        assert f"{trial.score:.4f}" in shown
        assert str(trial.layout) in shown or layout_id(trial.layout) in shown
    for whole in ("0.1200 ±0.0020", "+0.0200 [+0.0100, +0.0300]", "0.012", "p (Holm)", "0.1150 ±0.0635"):
        assert whole in shown
    assert not re.search(r"\d…", shown)


def test_layouts_are_written_out_where_that_is_asked_for(watched: Watched, deep: Status) -> None:
    lines = watched(80, lambda console: show_status(console, deep, layouts=Layouts.FULL))
    shown = "\n".join(lines)
    assert all(str(trial.layout) in shown for trial in deep.trials)
    assert "…" not in shown


LABELS = {
    SEARCH: (TRIAL, "lr=0.0040 bottleneck=64 dropout=0.2 weight_decay=0.01"),
    CONFIRMATION: ("all-parallel, seed 4", "candidate 1 = random, seed 12"),
    ABLATION: ("placement of the adapters: no recommendation adapter, all others serial, seed 3",),
}


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("layers", DEPTHS)
@pytest.mark.parametrize("phase", list(LABELS))
def test_progress_of_deep_layouts_does_not_wrap(watched: Watched, phase: str, layers: int, columns: int) -> None:
    layout = Layout.from_bits([k * k % 7 % 2 for k in range(3 * layers)], sites=3)
    best = 0.1234 if phase == SEARCH else None

    def trains(console: Console) -> None:
        with closing(Terminal(console)) as terminal:
            for place, label in enumerate(LABELS[phase]):
                training = Training(phase, 118 + place, 200, layout, label, 10, "NDCG@10")
                terminal.started(training)
                terminal.epoch(training, Epoch(8, {}, {"NDCG@10": 0.1111}, 9.0))
                terminal.finished(Finished(training, 0.1112, best, layout, 1234.5, 40_000.0))

    lines = watched(columns, trains)
    assert max(map(len, lines)) <= columns
    ended = [line for line in lines if "1234.5 s" in line]
    assert len(ended) == len(LABELS[phase])
    for line in ended:
        assert "NDCG@10 0.1112" in line
        assert "left 11:06:40" in line
        assert str(layout) in line or layout_id(layout) in line
    assert any("epoch 10/10  NDCG@10 0.1111" in line for line in lines)


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_next_command_loses_its_note_before_it_is_broken(watched: Watched, deep: Status, columns: int) -> None:
    done = replace(deep, artifacts=[Artifact("model", "runs/toy/model", "0" * 64)])
    lines = watched(columns, lambda console: summary(console, done, Place("some runs"), resume="dasearch resume toy"))
    (export,) = (line for line in lines if "dasearch export" in line)
    command = "      dasearch export runs/toy/model --format hf"
    note = "   (dasearch export --list shows the others)"
    assert export == (command + note if columns >= len(command + note) else command)


def test_the_best_of_the_search_is_not_shown_as_that_of_the_confirmation(watched: Watched) -> None:
    layout = Layout.all_serial(12)

    def trains(console: Console) -> None:
        with closing(Terminal(console)) as terminal:
            terminal.finished(Finished(Training(SEARCH, 30, 30, layout, TRIAL, 2), 0.2, 0.2222, layout, 9.0, 60.0))
            terminal.started(Training(CONFIRMATION, 1, 6, layout, "all-serial, seed 1", 2))

    lines = watched(120, trains)
    assert any("30/30" in line and "best 0.2222" in line for line in lines)
    (confirming,) = {line for line in lines if "all-serial, seed 1" in line}
    assert "epoch 1/2" in confirming
    assert "best" not in confirming


labels = st.one_of(
    st.just(""), st.text("ab=,. 0123", max_size=60), st.integers(0, 99).map("a long role, seed {}".format)
)


@given(st.integers(4, 40), labels, st.integers(50, 200))
def test_a_line_of_progress_fits_and_names_its_layout(layers: int, label: str, width: int) -> None:
    layout = Layout.from_bits([k * k % 5 % 2 for k in range(3 * layers)], sites=3)
    tail = [f"{OBJECTIVE} 0.1111", "best 0.2222", " 12.5 s"]
    line = progress_line("12/200", layout, label, tail, width=width, spare=["best 0.2222"])
    assert len(line) <= width
    assert str(layout) in line or layout_id(layout) in line
    assert line.startswith("12/200  ")
    assert line.endswith(" 12.5 s")
    assert f"{OBJECTIVE} 0.1111" in line


@given(st.lists(st.sampled_from(["lr=0.004", "width=64", "no adapter"]), min_size=1, max_size=6), st.integers(0, 60))
def test_a_shortened_label_keeps_whole_words_and_its_seed(words: list[str], width: int) -> None:
    label = f"{' '.join(words)}, seed 12"
    text = shortened(label, width)
    assert len(text) <= width
    if text not in ("", label):
        kept, _, ending = text.partition("…")
        assert ending == ", seed 12"
        assert label.startswith(kept)
        assert kept == "" or kept.endswith(" ")


def test_a_log_has_layouts_at_one_width_and_no_line_is_broken(capsys: pytest.CaptureFixture[str]) -> None:
    label = "placement of the adapters: no recommendation adapter, all others serial, seed 3"
    training = Training(ABLATION, 3, 30, Layout.all_serial(30), label, 10)
    Terminal(Console(width=80)).finished(Finished(training, 0.1, None, None, 2.0, 60.0))
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line)
    layout = f"{layout_id(training.layout)} SSS*30".ljust(WIDTH)
    assert line == f" 3/30  {layout}  {label}  MRR 0.1000    2.0 s  left 1:00"


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("study", ["darec", "darec-sites", "idle", "ra-rec"])
def test_the_table_of_every_shipped_ablation_fits(watched: Watched, study: str, columns: int) -> None:
    file = yaml.safe_load((shipped("studies/ablations") / f"{study}.yaml").read_text())
    whole = Variant("", "the study itself", parse_study({"name": "toy"}), Layout.all_serial(30), 1)
    variants = [replace(whole, group=group, name=name) for group, named in file["groups"].items() for name in named]
    interval = Interval(0.1234, 0.1178, 0.129)
    metrics = dict.fromkeys(("MRR", "Recall@10", "NDCG@10"), interval)
    scored = [
        Scored(one, metrics, interval if one.group else None, 1_234_567, 3, "NDCG@10") for one in (whole, *variants)
    ]
    lines = watched(columns, lambda console: show_table(console, ablation_table(scored, console.width)))
    assert max(map(len, lines)) <= columns
    assert sum("0.1234 ±0.0056" in line for line in lines) == len(scored)
    assert sum("+0.1234 ±0.0056" in line for line in lines) == len(variants)


def test_a_label_loses_its_group_before_its_name() -> None:
    label = "one site left out of every layer: no context adapter, seed 3"
    assert shortened(label, 60) == label
    assert shortened(label, 59) == "no context adapter, seed 3"
    assert shortened(label, 25) == "no context …, seed 3"
    assert shortened(label, 5) == ""
