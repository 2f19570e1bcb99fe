"""What a sentence quotes of other libraries' errors."""

import pytest

from dasearch.errors import first_line


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
