"""Names of trainings: as databases and checkpoints of every revision have them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasearch.errors import StoreError
from dasearch.layout import Layout
from dasearch.search.runs import RunId, RunPhase

LAYOUT = Layout.parse("SPS-PPS")
VALUES = st.one_of(st.floats(allow_nan=False), st.integers(), st.text("ab/.'", max_size=8), st.booleans(), st.none())


@pytest.mark.parametrize(
    ("found", "name"),
    [
        (RunId.trial(LAYOUT, {}), "trial/SPS-PPS"),
        (RunId.trial(LAYOUT, {"trial.lr": 0.004, "cf.kind": "mf"}), "trial/SPS-PPS/trial.lr=0.004/cf.kind='mf'"),
        (RunId(RunPhase.CONFIRM, "SPS-PPS", 2), "confirm/2/SPS-PPS"),
        (RunId(RunPhase.FINAL, "SPS-PPS"), "final/SPS-PPS"),
        (RunId(RunPhase.FINAL, "SPS-PPS", 3), "final/SPS-PPS/3"),
        (RunId(RunPhase.FINAL, "darec-base", 1), "final/darec-base/1"),
        (RunId(RunPhase.SINGLE, "SPS-PPS", model="idle, no-prefix"), "train/idle, no-prefix/SPS-PPS"),
    ],
)
def test_names(found: RunId, name: str) -> None:
    assert str(found) == name
    assert RunId.parse(name) == found


@given(st.dictionaries(st.sampled_from(["trial.lr", "model.bottleneck", "cf.kind"]), VALUES))
def test_settings_come_back(values: dict[str, object]) -> None:
    found = RunId.trial(LAYOUT, values)
    assert RunId.parse(str(found)) == found


@pytest.mark.parametrize(
    "name", ["", "trial", "nothing/SPS", "confirm/SPS/1", "confirm/1", "final/SPS/x", "final/SPS/0", "final/"]
)
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(StoreError, match="is not the name of a training; names are trial/LAYOUT"):
        RunId.parse(name)
