"""Whether any layout is worth having: planted gains are seen, flat landscapes are called flat, the winner must be proven."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from dasearch.bayes import Choices, Surrogate
from dasearch.layout import Layout
from dasearch.search.confirmation import ConfirmedLayout, recommended
from dasearch.search.domain import Domain, Point
from dasearch.search.events import Listener
from dasearch.search.loop import flat_from
from dasearch.search.study import Study
from dasearch.search.worth import UNLIKELY, chance_of_gain
from dasearch.search_space import load_search_space
from dasearch.training.metrics import Interval
from tests.conftest import seeded
from tests.search.test_batches_of_trials import stubbed
from tests.training.studies import small_study


def domain_of(layers: int) -> Domain:
    return Domain(load_search_space("darec", backbone_layers=layers), {})


def observed(domain: Domain, count: int, gain: float, noise: float, seed: int) -> dict[Point, float]:
    """Scores about .1: a relative gain for a parallel first adapter, and noise."""
    generator = seeded(seed)
    found = {}
    while len(found) < count:
        layout = Layout.random(domain.space.layers, 3, generator=generator)
        luck = float(torch.randn((), generator=generator)) * noise
        found[Point(layout)] = 0.1 * (1 + gain * layout.z[0] + luck)
    return found


@pytest.mark.parametrize("layers", [2, 4, 8])
def test_a_planted_gain_is_likely_and_flat_noise_is_not(layers: int) -> None:
    domain = domain_of(layers)
    for seed in range(3):
        gained = observed(domain, 20, 0.10, 0.01, seed)
        flat = observed(domain, 20, 0.0, 0.002, seed)
        assert chance_of_gain(domain, gained, margin=0.02, seed=0) > 0.9
        assert chance_of_gain(domain, flat, margin=0.02, seed=0) < UNLIKELY
        assert chance_of_gain(domain, flat, margin=0.0, seed=0) > 0.9


def test_chances_repeat_to_the_last_bit() -> None:
    domain = domain_of(4)
    signals = observed(domain, 16, 0.03, 0.02, 0)
    assert len({chance_of_gain(domain, signals, margin=0.02, seed=3) for _ in range(3)}) == 1


def test_draws_have_the_posterior() -> None:
    codes = torch.tensor(list(itertools.product(range(2), repeat=4)))
    values = codes.double() @ torch.tensor([1.0, -0.5, 0.2, 0.0]).double()
    surrogate = Surrogate.fit(codes[::2], values[::2], Choices.binary(4))
    drawn = surrogate.draws(codes, 20_000, seeded())
    expected = surrogate.posterior(codes)
    torch.testing.assert_close(drawn.mean(0), expected.mean, atol=0.02, rtol=0)
    torch.testing.assert_close(drawn.std(0), expected.sd, atol=0.02, rtol=0.05)


def standing(letters: str, mean: float, low: float | None) -> ConfirmedLayout:
    layout = Layout.parse(letters)
    gain = None if low is None else Interval(mean - 0.1, low, 2 * mean - low)
    return ConfirmedLayout(layout, "candidate", Interval(mean, mean, mean), gain, 3, gain)


def test_all_serial_stands_until_a_gain_is_proven() -> None:
    serial, lucky, proven = standing("SSS", 0.1, None), standing("PSS", 0.13, -0.01), standing("SPS", 0.12, 0.01)
    assert recommended([lucky, serial]) is serial
    assert recommended([serial, lucky]) is serial
    assert recommended([lucky, proven, serial]) is proven
    assert recommended([lucky]) is lucky


def slightly_apart(layout: Layout, seed: int) -> list[float]:
    """Scores that differ only by noise, by half a percent."""
    generator = seeded(sum(bit << place for place, bit in enumerate(layout.z)) + 100 * seed)
    value = 0.5 + 0.001 * float(torch.randn((), generator=generator))
    return [value, value]


def test_flat_searches_stop_and_go_on_when_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub, heard = stubbed(monkeypatch), Heard()
    stub.curve = slightly_apart
    changes = {"search": {"budget": 40, "batch": 2, "candidates": 1}}
    done = len(Study(small_study(tmp_path, **changes)).run(listener=heard, train=False).completed)
    assert flat_from(None, 6) <= done < 40
    (said,) = [line for line in heard.lines if line.startswith("flat")]
    assert said.startswith(f"flat after {done} of 40 trials: the chance that any layout beats all-serial by 2% is 0.")
    again = Study(small_study(tmp_path, **changes)).run(train=False)
    assert len(again.completed) == done
    changes["search"]["stop_when_flat"] = False
    assert len(Study(small_study(tmp_path, **changes)).run(train=False).completed) == 40


def test_where_layouts_matter_the_budget_is_spent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stubbed(monkeypatch)
    settings = small_study(tmp_path, search={"budget": 16, "batch": 4, "candidates": 1})
    assert len(Study(settings).run(train=False).completed) == 16


class Heard(Listener):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def says(self, line: str) -> None:
        self.lines.append(line)
