"""Layouts as values."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dasearch.errors import LayoutError
from dasearch.layout import (
    ACTIVE,
    CHOICES,
    JOINS,
    LORA,
    LOW_RANK,
    NONE,
    PARALLEL,
    PARALLEL_SUM,
    READS,
    SERIAL,
    UNITS,
    Choice,
    Depth,
    Difference,
    Join,
    Layout,
    map_to_depth,
    replaced_layers,
    site_names,
)

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
    assert Layout.from_bits(layout.z, sites=layout.sites) == Layout.of(layout.flat, sites=layout.sites) == layout
    assert torch.equal(layout.tensor()[..., READS].flatten(), torch.tensor(layout.z, dtype=torch.float32))


@given(layouts, st.data())
def test_distance_counts_flips(layout: Layout, data: st.DataObject) -> None:
    flips = data.draw(st.sets(st.integers(0, len(layout.z) - 1)))
    other = Layout.from_bits([b ^ (i in flips) for i, b in enumerate(layout.z)], sites=layout.sites)
    assert layout.distance(other) == other.distance(layout) == len(flips)
    assert {d.layer * layout.sites + d.site for d in layout.diff(other)} == flips


def test_text_form() -> None:
    layout = Layout.parse("SPS-PPS")
    assert layout.groups == ((SERIAL, PARALLEL, SERIAL), (PARALLEL, PARALLEL, SERIAL))
    assert (layout.layers, layout.sites) == (2, 3)
    assert str(Layout.all_serial(2)) == "SSS-SSS"
    assert str(Layout.all_parallel(1, 2)) == "PP"
    assert Layout.parse("SPS").diff(Layout.parse("SSS")) == (Difference(0, 1, "parallel", "serial"),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least one layer"),
        ("SPX", "written with S, P, N, A, L and -, as in SPS-PPS; 'SPX' has 'X'"),
        ("SP-SPS", "same number of sites"),
        ("SP--SP", "same number of sites"),
    ],
)
def test_invalid_layouts(text: str, message: str) -> None:
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


def depth(layers: int, every: int = 1) -> Depth:
    return Depth(replaced_layers(layers * every, every), layers * every)


@given(layouts, st.integers(1, 3), st.integers(1, 3), st.integers(1, 6))
def test_mapped_to_another_depth(layout: Layout, every: int, times: int, other: int) -> None:
    here = depth(layout.layers, every)
    assert map_to_depth(layout, here, here) == layout
    deeper = depth(layout.layers * times)
    there = map_to_depth(layout, depth(layout.layers), deeper)
    assert there.groups == tuple(group for group in layout.groups for _ in range(times))  # each layer becomes so many
    assert map_to_depth(there, deeper, depth(layout.layers)) == layout
    anywhere = map_to_depth(layout, here, depth(other))
    places = [layout.groups.index(group) for group in anywhere.groups]  # of layouts whose layers all differ
    assert len(set(layout.groups)) < layout.layers or places == sorted(places)
    assert set(anywhere.groups) <= set(layout.groups)


@pytest.mark.parametrize(
    ("text", "of", "to", "expected"),
    [
        ("PS-SP-SS-PP", depth(4), depth(2), "SP-PP"),  # of two equally near layers the deeper one
        ("PS-SP", depth(2, every=2), depth(4), "PS-PS-SP-SP"),  # layers 2 and 4 of 4 represent 1 and 3
        ("PS-SP-SS-PP", depth(4), depth(2, every=2), "SP-PP"),  # the same layers keep their choices
        ("PS-SP-SS", depth(3), depth(4), "PS-SP-SP-SS"),  # 1/8, 3/8, 5/8, 7/8 against 1/6, 3/6, 5/6
        ("PS-SP", depth(2), depth(1), "SP"),
    ],
)
def test_mapped_by_hand(text: str, of: Depth, to: Depth, expected: str) -> None:
    assert str(map_to_depth(Layout.parse(text), of, to)) == expected


def test_a_layout_that_does_not_match_its_depth_is_rejected() -> None:
    with pytest.raises(LayoutError, match=r"SPS has 1 layers of 3 sites and the model has 2 of 3"):
        map_to_depth(Layout.parse("SPS"), depth(2), depth(4))


def test_numbers_of_each_choice() -> None:
    numbers = Layout.parse("SPNA").tensor()[0]
    assert numbers[:, READS].tolist() == [0, 1, 0, 1]
    assert numbers[:, ACTIVE].tolist() == [1, 1, 0, 1]
    assert numbers[:, JOINS].tolist() == [0, 1, 0, 0]
    narrow = Choice("narrow", "n", width=16)
    widened = Layout(((narrow, SERIAL),)).tensor()[0]
    assert widened[:, UNITS].tolist() == [16, float("inf")]


def test_lora_is_a_number_of_its_own_where_a_layout_has_it() -> None:
    layout = Layout.parse("LNS")
    numbers = layout.tensor()[0]
    assert (layout.columns, numbers.shape) == (5, (3, 5))
    assert numbers[:, LORA].tolist() == [1, 0, 0]
    assert numbers[:, ACTIVE].tolist() == [0, 0, 1]  # of an adapter
    assert numbers[:, UNITS].tolist() == [float("inf")] * 3
    assert Layout.parse("SPN").columns == 3
    assert Layout.parse("SPN").tensor(columns=5)[0, :, LORA].tolist() == [0, 0, 0]


@pytest.mark.parametrize("more", [{"parallel": True}, {"join": Join.SUM}, {"active": False}])
def test_lora_joins_no_sublayer(more: dict[str, object]) -> None:
    with pytest.raises(LayoutError, match="'odd' is LoRA, which changes queries and values and joins no sublayer"):
        Choice("odd", "o", lora=True, **more)


def test_the_record_of_a_choice_without_lora_is_unchanged() -> None:
    assert set(SERIAL.record()) == {"name", "letter", "active", "parallel", "width", "join"}
    assert LOW_RANK.record()["lora"] is True


def test_letters_of_custom_choices() -> None:
    narrow = Choice("narrow", "s", width=16)
    layout = Layout.parse("sSN", [*CHOICES.values(), narrow])
    assert layout.flat == (narrow, SERIAL, NONE)
    assert str(layout) == "sSN"
    assert Layout.parse("snP").flat == (SERIAL, NONE, PARALLEL)  # lower case means the shipped ones elsewhere


@pytest.mark.parametrize(("letter", "width", "message"), [("-", None, "one of A to Z"), ("q", 0, "at least 1 unit")])
def test_invalid_choices(letter: str, width: int | None, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        Choice("odd", letter, width=width)


def test_a_missing_choice_has_a_nearest_one() -> None:
    narrow, wide = Choice("narrow", "s", width=16), Choice("wide", "w", width=64)
    assert PARALLEL_SUM.nearest([NONE, SERIAL, PARALLEL]) == PARALLEL
    assert SERIAL.nearest([NONE, narrow, wide]) == wide
    assert LOW_RANK.nearest([NONE, PARALLEL, SERIAL]) == SERIAL
    assert LOW_RANK.nearest([NONE, SERIAL, Choice("thin", "t", lora=True, width=2)]).name == "thin"
    assert Choice("own", "o", width=24).nearest([narrow, wide]) == narrow
    assert NONE.nearest([SERIAL, PARALLEL, NONE]) == NONE
