"""Search spaces: names, fixed and tied sites, hashes."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dasearch.errors import LayoutError, SearchSpaceError
from dasearch.layout import SITES, Choice, Layout
from dasearch.search_space import SearchSpace, SearchSpaceFile, load_search_space, space_differences
from tests.conftest import seeded

FILE = {"name": "t", "model": "darec", "sites": ["causal", "context", "recommendation"]}


def space(layers: int = 2, **changes: object) -> SearchSpace:
    return SearchSpace(SearchSpaceFile.model_validate({**FILE, **changes}), layers)


def test_shipped_space() -> None:
    darec = load_search_space("darec", backbone_layers=12)
    assert darec.size == 2**36
    assert darec.names[:4] == ("layer01.causal", "layer01.context", "layer01.recommendation", "layer02.causal")
    assert load_search_space("darec", backbone_layers=12, replace_every=3).size == 2**12
    assert load_search_space("search_spaces/darec.yaml", backbone_layers=12) == darec


@given(st.lists(st.booleans(), min_size=6, max_size=6))
def test_encode_and_decode_invert_each_other(bits: list[bool]) -> None:
    layout = Layout.from_bits(bits, sites=3)
    assert space().decode(space().encode(layout)) == layout


def test_fixed_and_equal_bits() -> None:
    held = space(layers=3, fixed={"layer01.*": "serial"}, equal=["*.context"])
    assert held.free == ("layer02.causal", "layer02.recommendation", "layer03.causal", "layer03.recommendation")
    assert held.decode(dict.fromkeys(held.free, "parallel")) == Layout.parse("SSS-PSP-PSP")
    joined = space(layers=2, equal=["*.causal"])
    assert joined.free == (
        "layer01.causal",
        "layer01.context",
        "layer01.recommendation",
        "layer02.context",
        "layer02.recommendation",
    )
    assert joined.decode(dict.fromkeys(joined.free, "parallel")) == Layout.all_parallel(2)
    with pytest.raises(LayoutError, match=r"outside the search space: layer02\.causal must be serial"):
        joined.encode(Layout.parse("SSS-PSS"))
    assert joined.nearest(Layout.parse("SSS-PSS")) == Layout.parse("SSS-SSS")


def test_overlapping_equal_patterns_are_merged() -> None:
    joined = space(layers=2, equal=["*.causal", "layer02.*"])
    assert set(joined.free) == {"layer01.causal", "layer01.context", "layer01.recommendation"}
    assert joined.decode(
        {"layer01.causal": "parallel", "layer01.context": "serial", "layer01.recommendation": "serial"}
    ) == Layout.parse("PSS-PPP")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fixed": {"layer9.*": "serial"}}, "no site matches 'layer9"),
        ({"equal": ["*.casual"]}, "no site matches"),
        (
            {"fixed": {"layer01.causal": "serial", "layer02.causal": "parallel"}, "equal": ["*.causal"]},
            "different choices",
        ),
    ],
)
def test_invalid_spaces(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SearchSpaceError, match=message):
        space(**changes)


def test_hash_is_stable_and_sees_every_key() -> None:
    assert space().hash == SearchSpace(SearchSpaceFile.model_validate(dict(reversed(FILE.items()))), 2).hash
    changed = [
        space(3),
        space(equal=["*.causal"]),
        space(fixed={"layer01.causal": "serial"}),
        space(4, replace_every=2),
    ]
    assert len({space().hash, *(s.hash for s in changed)}) == 5
    assert space().hash == "67f0b8589fef1ab5"


def test_difference_names_the_key() -> None:
    text = space_differences(space().record(), space(3, fixed={"layer01.causal": "serial"}).record())
    assert "backbone_layers: 2 -> 3" in text
    assert "fixed: {} -> {'layer01.causal': 'serial'}" in text


def test_unknown_name_and_bad_files(tmp_path: Path) -> None:
    with pytest.raises(SearchSpaceError, match="no search space 'dare'; did you mean darec"):
        load_search_space("dare", backbone_layers=2)
    file = tmp_path / "s.yaml"
    file.write_text("name: x\nmodel: darec\nsites: [a]\nlayres: 3\n")
    with pytest.raises(SearchSpaceError, match=r"s.yaml: layres: Extra inputs"):
        load_search_space(str(file), backbone_layers=2)
    file.write_text("a: [")
    with pytest.raises(SearchSpaceError, match="is not YAML"):
        load_search_space(str(file), backbone_layers=2)


def test_sites_are_the_models() -> None:
    with pytest.raises(
        ValidationError, match=r"darec has the sites \[causal, context, recommendation\]; name them all"
    ):
        space(sites=["causal", "context"])


@pytest.mark.parametrize(("name", "free"), [("idle", 12), ("idle-strict", 8), ("ra-rec", 12), ("ra-rec-strict", 8)])
def test_shipped_spaces_of_the_other_models(name: str, free: int) -> None:
    found = load_search_space(name, backbone_layers=4)
    assert len(found.free) == free
    assert found.sites == SITES[found.file.model]
    assert str(found.all_serial) == "SSS-SSS-SSS-SSS"


def test_a_choice_listed_twice_is_rejected() -> None:
    with pytest.raises(ValidationError, match=r"\[serial, serial\] lists a choice twice"):
        space(choices=["serial", "serial"])
    assert space(choices=["parallel", "serial"]).size == space().size


NARROW = {"narrow": {"like": "serial", "letter": "s", "width": 16}}


def test_choices_by_site() -> None:
    lists = {
        "causal": ["none", "serial"],
        "context": ["parallel", "none", "narrow"],
        "recommendation": ["serial", "parallel"],
    }
    found = space(choices=lists, define=NARROW)
    assert found.size == (2 * 3 * 2) ** 2
    assert [choice.name for choice in found.choices["layer02.context"]] == ["parallel", "none", "narrow"]
    layout = found.parse("NsP-SPS")
    assert found.decode(found.encode(layout)) == found.decode_codes(found.codes(layout)) == layout
    assert found.codes(layout) == (0, 2, 1, 1, 0, 0)
    assert str(found.all_serial) == "SsS-SsS"  # the nearest to serial at a site without it
    assert found.from_record(found.record()) == found
    assert {found.random(seeded(seed)) for seed in range(40)} <= {
        found.nearest(found.random(seeded(s))) for s in range(40)
    }
    with pytest.raises(LayoutError, match=r"layer01.causal is parallel, not one of none, serial"):
        found.encode(Layout.parse("PPS-SPS"))


THIN = {"thin": {"like": "lora", "letter": "t", "width": 4}}
LORA_LISTS = {"causal": ["serial", "lora", "thin"], "context": ["lora", "none"], "recommendation": ["serial", "none"]}


def test_lora_with_its_own_rank() -> None:
    found = space(choices=LORA_LISTS, define=THIN)
    assert found.file.has_lora
    assert not space().file.has_lora
    layout = found.parse("tLS-LLN")
    assert layout.flat[0] == Choice("thin", "t", width=4, lora=True)
    assert found.decode(found.encode(layout)) == layout
    assert str(found.all_serial) == "SLS-SLS"  # the context site has no adapter: LoRA is nearer than nothing
    with pytest.raises(LayoutError, match="'thin' is LoRA, which changes queries and values"):
        space(choices=LORA_LISTS, define={"thin": {**THIN["thin"], "join": "sum"}})


def test_e4s_rec_has_lora_at_its_attention() -> None:
    found = load_search_space("e4s-rec-lora", backbone_layers=2)
    assert found.size == (4 * 3) ** 2
    record = {**found.file.model_dump(), "choices": ["serial", "lora"]}
    with pytest.raises(
        ValueError, match="ffn has no choice 'lora': LoRA changes queries and values, which attention alone has"
    ):
        SearchSpaceFile.model_validate(record)


def test_the_shipped_space_with_lora() -> None:
    found = load_search_space("darec-lora", backbone_layers=4)
    assert found.size == (4 * 4 * 3) ** 4
    assert str(found.all_serial) == "SSS-SSS-SSS-SSS"
    assert found.nearest(Layout.parse("LLN-LLN-LLN-LLN")) == Layout.parse("LLN-LLN-LLN-LLN")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"choices": ["serial", "sereal"]}, "there is no choice 'sereal'; did you mean serial"),
        ({"choices": ["serial"]}, "has 1 choices; a site takes 2 to 6"),
        ({"choices": {"causal": ["serial", "none"]}}, r"choices lists \[causal\]; list those of \[causal, context"),
        ({"define": {"serial": {"like": "none", "letter": "Z"}}}, "define redefines the shipped choice 'serial'"),
        ({"define": {"odd": {"like": "sereal", "letter": "Z"}}}, "no shipped choice 'sereal'; did you mean serial"),
        (
            {"define": {"odd": {"like": "serial", "letter": "S", "width": 4}}, "choices": ["serial", "odd"]},
            "serial and odd share the letter S",
        ),
        ({"model": "idle", "sites": list(SITES["idle"]), "choices": ["serial", "none"]}, "idle has no choice 'none'"),
        (
            {"model": "ra-rec", "sites": list(SITES["ra-rec"]), "choices": ["serial", "lora"]},
            "ra-rec has no choice 'lora'",
        ),
        (
            {"choices": ["serial", "lora"]},
            "recommendation has no choice 'lora': LoRA changes queries and values, which causal and context alone have",
        ),
        (
            {"choices": {**LORA_LISTS, "recommendation": ["serial", "thin"]}, "define": THIN},
            "recommendation has no choice 'thin': LoRA",
        ),
    ],
)
def test_invalid_choices(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        space(**changes)


def test_fixed_and_equal_know_the_sites_choices() -> None:
    lists = {"causal": ["none", "serial"], "context": ["parallel", "none"], "recommendation": ["serial", "parallel"]}
    with pytest.raises(
        SearchSpaceError, match=r"fixed: layer01.causal has no choice 'parallel'; it takes none, serial"
    ):
        space(choices=lists, fixed={"layer01.*": "parallel"})
    with pytest.raises(SearchSpaceError, match=r"equal: 'layer01.\*' ties sites with different lists of choices"):
        space(choices=lists, equal=["layer01.*"])


def test_the_random_control_of_older_studies_is_unchanged() -> None:
    """Uniform over the paper's two choices, drawn as before other choices were supported."""
    assert space().random(seeded(3)) == Layout.random(2, generator=seeded(3))


@pytest.mark.parametrize(("name", "choices"), [("darec-none", 3), ("darec-wide", 5)])
def test_shipped_spaces_of_more_choices(name: str, choices: int) -> None:
    found = load_search_space(name, backbone_layers=4)
    assert found.size == choices**12
    assert found.nearest(Layout.all_parallel(4)).z == (1,) * 12
    assert str(found.all_serial) == "SSS-SSS-SSS-SSS"
