"""The losses of IDLE-Adapter and RA-Rec, term by term, against independent computations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dasearch.config import StudySettings
from dasearch.data import LeaveOneOut, SequenceBatch
from dasearch.layout import Layout
from dasearch.models.base import RecommenderModel
from dasearch.models.idle import IDLEAdapter
from dasearch.models.prefix import frozen_layer_means
from dasearch.models.ra_rec import RARec, RARecSettings
from dasearch.training import with_encoder
from dasearch.training.losses import mmd
from dasearch.training.materials import StudyContext
from dasearch.training.preparation import build_model, prepare_study
from dasearch.training.ra_rec import bpr_of_drawn
from tests.conftest import seeded, toy_dataset
from tests.training.studies import materials, small_settings


def ready(kind: str, **changes: Any) -> tuple[StudySettings, StudyContext, RecommenderModel, SequenceBatch]:
    settings = small_settings(**{"model": {"kind": kind}, **changes})
    prepared = materials(settings)
    model = build_model(settings, prepared, seed=0)
    return settings, prepared, model, next(prepared.method.plan(prepared, 16).shuffled(16, seeded()))


def terms(kind: str, layout: str = "SSS-SSS", **changes: Any) -> dict[str, float]:
    _, prepared, model, batch = ready(kind, **changes)
    found = prepared.method.losses(model, batch, model.layout_tensor(Layout.parse(layout)), prepared, seeded())
    return {name: value.item() for name, value in found.items()}


def test_idle_predicts_the_next_item() -> None:
    _, _, model, batch = ready("idle")
    assert isinstance(model, IDLEAdapter)
    layout = model.layout_tensor(Layout.parse("SSS-SSS"))
    scores = model.head(model.states(batch, layout)).log_softmax(1)
    expected = -scores[torch.arange(16), batch.at_last(batch.targets)].mean()
    assert terms("idle")["next"] == pytest.approx(expected.item(), abs=1e-5)


def layer_mmds() -> list[float]:
    _, prepared, model, batch = ready("idle")
    assert isinstance(model, IDLEAdapter)
    prefixes = model.layer_prefixes(batch, model.layout_tensor(Layout.parse("SSS-SSS")))
    frozen = frozen_layer_means(prepared.catalogue.backbone, batch.rows, (0, 1))
    return [mmd(prefix.mean(1), frozen[:, k]).item() for k, prefix in enumerate(prefixes)]


@pytest.mark.parametrize(
    ("layout", "layers"), [("SSS-SSS", [0, 1]), ("SSP-SSS", [1]), ("SSS-SSP", [0]), ("SSP-SSP", [])]
)
def test_mmd_is_the_mean_over_aligned_layers(layout: str, layers: list[int]) -> None:
    each = layer_mmds()
    expected = sum(each[k] for k in layers) / max(len(layers), 1)
    assert terms("idle", layout)["mmd"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["idle", "ra-rec"])
def test_frozen_states_too_large_to_cache_are_recomputed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = terms(kind)
    settings = small_settings(model={"kind": kind})
    monkeypatch.setattr(with_encoder, "KEPT_BYTES", 0)
    dataset = toy_dataset(60, 40)
    prepared = prepare_study(settings, dataset, LeaveOneOut(dataset).development)
    assert prepared.method.frozen is None  # type: ignore[attr-defined]
    model = build_model(settings, prepared, seed=0)
    batch = next(prepared.method.plan(prepared, 16).shuffled(16, seeded()))
    found = prepared.method.losses(model, batch, model.layout_tensor(Layout.parse("SSS-SSS")), prepared, seeded())
    assert {name: value.item() for name, value in found.items()} == pytest.approx(kept, abs=1e-6)


def test_terms_without_weight_are_not_computed() -> None:
    assert set(terms("idle", losses={"mmd": 0})) == {"next"}
    assert set(terms("idle", model={"kind": "idle", "variation": "frozen"})) == {"next"}
    assert set(terms("ra-rec", losses={"align": 0, "l2": 0})) == {"bpr"}
    assert set(terms("ra-rec")) == {"bpr", "l2", "align"}


def test_a_last_batch_too_small_for_mmd_has_none() -> None:
    _, prepared, model, _ = ready("idle")
    small = next(prepared.method.plan(prepared, 15).shuffled(15, seeded()))
    layout = model.layout_tensor(Layout.parse("SSS-SSS"))
    assert set(prepared.method.losses(model, small, layout, prepared, seeded())) == {"next"}


def bpr_by_loops(
    scores: Tensor, items: list[int], positive: list[int], drawn: list[int], bought: set[tuple[int, int]]
) -> float:
    """Rendle et al. 2009, one triple at a time."""
    found = []
    for row, target in enumerate(positive):
        for other in drawn:
            if other != target and (row, other) not in bought:
                gap = scores[row, items.index(target)] - scores[row, items.index(other)]
                found.append(-torch.log(torch.sigmoid(gap)).item())
    return sum(found) / len(found)


def test_bpr_by_loops() -> None:
    items, positive, drawn = [2, 3, 5, 7, 8], [3, 8, 3], [7, 2, 3, 7]
    bought = {(0, 7), (2, 2)}
    scores = torch.randn(3, 5, generator=seeded())
    unbought = torch.tensor([[(row, other) not in bought for other in drawn] for row in range(3)])
    counted = unbought & (torch.tensor(drawn) != torch.tensor(positive)[:, None])
    own, others = (torch.searchsorted(torch.tensor(items), torch.tensor(part)) for part in (positive, drawn))
    found = bpr_of_drawn(scores[None], own[None], others[None], counted[None])
    assert found.item() == pytest.approx(bpr_by_loops(scores, items, positive, drawn, bought), abs=1e-6)
    none = torch.zeros(1, 3, 1, dtype=torch.bool)
    assert bpr_of_drawn(scores[None], own[None], others[None, :1], none).item() == 0.0


def test_ra_recs_score_is_the_product_of_two_towers() -> None:
    """Training compares the same scores that evaluation ranks."""
    _, prepared, model, batch = ready("ra-rec", model={"kind": "ra-rec", "item_bias": "log-frequency"})
    assert isinstance(model, RARec)
    layout = model.layout_tensor(Layout.parse("SPS-PSP"))
    rows = prepared.catalogue.item_rows
    with torch.no_grad():
        users = model.states(batch, layout)
        scores = model.scorer(rows, layout)(users)
        for item in (0, 7, 39):
            one = torch.tensor([item])
            alone = model.item_states(rows.select(one), one, layout)[0]
            expected = users @ alone / 4 + model.item_bias[item]
            torch.testing.assert_close(scores[:, item], expected, atol=1e-5, rtol=1e-5)


def test_l2_is_the_squared_norm() -> None:
    _, _, model, _ = ready("ra-rec")
    expected = sum(float((p.detach() ** 2).sum()) for _, p in model.trainable())
    assert terms("ra-rec")["l2"] == pytest.approx(expected, rel=1e-5)


def test_alignment_by_hand() -> None:
    """InfoNCE of each layer's visible tokens against the plain model's states, averaged over layers, both towers."""
    _, prepared, model, batch = ready("ra-rec")
    assert isinstance(model, RARec)
    positive = batch.at_last(batch.targets)
    items = torch.cat([positive, torch.randint(model.n_items, (16,), generator=seeded())]).unique()
    sides = (
        (model.user_prefixes(batch), frozen_layer_means(prepared.catalogue.backbone, batch.rows, (0, 1))),
        (
            model.item_prefixes(items),
            frozen_layer_means(prepared.catalogue.backbone, prepared.catalogue.item_rows.select(items), (0, 1)),
        ),
    )
    for layout, seen in (("SSS-SSS", (0, 0)), ("SSP-SSS", (3, 0))):  # 3 instruction tokens, hidden in the first layer
        total = 0.0
        for prefixes, frozen in sides:
            for k in range(2):
                first = F.normalize(prefixes[k][:, seen[k] :].mean(1), dim=1)
                similar = first @ F.normalize(frozen[:, k], dim=1).T / 0.1
                total += -similar.log_softmax(1).diagonal().mean().item() / 2
        assert terms("ra-rec", layout)["align"] == pytest.approx(total, abs=1e-4)


def test_concat_is_ra_recs_user_tower() -> None:
    """SPEC check 22: IDLE-Adapter with [C; p] reads what RA-Rec's user tower reads."""
    _, _, ours, batch = ready("idle", model={"kind": "idle", "refine": "concat"}, losses={"mmd": 0})
    assert isinstance(ours, IDLEAdapter)
    settings = RARecSettings(kind="ra-rec", prefix=3)  # type: ignore[arg-type]
    theirs = RARec(ours.backbone, settings, encoder=ours.encoder, n_items=ours.n_items, generator=seeded())
    theirs.user_tower.prefixes.load_state_dict(ours.prefixes.state_dict())
    for site in ("S", "P"):
        layout = Layout.parse(f"{site}SS-{site}SS")
        with torch.no_grad():
            first = ours.states(batch, ours.layout_tensor(layout))
            prefixes = theirs.user_prefixes(batch)
            second = theirs.tower_states(theirs.user_tower, batch.rows, prefixes, theirs.layout_tensor(layout))
        torch.testing.assert_close(first, second)
