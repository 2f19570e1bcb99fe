"""Races are reproducible, resume where they stopped, and are compared in pairs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import optuna
import pytest
import torch

from dasearch.bench.command import race_samplers
from dasearch.bench.samplers import (
    PR,
    SAMPLERS,
    Entry,
    OneFlip,
    Race,
    ask,
    ask_seconds,
    planned,
    play,
    race,
    random_codes,
    read_races,
    run,
    scores,
    space_of,
)
from dasearch.cli import run_command
from dasearch.errors import WrongUse
from tests.bench.test_landscapes import table_file


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("landscape", ["sparse/6", "within/6/3"])
def test_a_race_repeats_and_its_curve_never_falls(sampler: str, landscape: str) -> None:
    entry = Entry(landscape, sampler, 1, 12)
    first, again = race(entry), race(entry)
    assert first.curve == again.curve
    assert len(first.curve) == 12
    assert first.curve == sorted(first.curve)
    assert first.curve[-1] <= 1


def test_the_best_is_found_where_everything_is_tried(tmp_path: Path) -> None:
    path = table_file(tmp_path / "t.jsonl")
    assert race(Entry("table/t", PR, 0, 12, path)).curve[3:] == [1]  # a table of four layouts ends there
    path = table_file(tmp_path / "u.jsonl", letters=("SPN", "PN"))
    assert race(Entry("table/u", PR, 0, 12, path)).curve[5:] == [1]


# curves of 22 trials on within/36, seed 3, as they were when landscapes were of bits
FROZEN = {
    "TPE multivariate": [0.11063] * 5 + [0.70864] * 17,
    "1-flip": [0.16861] * 5 + [0.31168] * 8 + [0.33989] + [0.3455] + [0.3919] * 7,
    "genetic": [0.11063] * 5 + [0.70864] * 17,
}


@pytest.mark.parametrize("sampler", FROZEN)
def test_binary_races_are_unchanged(sampler: str) -> None:
    assert race(Entry("within/36", sampler, 3, 22)).curve == FROZEN[sampler]


def test_one_flip_makes_an_unevaluated_single_change() -> None:
    space = space_of({"a": 3, "b": 5, "c": 2})
    study = optuna.create_study(direction="maximize", sampler=OneFlip(seed=4, space=space))
    study.enqueue_trial({"a": 1, "b": 4, "c": 0})
    seen = [ask(study, space)]
    study.tell(seen[0].trial, 1.0)
    for _ in range(2 + 4 + 1):  # every single change of the first, which stays the best
        seen.append(ask(study, space))
        study.tell(seen[-1].trial, 0.0)
    changed = [sum(x != y for x, y in zip(one.codes, seen[0].codes, strict=True)) for one in seen[1:]]
    assert changed == [1] * 7
    assert len({one.codes for one in seen}) == 8


def test_random_codes_respect_each_site_s_choices_and_bits_are_unchanged() -> None:
    generator = torch.Generator().manual_seed(2)
    drawn = [random_codes(space_of({"a": 2, "b": 5, "c": 3}), generator) for _ in range(200)]
    assert [set(of_site) for of_site in zip(*drawn, strict=True)] == [{0, 1}, set(range(5)), {0, 1, 2}]
    bits = random_codes(space_of(dict.fromkeys(range(40), 2)), torch.Generator().manual_seed(7))  # type: ignore[arg-type]
    assert list(bits) == torch.randint(2, (40,), generator=torch.Generator().manual_seed(7)).tolist()


def test_landscapes_are_named_by_sites_and_choices() -> None:
    entries = planned(["step", "sparse"], [6, 36], [], ["random"], seeds=1, trials=11, choices=[2, 3])
    names = ["step/6", "step/6/3", "step/36", "step/36/3", "sparse/6", "sparse/6/3", "sparse/36", "sparse/36/3"]
    assert [entry.landscape for entry in entries] == names
    sizes = [list(entry.open().sizes.values()) for entry in entries[:4]]
    assert sizes == [[2] * 6, [3] * 6, [2] * 36, [3] * 36]
    assert {s.landscape for s in scores([Race(name, PR, 0, [0.5] * 10, 0.1) for name in names])} == {
        *names,
        "planted, pooled",
        "planted of 3 choices, pooled",
    }


def test_finished_races_are_not_repeated(tmp_path: Path) -> None:
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


SIX = [f"layer{layer:02d}.site{site}" for layer in (1, 2) for site in range(3)]


class Noted:
    """A landscape of six bits with random values that records the observed layouts."""

    def __init__(self) -> None:
        self.sizes = dict.fromkeys(SIX, 2)
        self.seen: list[tuple[int, ...]] = []

    def truth(self, bits: tuple[int, ...]) -> float:
        return sum(bits) / len(bits)

    def observe(self, bits: tuple[int, ...], generator: torch.Generator) -> list[float]:
        self.seen.append(bits)
        return torch.rand(3, generator=generator).tolist()  # a curve of two epochs, and the value


class Scripted(optuna.samplers.BaseSampler):
    """Proposes the numbers 0, 1, ... in bits, and records how many trials were complete at each."""

    def __init__(self) -> None:
        self.told: list[int] = []

    def infer_relative_search_space(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> dict:  # type: ignore[type-arg]
        self.told.append(len(study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))))
        return {}

    def sample_relative(self, *_: object) -> dict[str, int]:
        return {}

    def sample_independent(self, study: object, trial: optuna.trial.FrozenTrial, name: str, _: object) -> int:
        return trial.number >> SIX.index(name) & 1


def bits_of(number: int) -> tuple[int, ...]:
    return tuple(number >> bit & 1 for bit in range(6))


@pytest.mark.parametrize(("batch", "told"), [(1, range(7)), (3, [0, 0, 0, 3, 3, 3, 6]), (9, [0] * 7)])
def test_a_batch_is_asked_for_at_once_and_reported_in_order(batch: int, told: list[int]) -> None:
    sampler, landscape = Scripted(), Noted()
    study = optuna.create_study(direction="maximize", sampler=sampler)
    curve, asks = play(study, landscape, 7, torch.Generator().manual_seed(1), batch=batch)
    assert sampler.told == list(told)
    assert landscape.seen == [bits_of(number) for number in range(7)]
    assert curve == pytest.approx([0, 1 / 6, 1 / 6, 1 / 3, 1 / 3, 1 / 3, 1 / 3])
    assert len(asks) == 7
    drawn = torch.rand(7, 3, generator=torch.Generator().manual_seed(1))  # the noise follows the order of the trials
    assert [list(t.intermediate_values.values()) + t.values for t in study.trials] == drawn.tolist()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_batch_size_one_equals_optuna_s_optimize(sampler: str) -> None:
    """`optimize` asks and tells one trial after another; the race's curve is that of its trials."""
    entry = Entry("neighbours/6", sampler, 3, 12, batch=1)
    landscape, noise = entry.open(), torch.Generator().manual_seed(10_003)
    space = space_of(landscape.sizes)
    study = optuna.create_study(direction="maximize", sampler=SAMPLERS[sampler](3, space))
    curve: list[float] = []

    def objective(trial: optuna.Trial) -> float:
        bits = tuple(int(trial.suggest_categorical(name, d.choices)) for name, d in space.items())
        curve.append(max([landscape.truth(bits), *curve[-1:]]))
        return landscape.observe(bits, noise)[-1]

    study.optimize(objective, n_trials=12)
    assert race(entry).curve == [round(value, 5) for value in curve]


