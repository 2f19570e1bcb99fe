"""Planted optima against enumeration, tables against rows written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dasearch.bayes import Choices
from dasearch.bench.landscapes import FAMILIES, NOISE, Sparse, read_table
from dasearch.errors import DasearchError
from tests.bayes.spaces import every, seeded


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(3))
def test_optimum_mean_and_spread_by_enumeration(family: str, seed: int) -> None:
    landscape = FAMILIES[family](4, seeded(seed))
    assert len(landscape.names) == 12
    values = landscape.value(every(Choices.binary(12)))
    assert landscape.optimum == pytest.approx(float(values.max()))
    assert float(values.mean()) == pytest.approx(0, abs=1e-9)
    assert landscape.spread == pytest.approx(float(values.std(correction=0)))


@pytest.mark.parametrize("family", FAMILIES)
def test_observations_are_the_value_and_noise_of_the_said_size(family: str) -> None:
    landscape = FAMILIES[family](4, seeded(1))
    bits = (0, 1) * 6
    value = float(landscape.value(torch.tensor([bits]))[0])
    assert landscape.truth(bits) == pytest.approx(value / landscape.optimum)
    generator = seeded(2)
    drawn = torch.tensor([landscape.observe(bits, generator)[-1] for _ in range(2000)])
    assert float(drawn.mean()) == pytest.approx(value, abs=0.02 * landscape.spread)
    assert float(drawn.std()) == pytest.approx(NOISE * landscape.spread, rel=0.1)


def test_families_differ_as_said() -> None:
    smooth, rough = FAMILIES["smooth"](30, seeded(0)), FAMILIES["independent"](30, seeded(0))
    turn = FAMILIES["step"](30, seeded(0)).single

    def change(single: torch.Tensor) -> float:
        return float(single.diff(dim=0).std() / single.std())

    assert change(smooth.single) < 0.3 < 1 < change(rough.single)
    assert ((turn.diff(dim=0) != 0).sum(0) == 1).all()
    few = FAMILIES["sparse"](30, seeded(0))
    assert isinstance(few, Sparse)
    bits = torch.zeros(2, 90)
    idle = next(i for i in range(90) if i not in few.active.tolist())
    bits[1, idle] = 1
    assert few.value(bits).diff() == 0


def table_file(path: Path, *, seeds: int = 2, missing: int = 0) -> Path:
    header = {"names": ["layer01.a", "layer02.a"]}
    rows = [
        {
            "layout": layout,
            "seed": seed,
            "best_epoch": 1,
            "MRR": [0.0, i + 10 * seed + i * seed / 10],
            "Recall@10": [0.0, 0.5],
            "NDCG@10": [0.0, 0.5],
            "loss": [2.0, 1.0],
        }
        for seed in range(1, seeds + 1)
        for i, layout in enumerate(("S-S", "S-P", "P-S", "P-P"))
    ]
    lines = [json.dumps(line) for line in (header, *rows[: len(rows) - missing])]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_table_shows_one_seed_a_layout_and_knows_the_mean(tmp_path: Path) -> None:
    table = read_table(table_file(tmp_path / "t.jsonl"), seed=3)
    assert table.layouts == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert table.truth((1, 1)) == 1
    means = [15.0, 16.15, 17.3, 18.45]
    assert table.truth((0, 0)) == pytest.approx((means[0] - 16.725) / (means[3] - 16.725))
    for bits, mean in zip(table.layouts, means, strict=True):
        first, best, value = table.observe(bits, seeded())
        assert first == 0
        assert best == pytest.approx(value)
        assert value == pytest.approx(mean, abs=0.11)  # the seeds' own level is taken off
        assert table.observe(bits, seeded(9)) == [first, best, value]
    drawn = {tuple(read_table(tmp_path / "t.jsonl", seed=s).drawn.tolist()) for s in range(20)}
    assert len(drawn) > 5


def test_seeds_that_lack_layouts_are_left_out(tmp_path: Path) -> None:
    assert read_table(table_file(tmp_path / "a.jsonl", missing=1)).outputs["MRR"].shape == (4, 1)
    with pytest.raises(DasearchError, match="no seed with every layout"):
        read_table(table_file(tmp_path / "b.jsonl", seeds=1, missing=1))
