"""The two attention masks of a dynamically adapted layer, with the collaborative key in column 0.

Liu et al. 2024 (DARec), sec. 2.3.1 and fig. 3. Differs from the paper as printed, in which a query attends to later tokens and
the collaborative key's shift of the columns by one is not accounted for: here a query attends to tokens up to itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dasearch.data.rows import PAD_SEGMENT


def context_mask(segments: Tensor, keyed: Tensor | None = None) -> Tensor:
    """True where a query may attend: in both directions within its own item, and to the collaborative key.

    Shapes: segments ``(batch, m)`` with -1 for padding, keyed ``(batch, n)``: the segment that attends to each of n keys (None:
    one key for all) -> ``(batch, m, n + m)``. A padded query attends only to itself.
    """
    real = segments != PAD_SEGMENT
    same = (segments[:, :, None] == segments[:, None, :]) & real[:, None, :]
    keys = real[:, :, None] if keyed is None else segments[:, :, None] == keyed[:, None, :]
    return torch.cat([keys, _self_for_padding(same, real)], dim=2)


def causal_mask(segments: Tensor, keys: int = 1) -> Tensor:
    """True where a query may attend: to real tokens up to itself, never to a collaborative key.

    Shapes: segments ``(batch, m)`` -> ``(batch, m, keys + m)``. A padded query attends only to itself.
    """
    m = segments.shape[1]
    real = segments != PAD_SEGMENT
    before = torch.ones(m, m, dtype=torch.bool, device=segments.device).tril()
    allowed = _self_for_padding(before & real[:, None, :], real)
    return torch.cat([torch.zeros_like(real)[:, :, None].expand(-1, -1, keys), allowed], dim=2)


def _self_for_padding(allowed: Tensor, real: Tensor) -> Tensor:
    own = torch.eye(allowed.shape[1], dtype=torch.bool, device=allowed.device)
    return (allowed & real[:, :, None]) | (own & ~real[:, :, None])
