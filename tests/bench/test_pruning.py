"""``benchmarks/pruning.py``: its counts, against handwritten tables."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import optuna
import pytest
import torch
from optuna.pruners import MedianPruner

from benchmarks.pruning import NOTHING, Told, Tried, judged, learned, race, recommended, spent
from dasearch.bench.landscapes import read_table

NAMES = [f"layer{layer:02d}.{site}" for layer in (1, 2) for site in ("causal", "context")]
OUTPUTS = ("MRR", "Recall@10", "NDCG@10", "loss")
LAYOUTS = ["".join(letters) for letters in itertools.product("SP", repeat=4)]


def written(folder: Path, crossed: bool) -> Path:
    """Scores rise with the count of P; ``crossed``: SSSP is the best at its last epoch, and the worst before."""
    lines = [{"names": NAMES, "letters": ["SP"] * 4, "versions": {}}]
    for layout, seed in itertools.product(LAYOUTS, (1, 2)):
        late = crossed and layout == "SSSP"
        score = 0.2 if late else 0.1 + 0.01 * layout.count("P")
        early = 0.01 if late else score - 0.05
        curve = [early, early, score]
        lines.append({"layout": layout, "seed": seed, "best_epoch": 2, "seconds": 1.0} | dict.fromkeys(OUTPUTS, curve))
    path = folder / "small.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_without_a_pruner_nothing_is_saved(tmp_path: Path) -> None:
    found = race((written(tmp_path, crossed=False), 0, NOTHING, Told.NOTHING, 12))
    assert (found.saved, found.pruned_best, found.trials) == (0.0, False, 12)
    assert found.regret_of_trials == found.regret_of_epochs == pytest.approx(0.0)


def test_saved_epochs_fund_further_trials(tmp_path: Path) -> None:
    found = race((written(tmp_path, crossed=False), 0, "median", Told.NOTHING, 12))
    assert 0 < found.saved < 2 / 3
    assert 12 < found.trials <= len(LAYOUTS)
    assert not found.pruned_best


def test_the_best_layout_is_pruned_where_curves_cross(tmp_path: Path) -> None:
    """And then not recommended; the first five trials are whole, and where it is among them it is not pruned."""
    path = written(tmp_path, crossed=True)
    found = [race((path, seed, "median", Told.NOTHING, 16)) for seed in range(4)]
    pruned = [one for one in found if one.pruned_best]
    assert pruned
    assert all(one.regret_of_trials > 0 and one.regret_of_epochs > 0 for one in pruned)
    assert not any(race((path, seed, NOTHING, Told.NOTHING, 16)).pruned_best for seed in range(4))


def test_a_curve_below_the_median_is_cut() -> None:
    judge = optuna.create_study(direction="maximize", pruner=MedianPruner(n_startup_trials=2))
    good, better = [0.2, 0.3, 0.4], [0.3, 0.4, 0.5]
    assert [judged(judge, curve) for curve in (good, better)] == [good, better]
    assert judged(judge, [0.24, 0.9, 0.9]) == [0.24]  # the median is .25
    assert judged(judge, [0.26, 0.3, 0.9]) == [0.26, 0.3]  # then .35
    assert judged(judge, [0.26, 0.36, 0.0]) == [0.26, 0.36, 0.0]


def test_the_signal_of_a_pruned_curve() -> None:
    others = [[0.1, 0.2, 0.3], [0.2, 0.3, 0.7]]  # whole means .2 and .4; after one epoch +.1 and +.2
    assert learned([0.05], False, others, Told.NOTHING) is None
    assert learned([0.05], False, others, Told.PART) == pytest.approx(0.05)
    assert learned([0.05], False, others, Told.EXTRAPOLATED) == pytest.approx(0.05 + 0.15)
    assert learned([0.1, 0.2, 0.6], True, others, Told.NOTHING) == pytest.approx(0.3)


def test_a_pruned_layout_is_not_recommended(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, crossed=False))
    tried = [Tried(layout, [0.0], sum(layout) < 4, 0.1 + 0.01 * sum(layout)) for layout in table.layouts]
    assert spent(tried) == 16
    assert sum(recommended(tried, table)) == 3
    torch.testing.assert_close(table.truth((1, 1, 1, 1)), 1.0)
