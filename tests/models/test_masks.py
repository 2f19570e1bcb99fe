"""SPEC 6, check 9: the masks written out by hand, m = 7."""

import torch

from dasearch.models.masks import causal_mask, context_mask

# two items of 3 and 2 tokens, then padding; columns: the collaborative key, then the 7 tokens
SEGMENTS = torch.tensor([[0, 0, 0, 1, 1, -1, -1]])
CONTEXT = """
1 1 1 1 0 0 0 0
1 1 1 1 0 0 0 0
1 1 1 1 0 0 0 0
1 0 0 0 1 1 0 0
1 0 0 0 1 1 0 0
0 0 0 0 0 0 1 0
0 0 0 0 0 0 0 1
"""
CAUSAL = """
0 1 0 0 0 0 0 0
0 1 1 0 0 0 0 0
0 1 1 1 0 0 0 0
0 1 1 1 1 0 0 0
0 1 1 1 1 1 0 0
0 0 0 0 0 0 1 0
0 0 0 0 0 0 0 1
"""


def table(text: str) -> torch.Tensor:
    return torch.tensor(
        [[int(cell) for cell in line.split()] for line in text.split("\n") if line.strip()], dtype=torch.bool
    )


def test_context_mask_enumerated() -> None:
    assert torch.equal(context_mask(SEGMENTS)[0], table(CONTEXT))


def test_causal_mask_enumerated() -> None:
    assert torch.equal(causal_mask(SEGMENTS)[0], table(CAUSAL))


def test_shape_is_m_by_m_plus_one() -> None:
    segments = torch.zeros(3, 7, dtype=torch.long)
    assert context_mask(segments).shape == causal_mask(segments).shape == (3, 7, 8)


def test_every_query_attends_to_something() -> None:
    """A row of the mask without True would give NaN after the softmax."""
    for mask in (context_mask(SEGMENTS), causal_mask(SEGMENTS)):
        assert mask.any(dim=-1).all()


def test_two_purchases_of_one_item_are_two_segments() -> None:
    mask = context_mask(torch.tensor([[0, 0, 1, 1]]))[0, :, 1:]
    assert not mask[:2, 2:].any()
