"""What a sentence quotes of other libraries' errors."""

import pytest

from dasearch.errors import first_line, suggestion_of_id


@pytest.mark.parametrize(
    ("error", "quoted"),
    [
        (KeyError("no such key"), "no such key"),
        (OSError(2, "No such file or directory", "here"), "[Errno 2] No such file or directory: 'here'"),
        (ValueError("  first\nsecond"), "first"),
        (ValueError(), "ValueError"),
        (KeyError(), "KeyError"),
        (ValueError("x" * 200), "x" * 160),
    ],
)
def test_one_line_as_it_stands(error: Exception, quoted: str) -> None:
    assert first_line(error) == quoted


@pytest.mark.parametrize(
    ("asked", "known"),
    [
        ("Red Shrt", "Red Shirt"),
        ("itm17", "item17"),
        ("coffee, grund", "coffee, ground"),
        ("MLIK 1L", "MILK 1L"),
        ("青い靴", "青い靴下"),
    ],
)
def test_a_word_among_ids_gets_a_suggestion(asked: str, known: str) -> None:
    assert suggestion_of_id(asked, [known, "9"]) == f"; did you mean {known}?"


@pytest.mark.parametrize(
    ("asked", "known"),
    [
        ("1127831", "1127832"),
        ("-1.5", "1.5"),
        ("B00ZHB1NGX", "B00ZHB1NGI"),
        ("d41d8cd98f00b204", "d41d8cd98f00b205"),
        ("3f2504e0-4f89-11d3", "3f2504e0-4f89-11d4"),
        ("AGKHLEWSOWHNMFQIJGBECAFINQA", "AGKHLEWSOWHNMFQIJGBECAFINQB"),
        ("qXzKabTp", "qXzKabTq"),
        ("item17", "item18"),
        ("Red Shirt 2", "Red Shirt 3"),
    ],
)
def test_what_a_machine_named_gets_none(asked: str, known: str) -> None:
    assert suggestion_of_id(asked, [known]) == ""
