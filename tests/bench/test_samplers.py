"""Races repeat, go on where they stopped, and are compared in pairs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from dasearch.bench.command import race_samplers
from dasearch.bench.samplers import PR, SAMPLERS, Entry, Race, planned, race, read_races, run, scores
from dasearch.cli import run_command
from dasearch.errors import WrongUse
from tests.bench.test_landscapes import table_file


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_race_repeats_and_its_curve_never_falls(sampler: str) -> None:
    entry = Entry("sparse/6", sampler, 1, 12)
    first, again = race(entry), race(entry)
    assert first.curve == again.curve
    assert len(first.curve) == 12
    assert first.curve == sorted(first.curve)
    assert first.curve[-1] <= 1


def test_the_best_is_found_where_everything_is_tried(tmp_path: Path) -> None:
    path = table_file(tmp_path / "t.jsonl")
    assert race(Entry("table/t", PR, 0, 12, path)).curve[3:] == [1]  # a table of four layouts ends there


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    entries = planned(["independent"], [6], [], ["random"], seeds=2, trials=11)
    path = tmp_path / "races.jsonl"
    assert [left for left, _ in run(entries[:1], path)] == [0]
    assert [(left, r.seed) for left, r in run(entries, path)] == [(0, 1)]
    assert [r.seed for r in read_races(path)] == [0, 1]
    assert not list(run(entries, path))


def test_scores_are_paired_and_pooled() -> None:
    def line(landscape: str, sampler: str, seed: int, value: float) -> Race:
        return Race(landscape, sampler, seed, [value] * 10, 0.1)

    races = [
        line("a/36", PR, 0, 0.9),
        line("a/36", PR, 1, 0.5),
        line("a/36", "TPE", 0, 0.6),
        line("a/36", "TPE", 1, 0.4),
        line("table/t", PR, 0, 0.1),
        line("table/t", "TPE", 0, 0.3),
        line("table/t", "TPE", 1, 0.3),
    ]
    found = {(s.landscape, s.sampler, s.trials): s for s in scores(races)}
    one = found["a/36", "TPE", 10]
    assert (one.mean, one.lead, one.seeds) == (pytest.approx(0.5), pytest.approx(0.2), 2)
    assert one.lead_error == pytest.approx(0.1)
    assert found["planted, pooled", "TPE", 10].lead == pytest.approx(0.2)
    assert found["table/t", "TPE", 10].lead == pytest.approx(-0.2)
    assert math.isnan(found["table/t", "TPE", 10].lead_error)
    assert ("a/36", "TPE", 20) not in found


def bench(tmp_path: Path, **changes: object) -> None:
    options: dict[str, object] = {
        "families": ["step"],
        "bits": [6],
        "tables": [],
        "samplers": ["random"],
        "seeds": 1,
        "trials": 11,
        "workers": 1,
        "ask": False,
        "out": tmp_path / "out",
        "say": lambda _: None,
    }
    race_samplers(**{**options, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"families": ["smoth"]}, "no family 'smoth'; did you mean smooth"),
        ({"samplers": ["tpe"]}, "no sampler 'tpe'"),
        ({"bits": [35]}, "35 bits are no whole layers"),
        ({"tables": [Path("nowhere.jsonl")]}, "no table nowhere.jsonl"),
    ],
)
def test_wrong_use_is_one_sentence_and_leaves_nothing(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(WrongUse, match=message):
        bench(tmp_path, **changes)
    assert not (tmp_path / "out").exists()


def test_the_command_writes_numbers_and_a_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench"
    table = table_file(tmp_path / "t.jsonl", seeds=3)
    command = [
        "bench",
        "samplers",
        "--family",
        "step",
        "--bits",
        "6",
        "--sampler",
        "random",
        "--seeds",
        "2",
        "--trials",
        "12",
    ]
    command += ["--no-ask", "--out", str(out), "--table", str(table), "--workers", "2"]
    assert run_command(command) == 0
    shown = capsys.readouterr().out
    assert "step/6" in shown
    numbers = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    assert {score["sampler"] for score in numbers["scores"]} == {PR, "random"}
    assert "plotly" in (out / "samplers.html").read_text(encoding="utf-8").lower()
    assert run_command([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == numbers