def test_batches_end_with_the_space_and_begin_alike() -> None:
    races = [race(Entry("neighbours/6", PR, 2, 64, batch=batch)) for batch in (1, 5)]
    assert [r.batch for r in races] == [1, 5]
    assert [len(r.curve) for r in races] == [64, 64]  # no layout twice, so all 64 are tried
    assert [r.curve[-1] for r in races] == [1, 1]
    assert races[0].curve[:2] == races[1].curve[:2]  # the initial design
    assert races[0].curve != races[1].curve


def test_races_of_an_earlier_bench_were_asked_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "races.jsonl"
    earlier = {"landscape": "step/6", "sampler": PR, "seed": 0, "curve": [0.5] * 11, "ask_seconds": 0.1}
    path.write_text(json.dumps(earlier) + "\n", encoding="utf-8")
    assert [r.batch for r in read_races(path)] == [1]
    entries = planned(["step"], [6], [], [PR], seeds=1, trials=11, batches=[1, 4])
    assert [r.batch for _, r in run(entries, path)] == [4]


def test_the_cost_of_a_batch_is_paired_by_seed() -> None:
    def line(sampler: str, batch: int, seed: int, value: float) -> Race:
        return Race("a/36", sampler, seed, [value] * 10, 0.1, batch)

    races = [
        *(line(PR, 1, seed, value) for seed, value in enumerate((0.9, 0.5, 0.1))),
        *(line(PR, 4, seed, value) for seed, value in enumerate((0.8, 0.5))),
        *(line("TPE", 1, seed, value) for seed, value in enumerate((0.6, 0.4))),
        *(line("TPE", 4, seed, value) for seed, value in enumerate((0.3, 0.5, 0.2))),
    ]
    found = {(s.sampler, s.batch): s for s in scores(races) if s.landscape == "a/36"}
    four = found[PR, 4]
    assert (four.mean, four.lead, four.lead_error, four.seeds) == (pytest.approx(0.65), 0, 0, 2)
    assert (four.cost, four.cost_error) == (pytest.approx(0.05), pytest.approx(0.05))
    other = found["TPE", 4]
    assert (other.lead, other.lead_error) == (pytest.approx(0.25), pytest.approx(0.25))  # over four at a time
    assert (other.cost, other.cost_error) == (pytest.approx(0.1), pytest.approx(0.2))
    assert (found[PR, 1].cost, found[PR, 1].seeds) == (0, 3)
    assert [s.label for s in (found[PR, 1], four)] == [PR, f"{PR}, 4 at a time"]


