"""Deep layouts in a few letters."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasearch.errors import LayoutError
from dasearch.layout import Layout
from dasearch.short_layout import ID_DIGITS, WHOLE, WIDTH, is_layout_id, layout_id, layout_of_id, short_text

groups = st.text("SPN", min_size=3, max_size=3)
deep = st.one_of(
    st.lists(groups, min_size=4, max_size=30),
    st.lists(st.sampled_from(["SSS", "PPS"]), min_size=4, max_size=30),
    st.tuples(groups, st.lists(st.tuples(st.integers(0, 29), groups), max_size=3)).map(
        lambda drawn: [dict(drawn[1]).get(place, drawn[0]) for place in range(30)]
    ),
).map(lambda drawn: Layout.parse("-".join(drawn)))


def with_layer(layout: Layout, layer: int, group: str) -> Layout:
    """A layout with another group in one layer, counted from 1."""
    texts = str(layout).split("-")
    return Layout.parse("-".join([*texts[: layer - 1], group, *texts[layer:]]))


def read_back(text: str) -> str:
    """The full text of a short one that is not cut, by another way than it was written."""
    if " " in text:
        usual, *exceptions = text.split()
        group, count = usual.split("*")
        layers = [group] * int(count)
        for exception in exceptions:
            where, other = exception.split(":")
            first, last = (where.split("-") * 2)[:2]
            layers[int(first) - 1 : int(last)] = [other] * (int(last) - int(first) + 1)
        return "-".join(layers)
    runs = re.findall(r"([A-Z]+)(?:\*(\d+))?", text)
    return "-".join("-".join([group] * int(count or 1)) for group, count in runs)


@pytest.mark.parametrize("text", ["SPS-PPS", "SPS-PPS-SSP", "SPS-PPS-SSP-SSS-PPP"])
def test_a_layout_of_few_layers_stays_as_it_is(text: str) -> None:
    assert short_text(Layout.parse(text)) == text


@pytest.mark.parametrize("width", [1, 6, 11])
def test_three_layers_stay_whole_in_any_room(width: int) -> None:
    assert short_text(Layout.parse("SPS-PPS-SSP"), width) == "SPS-PPS-SSP"


def test_a_layout_near_to_one_of_equal_layers_says_where_it_differs() -> None:
    layout = with_layer(with_layer(Layout.all_serial(12), 2, "PSS"), 7, "SSP")
    assert short_text(layout) == f"{layout_id(layout)} SSS*12 2:PSS 7:SSP"


def test_runs_of_equal_layers_are_counted() -> None:
    layout = Layout.parse("-".join(["SSS"] * 10 + ["PPP"] * 20))
    assert short_text(layout) == f"{layout_id(layout)} SSS*10-PPP*20"
    assert short_text(Layout.all_parallel(30)).endswith(" PPP*30")


@given(deep)
def test_a_short_text_that_is_not_cut_is_read_back(layout: Layout) -> None:
    text = short_text(layout, 200)
    assert text == str(layout)
    for width in range(12, len(str(layout))):
        text = short_text(layout, width)
        if text == str(layout) or "…" in text or " " not in text:
            continue
        assert read_back(text.partition(" ")[2]) == str(layout)


@given(deep, st.integers(ID_DIGITS, 130))
def test_a_short_text_fits_and_names_its_layout(layout: Layout, width: int) -> None:
    text = short_text(layout, width)
    assert len(text) <= max(width, WHOLE)
    assert text == str(layout) or text.split()[0] == layout_id(layout)


@given(deep, st.integers(ID_DIGITS, 130))
def test_a_cut_text_ends_at_a_group(layout: Layout, width: int) -> None:
    text = short_text(layout, width)
    if "…" in text:
        assert re.search(r"[A-Z](\*\d+)?[- ]…$", text)


def test_an_id_is_the_same_everywhere() -> None:
    """SHA-256 of the text, from `printf SPS-PPS | sha256sum`."""
    assert layout_id(Layout.parse("SPS-PPS")) == "c0790f"


def test_an_id_or_its_beginning_finds_its_layout_among_others() -> None:
    layouts = [Layout.from_bits([number >> bit & 1 for bit in range(12)], sites=3) for number in range(50)]
    for layout in layouts:
        for text in (layout_id(layout), layout_id(layout).upper(), layout_id(layout, 64)):
            assert is_layout_id(text)
            assert layout_of_id(text, [*layouts, layout], source="study s") == layout


def test_an_id_of_none_or_of_several_is_refused() -> None:
    layouts = [Layout.from_bits([number >> bit & 1 for bit in range(12)], sites=3) for number in range(4096)]
    with pytest.raises(LayoutError, match="no layout of study s has the id 0000000000; see `dasearch status`"):
        layout_of_id("0000000000", layouts, source="study s")
    ids = sorted(layout_id(layout, 10) for layout in layouts)
    first, second = next((a, b) for a, b in pairwise(ids) if a[:4] == b[:4])
    with pytest.raises(
        LayoutError, match=f"the id {first[:4]} matches .* layouts of study s: .*{second}.*; give more digits"
    ):
        layout_of_id(first[:4], layouts, source="study s")


@pytest.mark.parametrize("text", ["SPS-PPS", "best", "all-serial", "bad", "ABC", "", "3f9a2g"])
def test_letters_and_names_of_layouts_are_no_ids(text: str) -> None:
    assert not is_layout_id(text)


def test_the_usual_room_holds_a_few_differences_at_thirty_layers() -> None:
    layout = with_layer(with_layer(Layout.all_serial(30), 12, "PSS"), 27, "SSP")
    assert "…" not in short_text(layout)
    assert len(short_text(layout)) <= WIDTH
