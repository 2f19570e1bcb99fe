"""What holds of every input: it is used, or refused in one sentence of ours; no other exception, no library's warning."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from dasearch.errors import DasearchError

NIGHTLY = 20  # times as many cases
TIMES = pytest.mark.parametrize("times", [1, pytest.param(NIGHTLY, marks=pytest.mark.nightly)], ids=["ci", "nightly"])
LONGEST = 1500  # letters of a sentence that still is one


def fuzz(check: Callable[..., bool], cases: int, **drawn: SearchStrategy[Any]) -> None:
    """Run a check, which says whether its case was used, on so many drawn ones, the same in each run.

    Some must be refused, or the cases would show nothing; of compressed files and single lines of JSON hardly one is used.
    """
    seen = set[bool]()
    limits = settings(
        max_examples=cases,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )

    @limits
    @given(st.fixed_dictionaries(drawn))
    def each(case: dict[str, Any]) -> None:
        seen.add(check(**case))

    each()
    assert False in seen


def used_or_refused(use: Callable[[], object]) -> bool:
    """Whether it was used. Fails on any exception but ours, on a sentence that is none, on a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            use()
        except DasearchError as error:
            require_sentence(str(error))
            return False
    return True


def require_sentence(text: str) -> None:
    assert text.strip(), "nothing is said"
    assert "Traceback" not in text
    assert len(text) <= LONGEST, text
    assert "set DASEARCH_DEBUG=1" not in text, text
