"""Attention under masks, by hand and without forming them."""

import pytest
import torch

from dasearch.models.attention import (
    ItemBlocks,
    Keys,
    MaskMode,
    Projected,
    additive,
    attend,
    attend_causally,
    attend_under,
)
from dasearch.models.masks import causal_mask, context_mask
from tests.conftest import seeded, toy_rows

ROWS = toy_rows(((1, 3, 2, 4), (2, 2), (5,)))


def projected(tokens: int, batch: int = 3, seed: int = 0) -> Projected:
    return Projected(*(torch.randn(batch, 2, tokens, 4, generator=seeded(seed + i)) for i in range(3)))


def test_attend_by_hand() -> None:
    q, k, v = (torch.randn(1, 2, n, 4, generator=seeded(n)) for n in (3, 4, 4))
    mask = torch.tensor([[[1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1]]], dtype=torch.bool)
    weights = torch.softmax((q @ k.transpose(-1, -2)).masked_fill(~mask[:, None], -torch.inf), -1)
    expected = (weights @ v).transpose(1, 2).reshape(1, 3, 8)
    torch.testing.assert_close(attend(Projected(q, k, v), mask), expected)


def test_printed_mask_rows_do_not_sum_to_one() -> None:
    q, k = torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 4, 2)
    mask = torch.tensor([[[True, True, False, False]]])
    out = attend(Projected(q, k, torch.ones(1, 1, 4, 2)), mask, MaskMode.POST_SOFTMAX)
    torch.testing.assert_close(out, torch.full((1, 1, 2), 0.5))


def test_causal_without_a_mask_equals_the_mask() -> None:
    real = ROWS.segments >= 0
    parts = projected(10)
    expected = attend(parts, causal_mask(ROWS.segments)[:, :, 1:])
    torch.testing.assert_close(attend_causally(parts)[real], expected[real])


@pytest.mark.parametrize("with_key", [True, False])
def test_item_blocks_equal_the_context_mask(with_key: bool) -> None:
    real = ROWS.segments >= 0
    parts, key = projected(10), Keys(*projected(1, seed=9)[1:])
    mask = context_mask(ROWS.segments)
    expected = attend(parts.with_key(key), mask) if with_key else attend(parts, mask[:, :, 1:])
    found = ItemBlocks(ROWS.segments).attend(parts, key if with_key else None)
    torch.testing.assert_close(found[real], expected[real])
    assert found.isfinite().all()


def test_gradients_of_item_blocks_equal_the_context_masks() -> None:
    real = ROWS.segments >= 0
    gradients = []
    for blocks in (True, False):
        parts, key = projected(10), Keys(*projected(1, seed=9)[1:])
        leaves = [part.requires_grad_() for part in (*parts, key.keys, key.values)]
        mask = context_mask(ROWS.segments)
        out = ItemBlocks(ROWS.segments).attend(parts, key) if blocks else attend(parts.with_key(key), mask)
        (out[real].square().sum()).backward()
        gradients.append([leaf.grad for leaf in leaves])
    for mine, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("mode", list(MaskMode))
def test_several_masks_at_once_equal_separate_calls(mode: MaskMode) -> None:
    parts = projected(10)
    masks = [causal_mask(ROWS.segments)[:, :, 1:], context_mask(ROWS.segments)[:, :, 1:]]
    found = attend_under(parts, [additive(mask, torch.float32) for mask in masks], mode)
    for mine, mask in zip(found, masks, strict=True):
        torch.testing.assert_close(mine, attend(parts, mask, mode))
    with torch.no_grad():
        for mine, mask in zip(found, masks, strict=True):
            (fused,) = attend_under(parts, [additive(mask, torch.float32)], mode)
            torch.testing.assert_close(mine, fused)
