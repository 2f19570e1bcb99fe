"""Losses as functions of scores and states: DARec's four, IDLE-Adapter's MMD, RA-Rec's InfoNCE.

Liu et al. 2024 (DARec), sec. 2.2 and 2.4; SPEC 3 and 4. DARec's paper prints sums; means per term keep the weights
independent of the batch size (``reduction="sum"`` prints).
"""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor
from torch.nn import functional as F

MMD_BATCH = 16  # fewer rows say little about two distributions (SPEC 3)
MMD_SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the bandwidth; the sources name the RKHS and no kernel


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


def mmd(first: Tensor, second: Tensor, scales: tuple[float, ...] = MMD_SCALES) -> Tensor:
    """Squared maximum mean discrepancy, biased, with a mean of RBF kernels (Gretton et al. 2012, eq. 5).

    ``k(x, y) = mean over scales s of exp(-|x - y|^2 / (2 s m))`` with m the mean squared distance of the pooled rows,
    which carries no gradient. A reconstruction of IDLE-Adapter's alignment (SPEC 3).

    Shapes: first, second ``(rows, width)`` -> ``()``, at least 0, and 0 for equal samples.
    """
    pooled = torch.cat([first, second]).float()
    squares = (pooled[:, None] - pooled[None]).square().sum(-1)
    bandwidth = squares.detach().mean().clamp(min=1e-12)
    kernel = torch.stack([torch.exp(-squares / (2 * scale * bandwidth)) for scale in scales]).mean(0)
    n = len(first)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


def info_nce(first: Tensor, second: Tensor, temperature: float = 1.0) -> Tensor:
    """Row k of ``first`` against row k of ``second`` among all its rows, by cosine (RA-Rec's alignment, SPEC 4).

    Shapes: first, second ``(rows, width)`` -> ``()``.
    """
    similarity = F.normalize(first.float(), dim=1) @ F.normalize(second.float(), dim=1).T / temperature
    return F.cross_entropy(similarity, torch.arange(len(first), device=first.device))
