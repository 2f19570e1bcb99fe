"""Variances by order and effects, against plain averages over all layouts."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dasearch.bench.anova import MORE, PAIRS, SINGLE, by_site, main_effects, pair_effects, variances
from dasearch.bench.landscapes import read_table
from tests.bayes.spaces import seeded
from tests.bench.test_landscapes import table_file

SIZES = (3, 2, 4)


def drawn(*sizes: int, seed: int = 0) -> Tensor:
    return torch.randn(*sizes, generator=seeded(seed), dtype=torch.float64)


def classical(means: Tensor) -> dict[str, float]:
    """Sums of squares of an unreplicated design, each over its number of layouts."""
    rest = means - means.mean()
    axes = range(means.ndim)
    single = {i: means.mean([j for j in axes if j != i], keepdim=True) - means.mean() for i in axes}
    pairs = {}
    for i, j in itertools.combinations(axes, 2):
        averages = means.mean([k for k in axes if k not in (i, j)], keepdim=True)
        pairs[i, j] = averages - means.mean() - single[i] - single[j]
    for part in (*single.values(), *pairs.values()):
        rest = rest - part
    squares = [sum(float(part.square().mean()) for part in parts.values()) for parts in (single, pairs)]
    return dict(zip((SINGLE, PAIRS, MORE), (*squares, float(rest.square().mean())), strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_variances_are_the_classical_sums_of_squares(seed: int) -> None:
    means = drawn(*SIZES, seed=seed)
    found = variances(means, 0.0)
    assert found == pytest.approx(classical(means))
    assert sum(found.values()) == pytest.approx(float(means.var(correction=0)))


def test_two_choices_give_walsh_coefficients() -> None:
    means = drawn(2, 2, 2, 2)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=4)), dtype=torch.float64)
    squares = {SINGLE: 0.0, PAIRS: 0.0, MORE: 0.0}
    for order, kind in ((1, SINGLE), (2, PAIRS), (3, MORE), (4, MORE)):
        for bits in itertools.combinations(range(4), order):
            squares[kind] += float((means.flatten() * signs[:, bits].prod(1)).mean()) ** 2
    assert variances(means, 0.0) == pytest.approx(squares)


def test_noise_is_subtracted_and_an_effect_s_sd_is_its_spread_under_noise() -> None:
    """For means of pure noise, the average variance is zero and effects vary by the reported sd."""
    one = torch.zeros(SIZES, dtype=torch.float64)
    one[1, 0, 3] = 30.0  # of every order, so that no share is cut at zero
    exact, draws = variances(one, 0.0), [one + 2 * drawn(*SIZES, seed=seed) for seed in range(800)]
    found = [variances(means, 4.0) for means in draws]
    for kind, expected in exact.items():
        assert torch.tensor([f[kind] for f in found]).mean().item() == pytest.approx(expected, abs=0.4)
    for effects in (main_effects, pair_effects):
        values = torch.tensor([[effect.value for effect in effects(means, 4.0)] for means in draws])
        said = torch.tensor([effect.sd for effect in effects(one, 4.0)])
        assert values.std(0) == pytest.approx(said, rel=0.1)


def test_effects_are_differences_of_averages() -> None:
    means = drawn(*SIZES, seed=5)
    main = {effect.choices: effect.value for effect in main_effects(means, 0.0)}
    assert list(main) == [((0, 1),), ((0, 2),), ((1, 1),), ((2, 1),), ((2, 2),), ((2, 3),)]
    assert main[(2, 3),] == pytest.approx(float((means[:, :, 3] - means[:, :, 0]).mean()))
    pairs = {effect.choices: effect.value for effect in pair_effects(means, 0.0)}
    assert len(pairs) == 2 * 1 + 2 * 3 + 1 * 3
    twice = means[2, :, 3] - means[0, :, 3] - means[2, :, 0] + means[0, :, 0]
    assert pairs[(0, 2), (2, 3)] == pytest.approx(float(twice.mean()))


def test_a_table_s_axes_are_its_sites(tmp_path: Path) -> None:
    table = read_table(table_file(tmp_path / "t.jsonl", letters=("SPN", "SP")))
    means = by_site(table)
    assert means.shape == (3, 2)
    assert all(float(means[codes]) == float(table.means[table.index[codes]]) for codes in table.layouts)
    assert [round(effect.value, 6) for effect in main_effects(means, 0.0)] == [2.3, 4.6, 1.15]  # 1.15 a layout
    assert math.isclose(variances(means, 0.0)[PAIRS], 0.0, abs_tol=1e-12)
