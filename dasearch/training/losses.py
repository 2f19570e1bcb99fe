"""Losses as functions of scores and states: DARec's four, IDLE-Adapter's MMD, RA-Rec's InfoNCE.

Liu et al. 2024 (DARec), sec. 2.2 and 2.4; SPEC 3 and 4. DARec's paper prints sums; by default we take means, so that the
weights do not depend on the batch size (``reduction="sum"`` is the printed form).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dasearch.config import Reduction

MMD_SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)  # factors of the bandwidth; the sources name an RKHS but no kernel


def reduced(values: Tensor, counted: Tensor, reduction: Reduction) -> Tensor:
    """Mean or sum of the counted values over all axes but the first, the candidates; 0 if none is counted.

    Shapes: values, counted (bool) ``(K, ...)`` -> ``(K,)``.
    """
    values = torch.where(counted, values, 0.0).flatten(1).sum(1)
    return values / counted.flatten(1).sum(1).clamp(min=1) if reduction is Reduction.MEAN else values


def item_cross_entropy(logits: Tensor, targets: Tensor, reduction: Reduction = Reduction.MEAN) -> Tensor:
    """L_seq and L_align: cross-entropy of item scores; targets below 0 are ignored.

    Shapes: logits ``(K, ..., items)``, targets ``(K, ...)`` -> ``(K,)``.
    """
    flat, wanted = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    values = F.cross_entropy(flat.float(), wanted.clamp(min=-1), ignore_index=-1, reduction="none")
    return reduced(values.view(targets.shape), targets >= 0, reduction)


def contrastive_loss(
    anchors: Tensor,
    positives: Tensor,
    negatives: Tensor,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """L_cl: InfoNCE with cosine similarity over the positive and the hard negatives (sec. 2.2.4).

    Shapes: anchors, positives ``(..., width)``, negatives ``(..., n_cl, width)`` -> ``(...)``.
    """
    candidates = torch.cat([positives[..., None, :], negatives], dim=-2)
    similarity = F.cosine_similarity(anchors[..., None, :].float(), candidates.float(), dim=-1) / temperature
    return -F.log_softmax(similarity, dim=-1)[..., 0]


def bpr_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """L_cf: ``-log sigmoid(score of bought - score of not bought)`` (Rendle et al. 2009). Shapes ``(...)`` -> ``(...)``."""
    return -F.logsigmoid((positive - negative).float())


def mmd(first: Tensor, second: Tensor, scales: tuple[float, ...] = MMD_SCALES) -> Tensor:
    """Squared maximum mean discrepancy (biased estimator) with a mean of RBF kernels (Gretton et al. 2012, eq. 5).

    ``k(x, y) = mean over scales s of exp(-|x - y|^2 / (2 s m))`` with m the mean squared distance of the pooled rows,
    which has no gradient. A reconstruction of IDLE-Adapter's alignment (SPEC 3).

    Shapes: first, second ``(..., rows, width)`` -> ``(...)``, at least 0, and 0 for equal samples.
    """
    pooled = torch.cat([first, second], dim=-2).float()
    squares = (pooled[..., :, None, :] - pooled[..., None, :, :]).square().sum(-1)
    bandwidth = squares.detach().mean(dim=(-2, -1), keepdim=True).clamp(min=1e-12)
    kernel = torch.stack([torch.exp(-squares / (2 * scale * bandwidth)) for scale in scales]).mean(0)
    n = first.shape[-2]
    within = kernel[..., :n, :n].mean(dim=(-2, -1)) + kernel[..., n:, n:].mean(dim=(-2, -1))
    return within - 2 * kernel[..., :n, n:].mean(dim=(-2, -1))


def info_nce(first: Tensor, second: Tensor, temperature: float = 1.0, counted: Tensor | None = None) -> Tensor:
    """InfoNCE with cosine similarity: row k of ``first`` against row k of ``second`` among all its rows (RA-Rec, SPEC 4).

    Shapes: first, second ``(K, rows, width)``, counted ``(K, rows)`` bool, None: all -> ``(K,)``.
    """
    similarity = F.normalize(first.float(), dim=-1) @ F.normalize(second.float(), dim=-1).mT / temperature
    if counted is None:
        counted = torch.ones(similarity.shape[:2], dtype=torch.bool, device=similarity.device)
    itself = torch.eye(similarity.shape[-1], dtype=torch.bool, device=similarity.device)  # so that no row is empty
    others = ~(counted[:, None] | itself)
    own = F.log_softmax(similarity.masked_fill(others, -torch.inf), dim=-1).diagonal(dim1=1, dim2=2)
    return reduced(-own, counted, Reduction.MEAN)
