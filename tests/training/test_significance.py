"""Leads and p values against closed forms, and the winner's curse of many comparisons."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from dasearch.training.significance import holm, paired_lead, paired_p
from tests.conftest import seeded

RNG = np.random.default_rng(0)
USERS = RNG.random((1, 400))


def test_a_lead_is_the_mean_difference_and_its_interval_that_of_users() -> None:
    """With one seed the bootstrap is the ordinary one, near the normal interval of paired differences."""
    gain = RNG.normal(0.1, 0.5, (1, 400))
    found = paired_lead(USERS + gain, USERS, generator=seeded())
    assert found.mean == pytest.approx(gain.mean())
    half = 1.96 * gain.std(ddof=1) / 20
    assert found.low == pytest.approx(gain.mean() - half, abs=0.2 * half)
    assert found.high == pytest.approx(gain.mean() + half, abs=0.2 * half)


def test_variance_between_seeds_widens_the_interval() -> None:
    """Every user gains the same, so that all uncertainty comes from the seeds."""
    lucky = np.array([[0.3], [0.0], [-0.3]]) + 0.01
    found = paired_lead(USERS + lucky, USERS, generator=seeded())
    assert found.mean == pytest.approx(0.01)
    assert found.low < -0.15
    assert found.high > 0.15
    steady = paired_lead(np.repeat(USERS + 0.01, 3, axis=0), USERS, generator=seeded())
    assert steady.high - steady.low == pytest.approx(0, abs=1e-12)


def test_pairing_by_seed_takes_out_what_seeds_share() -> None:
    luck = np.array([[0.3], [0.0], [-0.3]])
    found = paired_lead(USERS + luck + 0.01, USERS + luck, generator=seeded())
    assert found.low == pytest.approx(0.01)
    with pytest.raises(ValueError, match="3 seeds cannot be paired with 2"):
        paired_lead(USERS + luck, USERS + luck[:2], generator=seeded())


def test_p_is_that_of_the_paired_t_test() -> None:
    other = USERS + RNG.normal(0.02, 0.3, (3, 400))
    assert paired_p(other, USERS) == pytest.approx(stats.ttest_rel(other.mean(0), USERS[0]).pvalue)
    assert paired_p(USERS, USERS) == 1.0


def test_holm_by_hand() -> None:
    """Smallest times 4, next times 3, then never smaller than the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
