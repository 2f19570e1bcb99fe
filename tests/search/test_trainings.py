"""Confirmation and final trainings in batches: which train together, and that it changes nothing that is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dasearch.search import objective
from dasearch.search.store import Store, open_store
from dasearch.search.study import Study
from dasearch.search.trainings import batches
from tests.training.studies import small_study

SHORT = {
    "trial": {"epochs": 1},
    "final": {"epochs": 1},
    "comparison": {"encoders": [], "variations": ["llmrec"]},
}


def kept(store: Store) -> tuple[list[Any], list[float]]:
    """What the phases after the search keep, without its times, and the metrics apart."""
    confirmed, trained = store.confirmations("toy"), store.final_trainings("toy")
    metrics = [value for one in (*confirmed, *trained) for value in one.metrics.values()]
    rows = [(str(c.layout), c.role, c.seed) for c in confirmed], [(t.name, t.layout, t.seed) for t in trained]
    return [*rows, [(t.run, t.label, t.place, t.total) for t in store.later_trainings("toy")]], metrics


def test_batches_of_each_phase_keep_what_single_trainings_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together: list[list[tuple[str, int]]] = []
    original = objective.train_together

    def spy(settings: Any, materials: Any, candidates: Any, *args: Any, **options: Any) -> Any:
        names = [(settings.model.label, candidate.seed) for candidate in candidates]
        together.append(names)
        return original(settings, materials, candidates, *args, **options)

    found = []
    for batch in (3, 1):
        settings = small_study(tmp_path, output=str(tmp_path / str(batch)), search={"batch": batch}, **SHORT)
        monkeypatch.setattr(objective, "train_together", spy if batch > 1 else original)
        Study(settings).run()
        store = open_store(None, settings.output, create=False)
        found.append(kept(store))
        moments = {(t.began, t.ended) for t in store.later_trainings("toy")}
        store.close()
        assert len(moments) == (5 if batch > 1 else 12)
    (side_by_side, values), (alone, expected) = found
    assert side_by_side == alone
    assert values == pytest.approx(expected, abs=1e-3)
    seeds = [[seed for _, seed in names] for names in together]
    models = [{label for label, _ in names} for names in together]
    assert seeds == [[0, 0, 0], [0], [1, 1, 1], [2, 2, 2], [0, 0, 1], [1], [0, 1]]
    assert len(set().union(*models[:-1])) == 1
    assert models[-1] != models[0]


def test_parts_in_order() -> None:
    assert list(batches("abcdefg", 3)) == ["abc", "def", "g"]
    assert list(batches([], 3)) == []
