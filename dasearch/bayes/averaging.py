"""Bayesian model averaging: the kernels that a surrogate mixes, and the evidence that weighs them.

A single fixed kernel is too rigid: a kernel with structure across layers wins where there is any and loses where there is
none. Each member mixes the components of `features.Dictionary` in its own shares, or selects a few single choices and models
the rest as small (sparse landscapes); members are weighted by their evidence, so structure is used where the data support it,
and so are another study's results (`transfer`). Noise is learned with them. Float64 throughout.

Source: evidence with the output scale integrated out, Rasmussen & Williams 2006, sec. 2.7 and 5.4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dasearch.bayes.features import ISOTROPIC, LINEAR, PAIRS, Dictionary
from dasearch.bayes.transfer import CORRELATIONS, UNRELATED, Prior, related

NOISES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # noise variance as a share of the signal's
MIDDLE_NOISE = 0.1  # noise at which mixtures are compared first
LIKELY = 40  # mixtures compared at every noise
MIXTURES = 128  # random mixtures of the components, in addition to each component nearly alone
CONCENTRATION = 0.35  # of the Dirichlet distribution of shares: a few components carry most of the variance
ALONE = 0.9  # share of the component that is nearly alone
LEVEL = 1.0  # prior variance of the constant
SCALE_SHAPE, SCALE_RATE = 2.0, 1.5  # inverse gamma prior of the output scale of standardised values
SPARSE_SLAB = 0.25  # prior variance of a picked choice's effect
SPARSE_REST = {LINEAR: 0.1, ISOTROPIC: 0.05}  # prior variance of everything that was not picked
SPARSE_NOISES = (0.03, 0.1, 0.3)
SPARSE_MOST = 12  # most choices and pairs that a member picks
NEGLIGIBLE = 0.03  # members whose weight is a smaller share of the largest are dropped
MOST_MEMBERS = 10
Pick = tuple[int, ...]  # a column, or two picked columns
Pairs = list[tuple[int, int]]


class Members(NamedTuple):
    """Kernels of the mixture: prior variances of features ``(M, F)`` and of the two other kernels, and noise, all ``(M,)``.

    ``correlation`` is that with the landscape of a `Prior`; 0 without a prior, or for members that ignore it.
    """

    features: Tensor
    pairs: Tensor
    isotropic: Tensor
    noise: Tensor
    correlation: Tensor
    log_evidence: Tensor

    def chosen(self, index: Tensor) -> Members:
        """The members at these indices."""
        return Members(*(value[index] for value in self))


class Evaluations:
    """Evaluations of one study or of two, and their covariances under each component as if they shared one landscape.

    Args:
        target: standardised values, ``(n,)``.
        own: number of evaluations of this study; they come first. All by default.
        correlations: candidate correlations with the other study's landscape.
    """

    def __init__(
        self,
        features: Dictionary,
        contrasts: Tensor,
        target: Tensor,
        *,
        own: int | None = None,
        correlations: tuple[float, ...] = (0.0,),
    ) -> None:
        self.dictionary, self.contrasts, self.target = features, contrasts, target
        self.own = len(target) if own is None else own
        self.correlations = torch.tensor(correlations, dtype=torch.float64)
        self.names, terms = features.names, features.terms(contrasts)
        self.counts = torch.tensor([part.count for part in features.parts])  # number of features
        known = [part.features(terms) for part in features.parts]
        parts = [own.T @ own for own in known]
        parts += [features.pair_kernel(contrasts, contrasts), features.isotropic_kernel(contrasts, contrasts)]
        self.parts = torch.stack(parts)  # (components, n, n)

    def log_evidence(self, covariance: Tensor, correlation: Tensor) -> Tensor:
        """Log evidence of covariances ``(m, n, n)``, given as if all evaluations shared one landscape: ``(m,)``."""
        return log_evidence(related(covariance, self.own, correlation), self.target)

    def members(self, shares: Tensor, noise: Tensor, correlation: Tensor, log_evidence: Tensor) -> Members:
        """Members from their component shares ``(M, components)``, noise, correlation and log evidence, each ``(M,)``."""
        pairs, isotropic = self.names.index(PAIRS), self.names.index(ISOTROPIC)
        features = shares[:, :-2].repeat_interleave(self.counts, 1)
        return Members(features, shares[:, pairs], shares[:, isotropic], noise, correlation, log_evidence)


def weighed(known: Evaluations) -> tuple[Members, Pairs]:
    """All members, dense and sparse, and the pairs that any of them picked."""
    sparse, picked = _sparse(known)
    return _joined([(_mixtures(known), []), (sparse, picked)])


def informed(known: Evaluations, prior: Prior) -> tuple[Members, Pairs]:
    """Members that ignore the prior, which is modelled separately, and members that model both studies jointly."""
    features, choices = known.dictionary, known.dictionary.choices
    elsewhere = choices.contrasts(prior.codes)
    (other, _), (apart, picked) = (weighed(one) for one in (Evaluations(features, elsewhere, prior.values), known))
    contrasts, target = torch.cat([known.contrasts, elsewhere]), torch.cat([known.target, prior.values])
    both = Evaluations(features, contrasts, target, own=known.own, correlations=CORRELATIONS)
    together, picked_together = weighed(both)
    of_prior = other.log_evidence.logsumexp(0) - math.log(2) + log_constant(len(prior.values))
    apart_weight = math.log(UNRELATED) + log_constant(known.own) + of_prior
    together_weight = math.log(1 - UNRELATED) + log_constant(len(target))
    apart = apart._replace(log_evidence=apart.log_evidence + apart_weight)
    together = together._replace(log_evidence=together.log_evidence + together_weight)
    return _joined([(apart, picked), (together, picked_together)])


def likeliest(members: Members) -> tuple[Members, Tensor]:
    """The members of the largest weights, and these, which sum to one."""
    weights = members.log_evidence.softmax(0)
    best = weights.topk(min(MOST_MEMBERS, len(weights))).indices
    kept = best[weights[best] > NEGLIGIBLE * weights.max()]
    return members.chosen(kept), weights[kept] / weights[kept].sum()


@lru_cache(maxsize=8)
def _shares(components: int) -> Tensor:
    """The candidate mixtures, ``(mixtures, components)``: the same for every study."""
    drawn = np.random.default_rng(0).dirichlet(np.full(components, CONCENTRATION), size=MIXTURES)
    alone = ALONE * np.eye(components) + (1 - ALONE) / components
    return torch.from_numpy(np.concatenate([alone, drawn]))


def _mixtures(known: Evaluations) -> Members:
    """The mixtures of components with the highest evidence, with their noise and correlation."""
    shares, noises = _shares(len(known.parts)), torch.tensor(NOISES, dtype=torch.float64)
    gram = torch.einsum("mk,kab->mab", shares, known.parts) + LEVEL
    prior = -math.log(len(shares) * len(noises) * len(known.correlations))
    first = known.log_evidence(_noisy(gram, MIDDLE_NOISE), known.correlations.max())
    likely = first.topk(min(LIKELY, len(shares))).indices
    shares, gram = shares[likely], gram[likely]
    settings = torch.cartesian_prod(known.correlations, noises)
    evidence = torch.stack([known.log_evidence(_noisy(gram, float(noise)), between) for between, noise in settings])
    best = evidence.flatten().topk(min(MOST_MEMBERS, evidence.numel()))
    correlation, noise = settings[best.indices // len(shares)].T
    return known.members(shares[best.indices % len(shares)], noise, correlation, best.values + prior)


def _sparse(known: Evaluations) -> tuple[Members, Pairs]:
    """Greedy forward selection of a few choices and of pairs of those; one member per step, noise and correlation.

    Each pick is the best given the previous ones; two studies are treated as one for this. The prior gives every number of picks,
    and every set of that size, the same probability. Also returns the pairs, in the order of their features, which come
    after the dictionary's own.
    """
    rest = torch.tensor([SPARSE_REST.get(name, 0.0) for name in known.names], dtype=torch.float64)
    base = torch.einsum("k,kab->ab", rest, known.parts) + LEVEL
    paths = [_picks(_noisy(base, noise), known.contrasts, known.target) for noise in SPARSE_NOISES]
    covariances = torch.cat([covariances for _, covariances in paths])
    picks = [picked[:count] for picked, _ in paths for count in range(1, len(picked) + 1)]
    noises = [noise for noise, (picked, _) in zip(SPARSE_NOISES, paths, strict=True) for _ in picked]
    count = len(known.correlations)
    prior = [-_log_sets_of(picked, known.contrasts.shape[1]) - math.log(len(picks) * count) for picked in picks]
    by_correlation = [known.log_evidence(covariances, correlation) for correlation in known.correlations]
    evidence = torch.stack(by_correlation) + torch.tensor(prior, dtype=torch.float64)
    members = known.members(
        rest.expand(evidence.numel(), -1),
        torch.tensor(noises * count, dtype=torch.float64),
        known.correlations.repeat_interleave(len(picks)),
        evidence.flatten(),
    )
    return _with_picks(members, picks * count, known.contrasts.shape[1])


def _with_picks(members: Members, picks: list[list[Pick]], columns: int) -> tuple[Members, Pairs]:
    """Each member with the prior variance of the features that it picked."""
    pairs = list(dict.fromkeys((pick[0], pick[1]) for picked in picks for pick in picked if len(pick) == 2))
    own = members.features.shape[1]
    features = torch.nn.functional.pad(members.features, (0, len(pairs)))
    for member, picked in enumerate(picks):
        for pick in picked:  # linear features come first, one per column, of variance 1 / D each
            if len(pick) == 1:
                features[member, pick[0]] += SPARSE_SLAB * columns
            else:
                features[member, own + pairs.index((pick[0], pick[1]))] = SPARSE_SLAB
    return members._replace(features=features), pairs


def _picks(covariance: Tensor, columns: Tensor, target: Tensor) -> tuple[list[Pick], Tensor]:
    """The picks in order, and the covariance after each, ``(steps, n, n)``."""
    names: list[Pick] = [(i,) for i in range(columns.shape[1])]
    candidates, picked, covariances = columns, list[Pick](), []
    while len(picked) < min(SPARSE_MOST, len(names)):
        best = next_pick(covariance, candidates, target, [names.index(pick) for pick in picked])
        pick = names[best]
        if len(pick) == 1:
            partners = [other[0] for other in picked if len(other) == 1]
            names += [(other, pick[0]) for other in partners]
            candidates = torch.cat([candidates, columns[:, partners] * columns[:, [pick[0]]]], 1)
        picked.append(pick)
        covariance = covariance + SPARSE_SLAB * torch.outer(candidates[:, best], candidates[:, best])
        covariances.append(covariance)
    return picked, torch.stack(covariances)


def next_pick(covariance: Tensor, columns: Tensor, target: Tensor, picked: list[int]) -> int:
    """The column whose addition raises the evidence most, by rank-one updates."""
    inverse = torch.linalg.inv(covariance)
    solved = inverse @ columns
    own, towards = (columns * solved).sum(0), solved.T @ target
    quadratic = target @ inverse @ target - SPARSE_SLAB * towards.square() / (1 + SPARSE_SLAB * own)
    shape = SCALE_SHAPE + len(target) / 2
    gain = -0.5 * torch.log1p(SPARSE_SLAB * own) - shape * torch.log(SCALE_RATE + quadratic.clamp(min=0) / 2)
    gain[picked] = -torch.inf
    return int(gain.argmax())


def _log_sets_of(picked: list[Pick], columns: int) -> float:
    """Log of the number of sets of that many columns, and of that many pairs of them."""
    singles = sum(len(pick) == 1 for pick in picked)
    pairs = len(picked) - singles
    return _log_sets(columns, singles) + _log_sets(singles * (singles - 1) // 2, pairs)


def _noisy(gram: Tensor, noise: float) -> Tensor:
    covariance = gram.clone()
    covariance.diagonal(dim1=-2, dim2=-1).add_(noise)
    return covariance


def log_evidence(covariance: Tensor, target: Tensor) -> Tensor:
    """Log density of the target, output scale integrated out, up to `log_constant`. Shapes: ``(m, n, n)`` -> ``(m,)``."""
    lower = torch.linalg.cholesky(covariance)
    solved = torch.linalg.solve_triangular(lower, target[:, None].expand(len(lower), -1, 1), upper=False)
    rate = SCALE_RATE + solved.square().sum((1, 2)) / 2
    evidence: Tensor = -lower.diagonal(dim1=1, dim2=2).log().sum(1) - (SCALE_SHAPE + len(target) / 2) * rate.log()
    return evidence


def _log_sets(n: int, k: int) -> float:
    """Log of the binomial coefficient: the number of sets of k among n."""
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def log_constant(n: int) -> float:
    """The constant omitted by `log_evidence`, which depends only on the number of values."""
    shape = SCALE_SHAPE + n / 2
    gammas = math.lgamma(shape) - math.lgamma(SCALE_SHAPE)
    return gammas + SCALE_SHAPE * math.log(SCALE_RATE) - n / 2 * math.log(2 * math.pi)


def _joined(groups: Sequence[tuple[Members, Pairs]]) -> tuple[Members, Pairs]:
    """All members over the union of their pairs, with zero variance for pairs that they did not pick themselves."""
    union = list(dict.fromkeys(pair for _, pairs in groups for pair in pairs))
    widened = []
    for members, pairs in groups:
        own = members.features.shape[1] - len(pairs)
        features = torch.nn.functional.pad(members.features[:, :own], (0, len(union)))
        features[:, [own + union.index(pair) for pair in pairs]] = members.features[:, own:]
        widened.append(members._replace(features=features))
    return Members(*(torch.cat(parts) for parts in zip(*widened, strict=True))), union
