"""What the closing words of a study say of its table."""

from __future__ import annotations

import pytest
from rich.console import Console

from dasearch.report.terminal import against_baselines, results_table
from dasearch.search.store import Result
from dasearch.training.metrics import Interval

METRICS = ("MRR", "Recall@10", "NDCG@10")


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
        "In NDCG@10 the winner stands above popularity; below SASRec; "
        "level, within what these seeds and users can tell, with GRU4Rec, Markov."
    )


@pytest.mark.parametrize(
    ("width", "headings"),
    [
        (72, ["", "NDCG@10", "winner's lead", "p"]),
        (160, ["", "layout", *METRICS, "95% interval", "winner's lead", "p"]),
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