def test_asks_of_batches_and_of_single_trials_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dasearch.bench.samplers.ASK_SIZES", ((6, 5),))
    found = ask_seconds(["random"], [1, 4])
    assert list(found) == ["6/5"]
    assert list(found["6/5"]) == ["random", "random, 4 at a time"]
    assert all(seconds > 0 for seconds in found["6/5"].values())
    assert list(ask_seconds(["random"], choices=[2, 3])) == ["6/5", "6/3/5"]


def bench(tmp_path: Path, **changes: object) -> None:
    options: dict[str, object] = {
        "families": ["step"],
        "sites": [6],
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
        ({"samplers": ["tpee"]}, "no sampler 'tpee'"),
        ({"sites": [35]}, "35 sites are no whole number of layers"),
        ({"choices": [1]}, "has 2 to 8 choices; set --choices accordingly, not to 1"),
        ({"choices": [3, 9]}, "has 2 to 8 choices; set --choices accordingly, not to 9"),
        ({"tables": [Path("nowhere.jsonl")]}, "no table nowhere.jsonl"),
        ({"batches": [4, 0]}, "a batch of 0 is empty"),
    ],
)
def test_wrong_use_is_one_sentence_and_writes_nothing(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(WrongUse, match=message):
        bench(tmp_path, **changes)
    assert not (tmp_path / "out").exists()


def bench_command(options: str, out: Path, table: Path) -> list[str]:
    return ["bench", "samplers", *options.split(), "--no-ask", "--out", str(out), "--table", str(table)]


def test_the_command_writes_numbers_and_a_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench"
    table = table_file(tmp_path / "t.jsonl", seeds=3)
    options = "--family step --bits 6 --sampler random --seeds 2 --trials 12 --workers 2"
    command = bench_command(options, out, table)
    assert run_command(command) == 0
    shown = capsys.readouterr().out
    assert "step/6" in shown
    numbers = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    assert {score["sampler"] for score in numbers["scores"]} == {PR, "random"}
    assert "plotly" in (out / "samplers.html").read_text(encoding="utf-8").lower()
    assert run_command([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == numbers


def test_the_command_races_on_more_choices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench"
    table = table_file(tmp_path / "t.jsonl", letters=("SPN", "SPN"))
    options = "--family step --sites 6 --choices 2 --choices 3 --sampler random --seeds 2 --trials 11"
    assert run_command(bench_command(options, out, table)) == 0
    assert "step/6/3" in capsys.readouterr().out
    found = json.loads((out / "scores.json").read_text(encoding="utf-8"))["scores"]
    leads = {s["landscape"]: (s["lead"], s["lead_error"]) for s in found if s["sampler"] == "random"}
    assert list(leads) == ["step/6", "step/6/3", "planted, pooled", "planted of 3 choices, pooled"]
    assert leads["step/6/3"] == leads["planted of 3 choices, pooled"]
    assert leads["step/6/3"] != leads["step/6"]
    assert all(math.isfinite(error) for _, error in leads.values())


def test_the_command_compares_batches_with_one_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench"
    options = f"--family step --bits 6 --sampler {PR} --seeds 2 --trials 11"
    command = bench_command(options, out, table_file(tmp_path / "t.jsonl", seeds=3))
    assert run_command([*command, "--batch", "4,8"]) == 0
    assert "regret added" in capsys.readouterr().out
    numbers = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    pooled = [score for score in numbers["scores"] if score["landscape"] == "planted, pooled"]
    assert [(score["batch"], score["trials"], score["seeds"]) for score in pooled] == [
        (1, 10, 2),
        (4, 10, 2),
        (8, 10, 2),
    ]
    assert run_command([*command, "--batch", "four"]) == 2
    assert "'four' is not a list of whole numbers" in capsys.readouterr().err
