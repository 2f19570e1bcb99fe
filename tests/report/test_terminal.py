"""The sentences on a study's results table."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from dasearch.cli import run_command
from dasearch.layout import Layout
from dasearch.report.terminal import against_baselines, results_table, show_status
from dasearch.search.events import SEARCH, Finished, Training
from dasearch.search.progress import Terminal
from dasearch.search.store import Result
from dasearch.search.study import status
from dasearch.training.metrics import Interval
from dasearch.training.progress import Epoch
from dasearch.training.shared import Outcome, Passing
from tests.report.stored import NAME, empty_study, evaluate, give_up
from tests.report.views import later_trainings

METRICS = ("MRR", "Recall@10", "NDCG@10")


def test_status_names_why_trials_failed(tmp_path: Path) -> None:
    store = empty_study(tmp_path)
    evaluate(store, "SPS-PPS", 0.2, workers=["a:1", "b:2"])
    give_up(store, "SPP-SSS", "it took longer than its 5 minutes")
    for layout in ("PPP-PPP", "PPP-SSS"):
        give_up(store, layout, "its worker was lost (gone), 3 times", ["a:1", "b:2", "b:3"])
    first, _, _ = later_trainings()
    store.begin_training(NAME, first)
    store.end_training(NAME, first.run, first.began, workers=["a:1"], reason="diverged")
    found, shown = status(store, NAME), StringIO()
    store.close()
    show_status(Console(file=shown, width=80), found)
    lines = shown.getvalue().splitlines()
    assert [line for line in lines if "failed" in line] == [
        "2 trials failed: its worker was lost (gone), 3 times",
        "1 trial failed: it took longer than its 5 minutes",
        "1 confirmation training failed: diverged",
    ]
    assert [(trial.workers, trial.reason) for trial in found.trials[:2]] == [
        (("a:1", "b:2"), None),
        ((), "it took longer than its 5 minutes"),
    ]


def test_status_as_json_has_workers_and_causes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = empty_study(tmp_path)
    give_up(store, "PPP-PPP", "diverged", ["a:1", "b:2"])
    first, _, _ = later_trainings()
    store.begin_training(NAME, first)
    store.end_training(NAME, first.run, first.began, workers=["a:1"], reason="diverged")
    store.close()
    assert run_command(["status", NAME, "--json", "--output", str(tmp_path)]) == 0
    record = json.loads(capsys.readouterr().out)
    (trial,), (later,) = record["trials"], record["later_trainings"]
    assert (trial["workers"], trial["reason"]) == (["a:1", "b:2"], "diverged")
    assert (later["workers"], later["reason"], later["layout"]) == (["a:1"], "diverged", "SSS-SSS")
    assert later["ended"] == first.began.isoformat()


def rows(name: str, lead: Interval | None, p: float | None, layout: str | None = None) -> list[Result]:
    return [Result(name, layout, metric, 0.12, 0.11, 0.13, 3, 0.002, lead, p) for metric in METRICS]


RESULTS = [
    *rows("winner", None, None, "SPS-PPS"),
    *rows("all-serial", None, None, "SPS-PPS"),
    *rows("popularity", Interval(0.02, 0.01, 0.03), 0.001),
    *rows("SASRec", Interval(-0.02, -0.03, -0.01), 0.02),
    *rows("GRU4Rec", Interval(0.01, 0.001, 0.02), 0.11),
    *rows("Markov", Interval(0.01, -0.001, 0.02), 0.01),
]


def test_only_what_interval_and_corrected_p_both_show_is_called_a_lead() -> None:
    assert against_baselines(RESULTS) == (
        "In NDCG@10 the winner is significantly above popularity; significantly below SASRec; "
        "statistically indistinguishable from GRU4Rec, Markov."
    )


@pytest.mark.parametrize(
    ("width", "headings"),
    [
        (72, ["", "NDCG@10", "winner's lead", "p (Holm)"]),
        (160, ["", "layout", *METRICS, "95% interval", "winner's lead", "p (Holm)"]),
    ],
)
def test_the_closing_table_fits_its_terminal(width: int, headings: list[str]) -> None:
    table = results_table(RESULTS, width)
    assert [column.header for column in table.columns] == headings
    console = Console(width=width, record=True)
    console.print(table)
    shown = console.export_text()
    assert "…" not in shown
    assert "+0.0200 [+0.0100, +0.0300]" in shown
    assert "0.1200 ±0.0020" in shown


class Shown(Terminal):
    """Records the texts of its live line."""

    def __init__(self) -> None:
        super().__init__(Console(width=80, record=True, file=StringIO()))
        self.lines: list[str] = []

    def _live(self, text: str) -> None:
        self.lines.append(text)


def test_a_batch_is_one_live_line_and_a_line_for_each_that_ended() -> None:
    shown = Shown()
    layouts = [Layout.parse(text) for text in ("SPS-PPS-SSP-SSS", "PPP-SSS-PPS-SSP", "SSS-SSS-SSS-SSP")]
    batch = [Training(SEARCH, 5 + place, 30, layout, "trial", 3) for place, layout in enumerate(layouts)]
    for training in batch:
        shown.started(training)
    for place, training in enumerate(batch):
        shown.epoch(training, Epoch(0, {}, {"MRR": 0.04 + 0.01 * place}, 1.0))
    assert shown.lines == [
        "5/30  SPS-PPS-SSP-SSS  epoch 1/3",
        "5-6/30 side by side  epoch 1/3",
        "5-7/30 side by side  epoch 1/3",
        "5-7/30 side by side  epoch 1/3  MRR 0.0400",
        "5-7/30 side by side  epoch 1/3  MRR 0.0500",
        "5-7/30 side by side  epoch 2/3  MRR 0.0600",
    ]
    for training in batch:
        shown.finished(Finished(training, 0.05, 0.06, training.layout, 12.5, 3725.0))
    shown.started(Training(SEARCH, 8, 30, layouts[0], "trial", 3))
    assert shown.lines[-1] == "8/30  SPS-PPS-SSP-SSS  epoch 1/3  best 0.0600  left 1:02:05"
    printed = shown.console.export_text().splitlines()
    assert printed[-1] == " 7/30  SSS-SSS-SSS-SSP  MRR 0.0500  best 0.0600   12.5 s  left 1:02:05"
    assert max(map(len, [*printed, *shown.lines])) <= 80


def test_a_log_has_a_line_an_event_and_none_for_what_passes() -> None:
    console = Console(width=80, record=True, file=StringIO())
    terminal = Terminal(console)
    terminal.says("reading the data")
    for epoch in range(3):
        terminal.says(Passing(f"ID encoder sasrec, epoch {epoch}/3: validation NDCG@10 0.1"))
    terminal.language_model(1, 2, 9.0)
    terminal.language_model(2, 2, 8.0)
    done = "4/12  ID encoder sasrec: validation NDCG@10 0.1234  35.1 s, which is longer than a line of eighty columns"
    terminal.says(Outcome(done))
    terminal.close()
    assert console.export_text().splitlines() == [
        "reading the data",
        "tiny-opt trained on the catalogue's text: 2 steps, loss 8.00",
        done,
    ]


def test_the_time_left_stands_beside_what_passes_and_never_at_nothing() -> None:
    shown = Shown()
    shown.left(600.0)
    shown.says(Passing("ID encoder sasrec, epoch 1/3"))
    shown.left(0.0)
    shown.says(Passing("ID encoder sasrec, epoch 2/3"))
    assert shown.lines == ["ID encoder sasrec, epoch 1/3  left 10:00", "ID encoder sasrec, epoch 2/3"]
    layout = Layout.parse("SPS-PPS")
    training = Training(SEARCH, 1, 2, layout, "trial", 3)
    for seconds in (90.0, 0.0):
        shown.finished(Finished(training, 0.05, None, None, 1.0, seconds))
    assert [line.rpartition("  ")[2] for line in shown.console.export_text().splitlines()] == ["left 1:30", "1.0 s"]


@pytest.mark.parametrize("long", [False, True])
def test_a_live_line_is_one_line_of_a_terminal_of_80_columns(long: bool) -> None:
    console = Console(file=StringIO(), width=80, force_terminal=True, color_system=None)
    terminal = Terminal(console)
    if long:
        terminal.says(
            "a message that is far longer than the line of a terminal of eighty columns has room for, or should be"
        )
    else:
        terminal.language_model(375, 400, 10.95)
    assert terminal._spinner is not None
    (line,) = console.render_lines(terminal._spinner.renderable, pad=False)
    shown = "".join(segment.text for segment in line)
    assert shown.rstrip().endswith("…" if long else "375/400  loss 10.95")
    terminal.close()
