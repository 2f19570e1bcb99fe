"""Costs of layouts: counts on a model with any settings, site by site."""

from __future__ import annotations

import json

import pytest

from dasearch.layout import NONE, SERIAL, Choice, Layout
from dasearch.models.cost import Cost, SiteCosts, cost_of_choices, layout_costs
from dasearch.search_space import SearchSpace, SearchSpaceFile
from tests.conftest import LAYERS, WIDTH, seeded
from tests.models.test_darec import build

SITES = ["causal", "context", "recommendation"]
THIN = {"thin": {"like": "serial", "letter": "t", "width": 2}}


def space(**changes: object) -> SearchSpace:
    content = {
        "name": "toy",
        "model": "darec",
        "sites": SITES,
        "choices": ["serial", "none", "parallel", "thin"],
        "define": THIN,
    }
    return SearchSpace(SearchSpaceFile.model_validate({**content, **changes}), LAYERS)


def drawn(one: SearchSpace, n: int = 40) -> list[Layout]:
    generator = seeded(7)
    return [one.all_serial, *(one.random(generator) for _ in range(n))]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"collab_proj": "per_layer", "user_key": "history", "item_key": True, "item_ids": "embedding"},
        {"user_key": "none", "collaborative": "mf", "cf_mode": "frozen"},
        {"item_ids": "collaborative", "rec_adapter_site": "router_output", "variation": "both-causal"},
    ],
)
@pytest.mark.parametrize("family", ["opt", "llama"])
def test_every_layout_costs_what_its_model_counts(family: str, settings: dict[str, object]) -> None:
    model, one = build(family, **settings), space()
    costs = layout_costs(model, one, item_tokens=3)
    for layout in drawn(one):
        assert costs[Cost.PARAMETERS].of(layout) == model.count_trained(layout)
        assert costs[Cost.MADDS].of(layout) == model.multiply_adds(layout, item_tokens=3)


def test_one_adapted_layer_costs_what_its_model_counts() -> None:
    one = SearchSpace(space().file.model_copy(update={"replace_every": LAYERS}), LAYERS)
    model = build(every=LAYERS)
    costs = layout_costs(model, one, item_tokens=3)[Cost.PARAMETERS]
    for layout in drawn(one):
        assert costs.of(layout) == model.count_trained(layout)


def test_multiply_adds_by_hand() -> None:
    model, tokens = build(), 5
    adapter, router = 2 * WIDTH * 4, 4 * WIDTH
    branch = WIDTH * WIDTH + 2 * WIDTH * (tokens + 2)
    rest = [[NONE] * 3] * (LAYERS - 1)

    def first_layer(*choices: Choice) -> int:
        return model.multiply_adds(Layout(tuple(map(tuple, [choices, *rest]))), item_tokens=tokens)

    assert first_layer(NONE, NONE, NONE) == 0
    assert first_layer(SERIAL, NONE, NONE) == first_layer(NONE, NONE, SERIAL) == adapter
    assert first_layer(NONE, SERIAL, NONE) == adapter + router + branch
    thin = Choice("thin", "t", width=2)
    assert first_layer(thin, thin, NONE) == adapter + router + branch


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"fixed": {"*.context": "none"}},
        {"fixed": {"layer01.context": "serial"}, "equal": ["*.causal"]},
        {"equal": ["*.context", "layer01.*"]},
        {
            "choices": {
                "causal": ["none", "thin"],
                "context": ["thin", "none"],
                "recommendation": ["parallel", "serial"],
            }
        },
    ],
)
def test_the_cost_of_free_choices_is_that_of_their_layout(changes: dict[str, object]) -> None:
    one = space(**changes)
    costs = layout_costs(build(), one, item_tokens=3)[Cost.PARAMETERS]
    of = cost_of_choices(one, costs)
    for layout in drawn(one):
        assert of(one.encode(layout)) == costs.of(layout)


def test_costs_are_json_values() -> None:
    costs = layout_costs(build(), space(), item_tokens=3)[Cost.PARAMETERS]
    assert SiteCosts(**json.loads(json.dumps(costs.record()))) == costs
