"""Item vectors at ``[SEQ]`` and as keys of their blocks, users as the mean of their previous items: information flow."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from dasearch.data import SequenceBatch
from dasearch.models import darec as darec_module
from dasearch.models.darec import DARec, ItemIDs
from tests.conftest import seeded, toy_rows
from tests.models.test_darec import ITEMS, PARALLEL, SERIAL, build, loud

LENGTHS = ((3, 2, 4), (3, 1))
READINGS: list[dict[str, Any]] = [
    {"item_ids": "embedding", "user_key": "none"},
    {"item_ids": "collaborative", "user_key": "none"},
    {"item_key": True, "user_key": "none"},
    {"item_key": True, "user_key": "trained"},
    {"user_key": "history"},
    {"item_ids": "embedding", "item_key": True, "user_key": "history", "collab_proj": "per_layer"},
    {"item_key": True, "user_key": "history", "variation": "both-causal"},
]


def batch_of(items: list[list[int]], histories: list[list[int]]) -> SequenceBatch:
    rows = toy_rows(LENGTHS)
    ends = torch.tensor([[sum(row[: k + 1]) - 1 if k < len(row) else 0 for k in range(3)] for row in LENGTHS])
    targets = torch.full((2, 3), -1)
    filled = [torch.nn.functional.pad(torch.tensor(x), (0, 5 - len(x)), value=-1) for x in histories]
    return SequenceBatch(
        rows, torch.tensor([0, 3]), torch.tensor(items), ends, targets, torch.stack(filled), targets[:, 0]
    )


BATCH = batch_of([[1, 2, 3], [4, 5, -1]], [[7, 8, 1, 2, 3], [4, 5]])


def states(model: DARec, batch: SequenceBatch) -> Tensor:
    """Of every ``[SEQ]``."""
    with torch.no_grad():
        return model.sequence_hidden(batch, model.layout_tensor(PARALLEL))


def model_of(family: str = "opt", **reading: Any) -> DARec:
    model = loud(build(family, **reading))
    for index, (_, parameter) in enumerate(model.trainable()):
        if parameter.shape[0] in (ITEMS, 5) or parameter.dim() == 2:
            parameter.data.add_(torch.randn(parameter.shape, generator=seeded(index)) * 0.3)
    return model


@pytest.mark.parametrize("reading", READINGS, ids=str)
def test_states_are_causal(family: str, reading: dict[str, Any]) -> None:
    """Later items of the row do not change earlier states; the item itself and previous items do."""
    model = model_of(family, **reading)
    before = states(model, BATCH)
    later = batch_of([[1, 2, 6], [4, 5, -1]], [[7, 8, 1, 2, 6], [4, 5]])
    found = states(model, later)
    torch.testing.assert_close(found[0, :2], before[0, :2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1, :2], before[1, :2], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found[0, 2], before[0, 2], atol=1e-4)
    earlier = states(model, batch_of([[1, 6, 3], [4, 5, -1]], [[7, 8, 1, 6, 3], [4, 5]]))
    torch.testing.assert_close(earlier[0, :1], before[0, :1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(earlier[0, 1:], before[0, 1:], atol=1e-4)


@pytest.mark.parametrize("reading", READINGS, ids=str)
def test_attention_implementations_agree(family: str, reading: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """By item blocks, as for long rows, and by masks over the whole row; read at the last items, and everywhere."""
    model = model_of(family, **reading)
    expected = states(model, BATCH)
    monkeypatch.setattr(darec_module, "SQUARE_TOKENS", 0)
    keys, keyed = model.row_keys(BATCH)
    with torch.no_grad():
        whole = model.hidden(
            BATCH.rows, model.layout_tensor(PARALLEL), keys, keyed=keyed, marks=model._marks(BATCH, None)
        )
    for row, count in ((0, 3), (1, 2)):
        torch.testing.assert_close(whole[row, BATCH.ends[row, :count]], expected[row, :count], atol=1e-5, rtol=1e-5)


def test_users_mean_is_of_all_known_items() -> None:
    model = build(user_key="history", collaborative="mf")
    assert model.cf is not None
    vectors = model.cf.item_vectors(torch.arange(ITEMS))
    found = model._means_so_far(BATCH)
    torch.testing.assert_close(found[0, 0], vectors[[7, 8, 1]].mean(0))
    torch.testing.assert_close(found[0, 2], vectors[[7, 8, 1, 2, 3]].mean(0))
    torch.testing.assert_close(found[1, :2], torch.stack([vectors[4], vectors[[4, 5]].mean(0)]))
    short = dataclasses.replace(BATCH, histories=BATCH.histories[:, :2])  # rows may hold more than histories do
    torch.testing.assert_close(model._means_so_far(short)[0, 0], vectors[1])


def test_only_its_own_item_attends_to_a_key() -> None:
    model = model_of(item_key=True, user_key="none")
    keys, keyed = model.row_keys(BATCH)
    assert keys is not None
    assert keyed is not None
    assert keyed.tolist() == [[0, 1, 2], [0, 1, -2]]
    assert keys.shape == (1, 2, 3, model.backbone.width)


def test_default_settings_add_nothing() -> None:
    """The printed model draws the same weights from the same seed as before."""
    names = {name for name, _ in build().trainable()}
    for reading in ({"item_ids": ItemIDs.EMBEDDING}, {"head_states": "whitened"}, {"item_key": True}):
        model = build(**reading)
        shared = [name for name, _ in model.trainable() if name in names]
        plain = dict(build().named_parameters())
        assert all(torch.equal(dict(model.named_parameters())[name], plain[name]) for name in shared)


@pytest.mark.parametrize("width", [4, 64])  # below and above the model's
def test_item_ids_are_initialised_from_an_encoder(width: int) -> None:
    """In another basis, at the scale of token embeddings; similarities are preserved if the model is wide enough."""
    model = build(item_ids="encoder", user_key="none")
    assert (*model.item_ids.weight.shape,) == (ITEMS, model.backbone.width)
    vectors = torch.randn(ITEMS, width, generator=seeded(4))
    model.start_item_ids(vectors, seeded(5))
    found = model.item_ids.weight
    assert float(found.detach().std()) == pytest.approx(model.backbone.token_sd, rel=1e-5)
    if width < model.backbone.width:
        cosines = torch.nn.functional.cosine_similarity
        torch.testing.assert_close(cosines(found[:1], found), cosines(vectors[:1], vectors), atol=1e-5, rtol=1e-5)
    again = build(item_ids="encoder", user_key="none")
    again.start_item_ids(vectors, seeded(5))
    assert torch.equal(again.item_ids.weight, found)


def test_whitened_states_reach_the_head() -> None:
    model = build(head_states="whitened")
    model.state_mean.normal_(generator=seeded(1))
    model.state_map.normal_(generator=seeded(2))
    hidden = torch.randn(4, model.backbone.width, generator=seeded(3))
    expected = model.head((hidden - model.state_mean) @ model.state_map.T)
    torch.testing.assert_close(model.logits(hidden), expected)
    kept = torch.zeros_like(hidden)
    torch.testing.assert_close(model.logits(hidden, kept), model.head.bias.expand(4, -1))


@pytest.mark.parametrize("head_states", ["plain", "whitened"])
def test_a_text_part_of_the_head_is_a_part_of_its_rows(head_states: str) -> None:
    model = build(head_states=head_states, head_text=True)
    width = model.backbone.width
    texts = torch.randn(ITEMS, width, generator=seeded(1))
    hidden = torch.randn(4, width, generator=seeded(2))
    model.start_head(torch.ones(ITEMS), texts)
    torch.testing.assert_close(model.logits(hidden), model.head(hidden))  # nothing is added before training
    model.text_map.weight.data.normal_(generator=seeded(3))
    centred = texts - texts.mean(0)
    rows = model.head.weight + centred / centred.norm(dim=1, keepdim=True) @ model.text_map.weight
    torch.testing.assert_close(model.logits(hidden), hidden @ rows.T + model.head.bias)
    assert "text_map.weight" in dict(model.trainable())
    assert not model.item_texts.requires_grad


def test_scores_depend_on_layouts_still() -> None:
    model = model_of(**READINGS[5])
    with torch.no_grad():
        serial = model.sequence_hidden(BATCH, model.layout_tensor(SERIAL))
    assert not torch.allclose(serial, states(model, BATCH), atol=1e-3)


def test_training_does_not_synchronise_with_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether users are known is only checked in serving: a step that synchronises cannot be captured as a CUDA graph."""

    def asked(*_: object) -> Tensor:
        raise AssertionError

    monkeypatch.setattr(darec_module, "own_or_estimated", asked)
    model = build()
    assert states(model, BATCH).shape == (2, 3, model.backbone.width)
    with pytest.raises(AssertionError):
        model.states(BATCH, model.layout_tensor(SERIAL))
