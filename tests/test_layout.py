"""Layouts as values."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dasearch.errors import LayoutError
from dasearch.layout import Difference, Layout, replaced_layers, site_names

layouts = st.integers(1, 6).flatmap(
    lambda layers: st.integers(1, 4).flatmap(
        lambda sites: st.lists(st.integers(0, 1), min_size=layers * sites, max_size=layers * sites).map(
            lambda bits: Layout.from_bits(bits, sites=sites)
        )
    )
)


@given(layouts)
def test_parse_and_str_invert_each_other(layout: Layout) -> None:
    assert Layout.parse(str(layout)) == layout
    assert Layout.parse(f"  {str(layout).lower()} ") == layout
    assert Layout.from_bits(layout.flat, sites=layout.sites) == layout
    assert torch.equal(layout.tensor().flatten(), torch.tensor(layout.flat, dtype=torch.float32))


@given(layouts, st.data())
def test_distance_counts_flips(layout: Layout, data: st.DataObject) -> None:
    flips = data.draw(st.sets(st.integers(0, len(layout.flat) - 1)))
    other = Layout.from_bits([b ^ (i in flips) for i, b in enumerate(layout.flat)], sites=layout.sites)
    assert layout.distance(other) == other.distance(layout) == len(flips)
    assert {d.layer * layout.sites + d.site for d in layout.diff(other)} == flips


def test_text_form() -> None:
    layout = Layout.parse("SPS-PPS")
    assert layout.bits == ((0, 1, 0), (1, 1, 0))
    assert (layout.layers, layout.sites) == (2, 3)
    assert str(Layout.all_serial(2)) == "SSS-SSS"
    assert str(Layout.all_parallel(1, 2)) == "PP"
    assert Layout.parse("SPS").diff(Layout.parse("SSS")) == (Difference(0, 1, "parallel", "serial"),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least one layer"),
        ("SPX", "'SPX' has 'X'"),
        ("SP-SPS", "same number of sites"),
        ("SP--SP", "same number of sites"),
    ],
)
def test_what_is_no_layout(text: str, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        Layout.parse(text)


def test_a_layout_of_the_wrong_length_names_one_that_fits() -> None:
    with pytest.raises(
        LayoutError,
        match="the layout SSS has 1 layers of 3 sites and the model has 2 of 3; give a layout such as SSS-SSS",
    ):
        Layout.parse("SSS").require(2, 3)


def test_random_layouts_follow_their_generator() -> None:
    drawn = [Layout.random(4, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_replaced_layers_and_names() -> None:
    assert replaced_layers(12, 3) == (2, 5, 8, 11)
    assert site_names((0, 2), ("a", "b")) == ("layer01.a", "layer01.b", "layer03.a", "layer03.b")
    with pytest.raises(LayoutError, match="choose a divisor of 12"):
        replaced_layers(12, 5)
