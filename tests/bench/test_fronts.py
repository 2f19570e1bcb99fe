"""The landscapes of ``benchmarks/pareto.py``: their fronts against an enumeration written out."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

from benchmarks.pareto import SAMPLERS, Landscape, counted, planted, race, table
from dasearch.models.cost import Cost

LETTERS = {"S": "serial", "P": "parallel", "N": "none"}
NAMES = [f"layer{layer:02d}.{site}" for layer in (1, 2) for site in ("causal", "context", "recommendation")]


def area(landscape: Landscape, places: list[int]) -> float:
    """By the widths of all costs: at each, the best value that costs no more."""
    value, top = landscape.reference
    points = sorted((landscape.costs[i], float(landscape.truth[i])) for i in places)
    ends = [cost for cost, _ in points[1:]] + [top]
    found, best = 0.0, value
    for (cost, own), end in zip(points, ends, strict=True):
        best = max(best, own) if cost < top else best
        found += (best - value) * max(0.0, min(end, top) - min(cost, top))
    return found


def test_a_planted_front_is_that_of_all_its_layouts() -> None:
    landscape = planted(2, seed=3)
    every = list(range(3**6))
    drawn = torch.randint(3**6, (25,), generator=torch.Generator().manual_seed(0)).tolist()
    assert landscape.share(every) == pytest.approx(1.0)
    assert landscape.share(drawn) == pytest.approx(area(landscape, drawn) / area(landscape, every))
    params = {
        name: list(landscape.choices[name])[code]
        for name, code in zip(landscape.choices, (2, 0, 1, 1, 0, 2), strict=True)
    }
    assert landscape.place(params) == int("201102", 3)
    assert landscape.costs[landscape.place(params)] == landscape.cost(params)


def test_a_race_of_every_sampler_rises() -> None:
    landscape = planted(2, seed=1)
    for sampler in SAMPLERS:
        shares = race(landscape, sampler, seed=1, trials=4)
        assert shares == sorted(shares)
        assert 0 <= shares[0] <= shares[-1] <= 1


def test_a_table_of_all_layouts(tmp_path: Path) -> None:
    changes = ["backbone.tiny.layers=2", "space.name=darec-none"]
    header = {"study": "quickstart", "changes": changes, "names": NAMES, "letters": ["SPN"] * 6}
    rows = []
    for place, (letters, seed) in enumerate(itertools.product(itertools.product("SPN", repeat=6), (1, 2))):
        value = 0.1 + 0.001 * (place // 2)
        curve = [value / 2, value + 0.5 * (seed - 1)]  # the mean effect of a seed is subtracted
        layout = "".join(letters[:3]) + "-" + "".join(letters[3:])
        outputs = dict.fromkeys(("MRR", "Recall@10", "NDCG@10", "loss"), curve)
        rows.append({"layout": layout, "seed": seed, "best_epoch": 1, **outputs})
    path = tmp_path / "toy.jsonl"
    path.write_text("\n".join(json.dumps(one) for one in [header, *rows]) + "\n")
    landscape = table(path, 0, metric="NDCG@10", cost=Cost.PARAMETERS)
    assert landscape.choices == {name: list(LETTERS.values()) for name in NAMES}
    layout = "SSNSPN"
    place = landscape.place(dict(zip(NAMES, (LETTERS[letter] for letter in layout), strict=True)))
    *curve, value = landscape.observe(place, torch.Generator())
    assert value == pytest.approx(0.1 + 0.001 * int("002012", 3) + 0.25)
    assert curve[-1] == pytest.approx(value)
    assert float(landscape.truth[place]) == pytest.approx(value)
    space, costs = counted("quickstart", changes, Cost.PARAMETERS)
    assert landscape.costs[place] == costs.of(space.parse("SSN-SPN"))
    assert min(landscape.costs) == landscape.costs[-1]  # none everywhere


def test_costs_of_another_model_are_counted_too() -> None:
    space, costs = counted("e4s-rec", ["backbone.tiny.layers=2", "space.name=e4s-rec-none"], Cost.PARAMETERS)
    one = 2 * 64 * 32 + 64 + 32  # of an adapter
    assert costs.of(space.parse("SP-NN")) - costs.of(space.parse("NN-NN")) == 2 * one
