"""E4SRec in the training loop: stacked candidates, dropout, choices, rows without text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dasearch.data.rows import NO_ITEM
from dasearch.errors import StudyError
from dasearch.layout import Choice, Layout
from dasearch.training.loop import train_together
from dasearch.training.preparation import build_model
from dasearch.training.recommender import load, save_recommender
from dasearch.training.stack import Candidate
from tests.conftest import seeded, toy_dataset
from tests.training.studies import materials, small_settings
from tests.training.test_stack import assert_as_alone

NARROW = Choice("narrow", "n", width=2)
LAYOUTS = (Layout.parse("SP-PS"), Layout.parse("NA-Sn", (*Layout.parse("SPNA").choices, NARROW)), Layout.parse("PP-NN"))
VARIED: list[dict[str, Any]] = [
    {},
    {"dropout": 0.3},
    {"variation": "frozen"},
    {"parallel_reduce": "sum", "parallel_residual": False, "encoder_scores": 0.5},
]


@pytest.mark.parametrize("changes", VARIED, ids=json.dumps)
def test_stacked_candidates_equal_separate_ones(changes: dict[str, Any]) -> None:
    study = small_settings(model={"kind": "e4s-rec", **changes})
    candidates = [Candidate(layout, seed) for layout, seed in zip(LAYOUTS, (0, 0, 1), strict=True)]
    together = train_together(study, materials(study), candidates, study.trial, stacked=True)
    assert_as_alone(study, candidates, together)


def test_a_row_is_the_instruction_and_one_token_per_item() -> None:
    study = small_settings(model={"kind": "e4s-rec"})
    ready = materials(study)
    opening = len(ready.catalogue.row_format.opening)
    assert opening > 5
    batch = next(ready.method.plan(ready, 8).shuffled(8, seeded()))
    real = batch.items != NO_ITEM
    assert torch.equal(batch.rows.real.sum(1), opening + real.sum(1))
    assert torch.equal(batch.ends[real], (opening + torch.arange(batch.items.shape[1])).expand_as(real)[real])
    assert ready.text_vectors.std(dim=0).max() > 0  # the sentences are known where vectors of texts are asked for


def test_a_saved_model_recommends_as_before_it_was_saved(tmp_path: Path) -> None:
    study = small_settings(model={"kind": "e4s-rec"})
    (trained,) = train_together(study, materials(study), [Candidate(LAYOUTS[1])], study.trial)
    folder = save_recommender(tmp_path / "model", trained, study, materials(study), toy_dataset(60, 40))
    opened = load(folder, device="cpu")
    assert opened.layout == LAYOUTS[1]
    own, theirs = trained.model.active_tensors(LAYOUTS[1]), opened.model.active_tensors(LAYOUTS[1])
    assert own.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in own.items())
    assert len(opened.recommend(["item1", "item3"], k=4)) == 4


def test_it_needs_a_decoder_and_an_encoder_of_products() -> None:
    with pytest.raises(StudyError, match="scores only by dot products"):
        small_settings(model={"kind": "e4s-rec", "encoder_scores": 1.0}, encoder={"name": "neumf"})


def test_the_same_seed_gives_the_same_initial_weights() -> None:
    study = small_settings(model={"kind": "e4s-rec"})
    first, second = (build_model(study, materials(study), seed=3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
