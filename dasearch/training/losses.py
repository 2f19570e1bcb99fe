"""DARec's four losses as functions of scores and hidden states (Liu et al. 2024, sec. 2.2 and 2.4).

The paper prints sums; means per term keep the weights independent of the batch size (``reduction="sum"`` prints).
"""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor
from torch.nn import functional as F


class Reduction(StrEnum):
    MEAN = "mean"
    SUM = "sum"


def item_cross_entropy(logits: Tensor, targets: Tensor, reduction: Reduction = Reduction.MEAN) -> Tensor:
    """L_seq and L_align: cross-entropy of item scores; targets below 0 do not count.

    Shapes: logits ``(..., items)``, targets ``(...)`` -> ``()``.
    """
    flat, wanted = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    return F.cross_entropy(flat.float(), wanted.clamp(min=-1), ignore_index=-1, reduction=reduction.value)


def contrastive_loss(
    anchors: Tensor,
    positives: Tensor,
    negatives: Tensor,
    *,
    temperature: float = 1.0,
    reduction: Reduction = Reduction.MEAN,
) -> Tensor:
    """L_cl: InfoNCE by cosine, the denominator over the positive and the hard negatives (sec. 2.2.4).

    Shapes: anchors, positives ``(a, width)``, negatives ``(a, n_cl, width)`` -> ``()``.
    """
    candidates = torch.cat([positives[:, None], negatives], dim=1)
    similarity = F.cosine_similarity(anchors[:, None].float(), candidates.float(), dim=-1) / temperature
    first = torch.zeros(len(anchors), dtype=torch.long, device=anchors.device)
    return F.cross_entropy(similarity, first, reduction=reduction.value)


def bpr_loss(positive: Tensor, negative: Tensor, reduction: Reduction = Reduction.MEAN) -> Tensor:
    """L_cf: ``-log sigmoid(score of bought - score of not bought)`` (Rendle et al. 2009). Shapes ``(n,)`` -> ``()``."""
    loss = -F.logsigmoid((positive - negative).float())
    return loss.mean() if reduction is Reduction.MEAN else loss.sum()
