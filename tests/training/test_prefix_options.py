"""Every option of IDLE-Adapter and RA-Rec affects training: it changes the result of a fixed seed."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch

from dasearch.config import Precision
from dasearch.errors import StudyError
from dasearch.layout import Layout
from dasearch.models.idle import IDLEAdapter, TextHead
from dasearch.training.loop import Trained, train
from dasearch.training.preparation import build_model
from tests.training.studies import materials, merged, small_settings

MANY_INTERESTS = {"encoder": {"name": "comirec-sa"}}
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *(("idle", {"model": {"refine": value}}) for value in ("none", "scalar_gate", "concat")),
    ("idle", {"model": {"head": "dot_item_text"}}),
    ("idle", {"model": {"head_bias": "zero"}}),
    ("idle", {"model": {"head_rows": "normal"}}),
    ("idle", {"losses": {"mmd": 3.0}}),
    ("idle", {"encoder": {"pool": "last_item"}}),
    ("idle", {"encoder": {"pool": "as_tokens"}, "model": {"refine": "concat"}}),
    ("idle", {"encoder": {"interests": 3}}),
    *((kind, {"model": {"variation": "frozen"}}) for kind in ("idle", "ra-rec")),
    *((kind, {"model": {"encoder_scores": 0.5}}) for kind in ("idle", "ra-rec")),
    *((kind, {"model": {"prefix": 5}}) for kind in ("idle", "ra-rec")),
    *((kind, {"model": {"projection": "shared"}}) for kind in ("idle", "ra-rec")),
    *((kind, {"model": {"parallel_reduce": "sum"}}) for kind in ("idle", "ra-rec")),
    *((kind, {"model": {"pool": pool}}) for kind in ("idle", "ra-rec") for pool in ("mean", "first")),
    *((kind, {"model": {"attn_scale": "model"}}) for kind in ("idle", "ra-rec")),
    *((kind, {"examples": {"overlap": True}}) for kind in ("idle", "ra-rec")),
    *((kind, {"examples": {"diverse": 0.5}}) for kind in ("idle", "ra-rec")),
    ("ra-rec", {"model": {"instruction": False}}),
    ("ra-rec", {"model": {"item_bias": "log-frequency"}}),
    ("ra-rec", {"losses": {"align": 0.0}}),
    ("ra-rec", {"losses": {"temperature": 1.0}}),
    ("ra-rec", {"losses": {"l2": 0.1}}),
    ("ra-rec", {"losses": {"negatives": 3}}),
]


def run(kind: str, changes: dict[str, Any], **recipe: Any) -> Trained:
    settings = small_settings(**merged({"model": {"kind": kind}, **MANY_INTERESTS}, changes))
    wanted = settings.trial.model_copy(update={"epochs": 1, **recipe})
    return train(settings, materials(settings), Layout.parse("PSS-SPS"), wanted)


@lru_cache
def default(kind: str) -> Trained:
    return run(kind, {})


@pytest.mark.parametrize(("kind", "changes"), OPTIONS, ids=lambda value: str(value))
def test_the_option_matters(kind: str, changes: dict[str, Any]) -> None:
    found = run(kind, changes).progress.epochs[0]
    assert (found.losses, found.metrics) != (
        default(kind).progress.epochs[0].losses,
        default(kind).progress.epochs[0].metrics,
    )


@pytest.mark.parametrize("kind", ["idle", "ra-rec"])
def test_bfloat16(kind: str) -> None:
    found = run(kind, {}, precision=Precision.BFLOAT16).progress.epochs[0]
    whole = default(kind).progress.epochs[0]
    assert found.losses != whole.losses
    assert found.losses["total"] == pytest.approx(whole.losses["total"], rel=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", ["idle", "ra-rec"])
def test_trains_on_a_gpu_in_bfloat16(kind: str) -> None:
    found = run(kind, {"device": "cuda"}).progress.epochs[0]
    assert found.losses["total"] == pytest.approx(default(kind).progress.epochs[0].losses["total"], rel=0.05)


def test_a_head_over_text_vectors() -> None:
    settings = small_settings(model={"kind": "idle", "head": "dot_item_text"})
    ready = materials(settings)
    model = build_model(settings, ready, seed=0)
    assert isinstance(model, IDLEAdapter)
    assert isinstance(model.head, TextHead)
    torch.testing.assert_close(model.head.texts.norm(dim=1), torch.ones(40))
    shares = (ready.item_counts + 1) / (ready.item_counts + 1).sum()
    torch.testing.assert_close(model.head.bias.exp(), shares)
    state = torch.randn(16)
    by_hand = torch.stack([(model.head.map.weight @ state) @ text for text in model.head.texts]) + model.head.bias
    torch.testing.assert_close(model.head(state[None])[0], by_hand)
    assert "head.texts" not in dict(model.trainable())


@pytest.mark.parametrize("kind", ["darec", "idle", "ra-rec"])
@pytest.mark.parametrize("encoder", ["mf", "neumf"])
def test_an_encoder_of_no_products_adds_no_scores(kind: str, encoder: str) -> None:
    with pytest.raises(StudyError, match=r"model.encoder_scores needs an ID encoder that scores only by dot products"):
        small_settings(model={"kind": kind, "encoder_scores": 1.0}, encoder={"name": encoder})
