"""The wait policy and the number of threads; OpenMP's own view is read in a fresh process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dasearch import threads
from dasearch.threads import (
    PASSIVE,
    POLICY,
    WORK_OF_A_THREAD,
    SetBy,
    Waiting,
    cores,
    fitting,
    most_threads,
    using,
    wait_passively,
)

PASSIVELY = f"{POLICY}={PASSIVE}"


def fresh(code: str, **environment: str) -> str:
    """The output of a separate process without a preset wait policy."""
    inherited = {name: value for name, value in os.environ.items() if name not in threads.CHOSEN_BY}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=inherited | environment, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def test_passive_unless_the_user_chose() -> None:
    environment: dict[str, str] = {}
    assert wait_passively(environment, too_late=False) == Waiting(PASSIVELY, SetBy.DASEARCH)
    assert environment == {POLICY: PASSIVE}


@pytest.mark.parametrize("name", threads.CHOSEN_BY)
@pytest.mark.parametrize("too_late", [False, True])
def test_what_the_user_set_stays(name: str, too_late: bool) -> None:
    environment = {name: "7"}
    assert wait_passively(environment, too_late=too_late) == Waiting(f"{name}=7", SetBy.ENVIRONMENT)
    assert environment == {name: "7"}


def test_too_late_changes_nothing() -> None:
    environment: dict[str, str] = {}
    found = wait_passively(environment, too_late=True)
    assert (found.set_by, environment) == (SetBy.NOBODY, {})
    assert "import dasearch first, or set OMP_WAIT_POLICY=PASSIVE" in str(found)


@pytest.mark.parametrize("first", ["import dasearch", "import dasearch.cli", "from dasearch.bayes import PRSampler"])
def test_openmp_hears_it(first: str) -> None:
    """OpenMP prints what it understood when it is loaded."""
    found = fresh(f"{first}\nimport torch", OMP_DISPLAY_ENV="TRUE")
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in found


def test_a_fresh_process_says_who_set_it() -> None:
    say = "import dasearch.threads, os; print(dasearch.threads.WAITING.set_by, os.environ.get('OMP_WAIT_POLICY'))"
    assert fresh(say).split() == ["dasearch", "PASSIVE"]
    assert fresh(say, OMP_WAIT_POLICY="ACTIVE").strip() == "the environment ACTIVE"
    assert fresh(f"import torch; {say}").strip() == "nobody None"
    assert fresh("import dasearch, sys; print('torch' in sys.modules)").strip() == "False"


@given(st.integers(0, 10**10), st.integers(1, 256))
def test_threads_that_fit(work: int, most: int) -> None:
    found = fitting(work, most=most)
    assert 1 <= found <= most
    assert found in (most, max(1, work // WORK_OF_A_THREAD))
    assert fitting(work + 1, most=most) >= found
    assert fitting(work, most=most + 1) >= found


def test_small_work_has_one_thread_and_large_work_all() -> None:
    assert fitting(16 * 60 * 64, most=8) == 1  # a step of the quickstart
    assert fitting(16 * 500 * 576, most=8) == 8  # of SmolLM2


def test_no_more_than_torch_was_told() -> None:
    with using(1):
        assert most_threads() == 1
    with using(1000):
        assert most_threads() == cores()


def test_cores_are_those_of_the_affinity() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no affinity on this system")
    one = next(iter(os.sched_getaffinity(0)))
    assert (
        fresh(f"import os; os.sched_setaffinity(0, {{{one}}}); from dasearch.threads import cores; print(cores())")
        == "1\n"
    )


def test_threads_come_back() -> None:
    before = torch.get_num_threads()
    with using(before + 2):
        assert torch.get_num_threads() == before + 2
        with using(None):
            assert torch.get_num_threads() == min(cores(), before + 2)
    assert torch.get_num_threads() == before
    with pytest.raises(KeyError), using(before + 2):
        raise KeyError
    assert torch.get_num_threads() == before
