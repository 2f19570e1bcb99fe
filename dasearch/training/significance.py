"""Significance of the difference between two rows of a results table, paired by users and seeds.

A difference between two trained models varies with the sample of users and with the randomness of each training. A bootstrap
over both at once accounts for both (with three seeds, only roughly for the second); the paired t test over users, the field's
usual one, accounts only for the first.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from dasearch.training.metrics import Interval

FloatArray = npt.NDArray[np.float64]
DRAWS = 1000


def paired_lead(ahead: FloatArray, behind: FloatArray, *, generator: torch.Generator, draws: int = DRAWS) -> Interval:
    """Mean of ``ahead - behind`` with its 95% percentile interval over users and seeds (Efron 1979; crossed resampling).

    Shapes: ``(seeds, users)`` each, or ``(1, users)`` for a method without seeds.
    """
    differences = _differences(ahead, behind)
    seeds, users = differences.shape
    means = np.empty(draws)
    for draw in range(draws):
        chosen = torch.randint(seeds, (seeds,), generator=generator).numpy()
        people = torch.randint(users, (users,), generator=generator).numpy()
        means[draw] = differences[chosen].mean(0)[people].mean()
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(differences.mean()), float(low), float(high))


def paired_p(ahead: FloatArray, behind: FloatArray) -> float:
    """Two-sided p value of the paired t test over users, on means over seeds; 1 for no difference. Shapes as `paired_lead`."""
    differences = _differences(ahead, behind).mean(0)
    if not differences.any():
        return 1.0
    from scipy import stats  # here, as it takes most of a second to import

    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def holm(p_values: list[float]) -> list[float]:
    """Holm's (1979) step-down correction of p values for multiple comparisons, in the given order."""
    order = np.argsort(p_values, kind="stable")
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order.tolist()):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def _differences(ahead: FloatArray, behind: FloatArray) -> FloatArray:
    if len(ahead) != len(behind) and 1 not in (len(ahead), len(behind)):
        raise ValueError(f"{len(ahead)} seeds cannot be paired with {len(behind)}")
    return ahead - behind
