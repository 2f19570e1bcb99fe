"""Planted optima against enumeration, tables against handwritten rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dasearch.bayes import Choices
from dasearch.bench.landscapes import FAMILIES, NOISE, SITES, Planted, Sparse, contrasts, read_table
from dasearch.errors import DasearchError
from tests.bayes.spaces import every, seeded


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("layers", "choices"), [(4, 2), (3, 3), (2, 5)])
@pytest.mark.parametrize("seed", range(3))
def test_optimum_mean_and_spread_by_enumeration(family: str, layers: int, choices: int, seed: int) -> None:
    landscape = FAMILIES[family](layers, seeded(seed), choices)
    sizes = [choices] * (3 * layers)
    assert list(landscape.sizes.values()) == sizes
    values = landscape.value(every(Choices(tuple(sizes))))
    assert landscape.optimum == pytest.approx(float(values.max()))
    assert float(values.mean()) == pytest.approx(0, abs=1e-9)
    assert landscape.spread == pytest.approx(float(values.std(correction=0)))


@pytest.mark.parametrize("family", ["within", "neighbours"])
@pytest.mark.parametrize("choices", [3, 4])
def test_the_optimum_of_a_deep_landscape_is_a_layout_s_value(family: str, choices: int) -> None:
    landscape = FAMILIES[family](7, seeded(4), choices)
    assert isinstance(landscape, Planted)
    states = every(Choices((choices,) * SITES))
    best = states  # the best first layers that end in each state
    for layer in range(1, 7):
        part = Planted(landscape.single[: layer + 1], landscape.within[: layer + 1], landscape.between[:layer])
        best = torch.stack(
            [longer[part.value(longer).argmax()] for state in states for longer in [follow(best, state)]]
        )
    assert float(landscape.value(best).max()) == pytest.approx(landscape.optimum)


def follow(prefixes: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    return torch.cat([prefixes, state.expand(len(prefixes), -1)], 1)


# family, its optimum, spread, and value at 36 bits that begin 0 1 1 0 1 0 0 1 ...: as they were when landscapes were of bits
FROZEN = {
    "independent": (23.322602313429684, 4.745290913437497, 8.765053198937402, 9.137365710536434),
    "smooth": (19.574804757214018, 4.234918126703289, -0.46679787975032405, -0.13452889288920017),
    "step": (33.34097058442157, 5.661943044770036, -11.62318404477097, -11.178951589062166),
    "within": (39.524544421126386, 8.064544875655383, -6.603328773957761, -5.970589704355951),
    "neighbours": (23.694394475331656, 3.6196846845136785, -0.4096196153042726, -0.12562145361694227),
    "sparse": (6.772322301632004, 2.565154228017045, -1.41349028841675, -1.2122299166727395),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_binary_landscapes_are_unchanged(family: str) -> None:
    landscape = FAMILIES[family](12, seeded(1))
    bits = torch.tensor([[bin(i).count("1") % 2 for i in range(36)]])  # Thue and Morse
    observed = landscape.observe(tuple(bits[0].tolist()), seeded(2))[-1]
    found = (landscape.optimum, landscape.spread, float(landscape.value(bits)[0]), observed)
    assert found == pytest.approx(FROZEN[family], rel=1e-12)


@pytest.mark.parametrize("choices", [3, 5])
def test_pairs_keep_their_share_of_the_variance(choices: int) -> None:
    def share(part: str, family: str, count: int) -> float:
        drawn = [FAMILIES[family](30, seeded(seed), count) for seed in range(100)]
        return sum(float(getattr(one, part).square().sum()) for one in drawn) / sum(one.spread**2 for one in drawn)

    for part, family in (("within", "within"), ("between", "neighbours"), ("pairs", "sparse")):
        assert share(part, family, choices) == pytest.approx(share(part, family, 2), abs=0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_observations_are_the_value_plus_noise_of_the_documented_size(family: str) -> None:
    landscape = FAMILIES[family](4, seeded(1))
    bits = (0, 1) * 6
    value = float(landscape.value(torch.tensor([bits]))[0])
    assert landscape.truth(bits) == pytest.approx(value / landscape.optimum)
    generator = seeded(2)
    drawn = torch.tensor([landscape.observe(bits, generator)[-1] for _ in range(2000)])
    assert float(drawn.mean()) == pytest.approx(value, abs=0.02 * landscape.spread)
    assert float(drawn.std()) == pytest.approx(NOISE * landscape.spread, rel=0.1)


def test_families_have_their_documented_structure() -> None:
    smooth, rough = FAMILIES["smooth"](30, seeded(0)), FAMILIES["independent"](30, seeded(0))
    turn = FAMILIES["step"](30, seeded(0)).single

    def change(single: torch.Tensor) -> float:
        return float(single.diff(dim=0).std() / single.std())

    assert change(smooth.single) < 0.3 < 1 < change(rough.single)
    assert ((turn.diff(dim=0) != 0).all(2).sum(0) == 1).all()
    few = FAMILIES["sparse"](30, seeded(0))
    assert isinstance(few, Sparse)
    bits = torch.zeros(2, 90)
    idle = next(i for i in range(90) if i not in few.active.tolist())
    bits[1, idle] = 1
    assert few.value(bits).diff() == 0


def test_each_site_changes_its_best_choice_once() -> None:
    landscape = FAMILIES["step"](12, seeded(3), 5)
    assert isinstance(landscape, Planted)
    best = (landscape.single @ contrasts(5).T).argmax(2)  # (layers, sites)
    assert ((best.diff(dim=0) != 0).sum(0) == 1).all()


def test_all_choices_are_drawn_alike() -> None:
    """Effects of choices have the same variance, and any two the same correlation, -1 over one less than their number."""
    effects = torch.cat([FAMILIES["independent"](30, seeded(seed), 5).single @ contrasts(5).T for seed in range(100)])  # type: ignore[union-attr]
    covariance = effects.flatten(0, 1).T.cov()
    assert covariance == pytest.approx(torch.full((5, 5), -1.0).fill_diagonal_(4.0), abs=0.15)


def table_file(path: Path, *, seeds: int = 2, missing: int = 0, letters: tuple[str, str] | None = None) -> Path:
    """Two layers of one site; the header says their letters only where they are given."""
    header = {"names": ["layer01.a", "layer02.a"]} | ({"letters": letters} if letters else {})
    first, second = letters or ("SP", "SP")
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
        for i, layout in enumerate(f"{a}-{b}" for a in first for b in second)
    ]
    lines = [json.dumps(line) for line in (header, *rows[: len(rows) - missing])]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_table_shows_one_seed_per_layout_and_its_truth_is_the_mean(tmp_path: Path) -> None:
    table = read_table(table_file(tmp_path / "t.jsonl"), seed=3)
    assert table.layouts == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert table.truth((1, 1)) == 1
    means = [15.0, 16.15, 17.3, 18.45]
    assert table.truth((0, 0)) == pytest.approx((means[0] - 16.725) / (means[3] - 16.725))
    for bits, mean in zip(table.layouts, means, strict=True):
        first, best, value = table.observe(bits, seeded())
        assert first == 0
        assert best == pytest.approx(value)
        assert value == pytest.approx(mean, abs=0.11)  # the seeds' mean level is subtracted
        assert table.observe(bits, seeded(9)) == [first, best, value]
    drawn = {tuple(read_table(tmp_path / "t.jsonl", seed=s).drawn.tolist()) for s in range(20)}
    assert len(drawn) > 5


def test_a_table_of_more_choices_uses_the_letters_of_each_site(tmp_path: Path) -> None:
    table = read_table(table_file(tmp_path / "t.jsonl", letters=("SPN", "NS")))
    assert table.sizes == {"layer01.a": 3, "layer02.a": 2}
    assert table.layouts == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    means = [15 + 1.15 * i for i in range(6)]  # layouts were written in this order, S-N first
    middle = sum(means) / 6
    for codes, mean in zip(table.layouts, means, strict=True):
        assert table.truth(codes) == pytest.approx((mean - middle) / (means[-1] - middle))
        assert table.observe(codes, seeded())[-1] == pytest.approx(mean, abs=0.15)
    with pytest.raises(DasearchError, match="no seed with every layout"):
        read_table(table_file(tmp_path / "u.jsonl", letters=("SPN", "NS"), seeds=1, missing=1))


def test_a_layout_that_the_header_does_not_allow_is_named(tmp_path: Path) -> None:
    path = table_file(tmp_path / "t.jsonl", letters=("SPN", "SPN"))
    path.write_text(path.read_text(encoding="utf-8").replace('"SPN", "SPN"', '"SPN", "SP"'), encoding="utf-8")
    with pytest.raises(DasearchError, match=r"has a layout S-N, and its first line lists SPN, SP"):
        read_table(path)


def test_incomplete_seeds_are_dropped(tmp_path: Path) -> None:
    assert read_table(table_file(tmp_path / "a.jsonl", missing=1)).outputs["MRR"].shape == (4, 1)
    with pytest.raises(DasearchError, match="no seed with every layout"):
        read_table(table_file(tmp_path / "b.jsonl", seeds=1, missing=1))
