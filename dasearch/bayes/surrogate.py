"""A Gaussian process over categorical choices that learns which structure the landscape has.

One fixed kernel decides too much: a kernel with structure across layers wins where there is any and loses where there is
none. This surrogate averages over members instead. Each member mixes the components of `features.Dictionary` in its own
shares, or picks a few single choices and explains the rest as small (sparse landscapes); members are weighted by their
evidence, so structure is used where the data show it. Output scale and noise are learned with them; there is nothing to
optimise and nothing random, so a fit repeats bit for bit. Use it for up to a few hundred evaluations. Float64 throughout.

Source of the parts: evidence with the scale integrated out, Rasmussen & Williams 2006, sec. 2.7 and 5.4; leave-one-out
formulas, there sec. 5.4.2; believing in running trials, Ginsbourger et al. 2010.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dasearch.bayes.choices import Choices
from dasearch.bayes.features import ISOTROPIC, LINEAR, PAIRS, Dictionary, dictionary

NOISES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # noise variance as a share of the signal's
MIDDLE_NOISE = 0.1  # at which mixtures are compared first
LIKELY = 40  # mixtures compared at every noise
MIXTURES = 128  # quasi-random shares of the components, beside each component nearly alone
CONCENTRATION = 0.35  # of their Dirichlet distribution: a few components carry most
ALONE = 0.9  # share of the component that is nearly alone
LEVEL = 1.0  # prior variance of the constant
SCALE_SHAPE, SCALE_RATE = 2.0, 1.5  # inverse gamma prior of the output scale of standardised values
SPARSE_SLAB = 0.25  # prior variance of a picked choice's effect
SPARSE_REST = {LINEAR: 0.1, ISOTROPIC: 0.05}  # everything that was not picked
SPARSE_NOISES = (0.03, 0.1, 0.3)
SPARSE_MOST = 12  # choices and pairs of them picked
NEGLIGIBLE = 0.03  # members whose weight is a smaller share of the largest are dropped
MOST_MEMBERS = 10
CONSTANT = 1e-12  # values that spread less than this, relative to their size, are all alike


class Posterior(NamedTuple):
    """Mean and standard deviation of the latent function, each ``(m,)``, in the units of the values."""

    mean: Tensor
    sd: Tensor


class LeaveOneOut(NamedTuple):
    """Each value as the others predict it, noise included: mean and sd ``(n,)``, and the mean log density."""

    mean: Tensor
    sd: Tensor
    log_density: float


class Effects(NamedTuple):
    """Averaged over all other choices, the change of the value: mean and sd, each ``(k,)``.

    ``choices`` names them: ``(variable, k)`` for choice k instead of the first, or two of these for an interaction.
    """

    choices: list[tuple[tuple[int, int], ...]]
    mean: Tensor
    sd: Tensor


class Members(NamedTuple):
    """Kernels of the mixture: prior variances of features ``(M, F)`` and of the two kernels, noise, all ``(M,)``."""

    features: Tensor
    pairs: Tensor
    isotropic: Tensor
    noise: Tensor
    log_evidence: Tensor

    def chosen(self, index: Tensor) -> Members:
        return Members(*(value[index] for value in self))


@dataclass(frozen=True, eq=False)
class Surrogate:
    """A fitted process; `fit` makes one, and nothing changes it afterwards."""

    choices: Choices
    dictionary: Dictionary
    codes: Tensor  # (n, d)
    values: Tensor  # (n,)
    members: Members
    weights: Tensor  # (M,), sum to one
    scale: Tensor  # (M,), output variance of standardised values
    centre: Tensor
    spread: Tensor

    @classmethod
    def fit(cls, codes: Tensor, values: Tensor, choices: Choices | None = None) -> Surrogate:
        """Weigh the members by what is known.

        Shapes: codes ``(n, d)``, values ``(n,)``, n at least 1. Without ``choices`` codes are bits without layers.

        Raises:
            ValueError: for no evaluation, or a value that is not finite.
        """
        codes, values = codes.double(), values.double()
        if not len(values) or not values.isfinite().all():
            raise ValueError("a surrogate needs at least one evaluation and finite values; drop the others")
        choices = choices or Choices.binary(codes.shape[1])
        centre = values.mean()
        spread = values.std() if len(values) > 1 else values.new_tensor(0.0)
        if spread <= CONSTANT * values.abs().max():
            spread = values.new_tensor(1.0)
        target = (values - centre) / spread
        grams = _Grams(dictionary(choices), choices.contrasts(codes))
        sparse, picked = _sparse(grams, target)
        members = _joined(_mixtures(grams, target), sparse)
        weights = members.log_evidence.softmax(0)
        best = weights.topk(min(MOST_MEMBERS, len(weights))).indices
        kept = best[weights[best] > NEGLIGIBLE * weights.max()]
        members, weights = members.chosen(kept), weights[kept] / weights[kept].sum()
        extended = grams.dictionary.with_pairs(picked)
        unscaled = cls(choices, extended, codes, values, members, weights, torch.ones_like(weights), centre, spread)
        quadratic = torch.einsum("n,mnk,k->m", target, unscaled.inverse, target)
        return replace(unscaled, scale=(SCALE_RATE + quadratic / 2) / (SCALE_SHAPE + len(target) / 2))

    @cached_property
    def contrasts(self) -> Tensor:
        return self.choices.contrasts(self.codes)

    @cached_property
    def _weighted_features(self) -> Tensor:
        """``(F, M * n)``, so that one product gives every member's covariances."""
        known = self.dictionary.features(self.contrasts)
        return (self.members.features[:, None] * known).flatten(0, 1).T.contiguous()

    @cached_property
    def inverse(self) -> Tensor:
        """Of each member's covariance of the evaluations, noise included, before the output scale: ``(M, n, n)``."""
        gram = self._covariance(self.contrasts, self.dictionary.features(self.contrasts))
        gram.diagonal(dim1=1, dim2=2).add_(self.members.noise[:, None])
        return torch.cholesky_inverse(torch.linalg.cholesky(gram))

    @cached_property
    def _solution(self) -> Tensor:
        """Inverse times standardised values, ``(M, n)``."""
        return self.inverse @ ((self.values - self.centre) / self.spread)

    def _feature_covariance(self, features: Tensor) -> Tensor:
        """Of combinations of features ``(m, F)`` with the evaluations, before the output scale: ``(M, m, n)``."""
        shape = (len(features), len(self.weights), len(self.codes))
        return (features @ self._weighted_features).view(shape).transpose(0, 1)

    def _covariance(self, contrasts: Tensor, features: Tensor) -> Tensor:
        """With the evaluations, before the output scale: contrasts ``(m, D)``, features ``(m, F)`` -> ``(M, m, n)``."""
        pairs = self.dictionary.pair_kernel(contrasts, self.contrasts)
        isotropic = self.dictionary.isotropic_kernel(contrasts, self.contrasts)
        return (
            self._feature_covariance(features)
            + self.members.pairs[:, None, None] * pairs
            + self.members.isotropic[:, None, None] * isotropic
            + LEVEL
        )

    def _variance(self, contrasts: Tensor, features: Tensor) -> Tensor:
        """Prior variance, before the output scale: ``(M, m)``."""
        own = self.dictionary.pair_variance(contrasts)
        of_features = self.members.features @ features.square().T
        return of_features + self.members.pairs[:, None] * own + self.members.isotropic[:, None] + LEVEL

    @torch.no_grad()
    def each(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Every member's mean and sd in the units of the values; shapes: codes ``(m, d)`` -> ``(M, m)`` twice."""
        contrasts = self.choices.contrasts(codes)
        features = self.dictionary.features(contrasts)
        cross, prior = self._covariance(contrasts, features), self._variance(contrasts, features)
        mean, sd = self._conditional(cross, prior, least=1e-12)
        return self.centre + mean, sd

    def _conditional(self, cross: Tensor, prior: Tensor, *, least: float) -> tuple[Tensor, Tensor]:
        """Every member's mean and sd of linear functionals, the centre not added: ``(M, k)`` twice.

        Shapes: covariances with the evaluations ``(M, k, n)`` and prior variances ``(M, k)``, before the output scale.
        """
        mean = torch.einsum("mkn,mn->mk", cross, self._solution)
        explained = ((cross @ self.inverse) * cross).sum(-1)
        variance = (prior - explained).clamp(min=least) * self.scale[:, None]
        return self.spread * mean, self.spread * variance.sqrt()

    def posterior(self, codes: Tensor) -> Posterior:
        """Of the mixture; shapes: codes ``(m, d)`` -> mean, sd ``(m,)``."""
        return Posterior(*_mixed(self.weights, *self.each(codes)))

    @property
    def noise_sd(self) -> Tensor:
        """Standard deviation of the noise in the units of the values, ``()``."""
        return self.spread * (self.weights @ (self.members.noise * self.scale)).sqrt()

    def believing(self, running: Tensor) -> Surrogate:
        """This process after ``running`` ``(p, d)`` came out at their posterior means; members and scales stay."""
        if not len(running):
            return self
        codes = torch.cat([self.codes, running.double()])
        return replace(self, codes=codes, values=torch.cat([self.values, self.posterior(running).mean]))

    def leave_one_out(self) -> LeaveOneOut:
        """Exact for the members and scales found; members are weighed anew without the value left out."""
        diagonal = self.inverse.diagonal(dim1=1, dim2=2)
        mean = self.values - self.spread * self._solution / diagonal  # (M, n)
        sd = self.spread * (self.scale[:, None] / diagonal).sqrt()
        density = torch.distributions.Normal(mean, sd).log_prob(self.values)
        log_weights = (self.weights.log()[:, None] - density).log_softmax(0)
        mixed = _mixed(log_weights.exp(), mean, sd)
        return LeaveOneOut(*mixed, float((log_weights + density).logsumexp(0).mean()))

    def main_effects(self) -> Effects:
        """Of every choice against the first of its variable."""
        rows = self.choices.effect_rows()
        level, raised = self.dictionary.isotropic_weights()
        isotropic = level * raised
        features, alike = rows @ self.dictionary.columns, self.members.isotropic
        cross = self._feature_covariance(features) + alike[:, None, None] * ((rows * isotropic) @ self.contrasts.T)
        prior = self.members.features @ features.square().T + alike[:, None] * (rows.square() @ isotropic)
        return self._effects([(column,) for column in self.choices.columns], cross, prior)

    def pair_effects(self) -> Effects:
        """Interactions of every two choices of different variables: how much one's effect changes with the other."""
        columns = self.choices.columns
        found = [
            (a, b) for a in range(len(columns)) for b in range(a + 1, len(columns)) if columns[a][0] != columns[b][0]
        ]
        names = [(columns[a], columns[b]) for a, b in found]
        first, second = (torch.tensor([pair[side] for pair in found], dtype=torch.long) for side in (0, 1))
        rows = self.choices.effect_rows()
        level, raised = self.dictionary.isotropic_weights()
        features = self._pair_features(rows[first], rows[second])

        def products(of_rows: Tensor) -> Tensor:
            """Shapes: a number a row, ``(D, ...)`` -> their products in pairs ``(k, ...)``."""
            return of_rows[first] * of_rows[second]

        pairs, isotropic = self.members.pairs * self.dictionary.pair_weight, self.members.isotropic * level
        cross = (
            self._feature_covariance(features)
            + pairs[:, None, None] * products(rows @ self.contrasts.T)
            + isotropic[:, None, None] * products((rows * raised) @ self.contrasts.T)
        )
        prior = (
            self.members.features @ features.square().T
            + pairs[:, None] * products(rows.square().sum(1))
            + isotropic[:, None] * products(rows.square() @ raised)
        )
        return self._effects(names, cross, prior)

    def _pair_features(self, first: Tensor, second: Tensor) -> Tensor:
        """Interactions as combinations of features; shapes: column weights ``(k, D)`` twice -> ``(k, F)``."""
        pairs = self.dictionary.pairs
        weights = first[:, pairs[:, 0]] * second[:, pairs[:, 1]] + first[:, pairs[:, 1]] * second[:, pairs[:, 0]]
        return weights @ self.dictionary.products

    def _effects(self, names: Sequence[tuple[tuple[int, int], ...]], cross: Tensor, prior: Tensor) -> Effects:
        """Posterior of linear functionals; shapes: covariances with the evaluations ``(M, k, n)``, variances ``(M, k)``."""
        return Effects(list(names), *_mixed(self.weights, *self._conditional(cross, prior, least=0.0)))


def _mixed(weights: Tensor, mean: Tensor, sd: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sd of a mixture of normals; shapes: weights ``(M,)`` or ``(M, m)``, mean and sd ``(M, m)``."""
    weights = weights if weights.ndim == 2 else weights[:, None]
    centre = (weights * mean).sum(0)
    return centre, (weights * (sd.square() + (mean - centre).square())).sum(0).sqrt()


class _Grams:
    """Covariances of the evaluations under each component."""

    def __init__(self, features: Dictionary, contrasts: Tensor) -> None:
        self.dictionary, self.contrasts = features, contrasts
        known = features.features(contrasts)
        self.names = features.names
        self.belongs = torch.tensor([[float(c == name) for c in features.component] for name in self.names[:-2]])
        self.belongs = self.belongs.double()  # (components, F)
        parts = [(known * row) @ known.T for row in self.belongs]
        parts += [features.pair_kernel(contrasts, contrasts), features.isotropic_kernel(contrasts, contrasts)]
        self.parts = torch.stack(parts)  # (components, n, n)

    def members(self, shares: Tensor, noise: Tensor, log_evidence: Tensor) -> Members:
        """Shapes: shares ``(M, components)``."""
        pairs, isotropic = self.names.index(PAIRS), self.names.index(ISOTROPIC)
        return Members(shares[:, :-2] @ self.belongs, shares[:, pairs], shares[:, isotropic], noise, log_evidence)


@lru_cache(maxsize=8)
def _shares(components: int) -> Tensor:
    """The mixtures tried, ``(mixtures, components)``: the same for every study."""
    drawn = np.random.default_rng(0).dirichlet(np.full(components, CONCENTRATION), size=MIXTURES)
    alone = ALONE * np.eye(components) + (1 - ALONE) / components
    return torch.from_numpy(np.concatenate([alone, drawn]))


def _mixtures(grams: _Grams, target: Tensor) -> Members:
    """The most credible mixtures of components, with their noise."""
    shares = _shares(len(grams.parts))
    gram = torch.einsum("mk,kab->mab", shares, grams.parts) + LEVEL
    prior = -math.log(len(shares) * len(NOISES))
    likely = _log_evidence(_noisy(gram, MIDDLE_NOISE), target).topk(min(LIKELY, len(shares))).indices
    shares, gram = shares[likely], gram[likely]
    evidence = torch.stack([_log_evidence(_noisy(gram, noise), target) for noise in NOISES])
    best = evidence.flatten().topk(min(MOST_MEMBERS, evidence.numel()))
    noise, mixture = best.indices // len(shares), best.indices % len(shares)
    return grams.members(shares[mixture], torch.tensor(NOISES, dtype=torch.float64)[noise], best.values + prior)


Pick = tuple[int, ...]  # a column, or two picked columns


def _sparse(grams: _Grams, target: Tensor) -> tuple[Members, list[tuple[int, int]]]:
    """A few choices picked one after another, and pairs of those picked; one member a step and noise.

    Each pick is the best beside those before. The prior gives every number of picks, and every set of that size, the same
    probability. Also returns the pairs, in the order of their features, which come after the dictionary's own.
    """
    rest = torch.tensor([SPARSE_REST.get(name, 0.0) for name in grams.names], dtype=torch.float64)
    base = torch.einsum("k,kab->ab", rest, grams.parts) + LEVEL
    paths = [_picks(_noisy(base, noise), grams.contrasts, target) for noise in SPARSE_NOISES]
    covariances = torch.cat([covariances for _, covariances in paths])
    picks = [picked[:count] for picked, _ in paths for count in range(1, len(picked) + 1)]
    noises = [noise for noise, (picked, _) in zip(SPARSE_NOISES, paths, strict=True) for _ in picked]
    prior = [-_log_sets_of(picked, grams.contrasts.shape[1]) - math.log(len(picks)) for picked in picks]
    evidence = _log_evidence(covariances, target) + torch.tensor(prior, dtype=torch.float64)
    found = grams.members(rest.expand(len(picks), -1), torch.tensor(noises, dtype=torch.float64), evidence)
    pairs = list(dict.fromkeys((pick[0], pick[1]) for picked in picks for pick in picked if len(pick) == 2))
    features = torch.nn.functional.pad(found.features, (0, len(pairs)))
    columns, own = grams.contrasts.shape[1], found.features.shape[1]
    for member, picked in enumerate(picks):
        for pick in picked:  # linear features come first, one a column, of variance 1 / D each
            if len(pick) == 1:
                features[member, pick[0]] += SPARSE_SLAB * columns
            else:
                features[member, own + pairs.index((pick[0], pick[1]))] = SPARSE_SLAB
    return found._replace(features=features), pairs


def _picks(covariance: Tensor, columns: Tensor, target: Tensor) -> tuple[list[Pick], Tensor]:
    """The picks, and the covariance after each, ``(steps, n, n)``."""
    names: list[Pick] = [(i,) for i in range(columns.shape[1])]
    candidates, picked, found = columns, list[Pick](), []
    while len(picked) < min(SPARSE_MOST, len(names)):
        best = _next_pick(covariance, candidates, target, [names.index(pick) for pick in picked])
        pick = names[best]
        if len(pick) == 1:
            partners = [other[0] for other in picked if len(other) == 1]
            names += [(other, pick[0]) for other in partners]
            candidates = torch.cat([candidates, columns[:, partners] * columns[:, [pick[0]]]], 1)
        picked.append(pick)
        covariance = covariance + SPARSE_SLAB * torch.outer(candidates[:, best], candidates[:, best])
        found.append(covariance)
    return picked, torch.stack(found)


def _next_pick(covariance: Tensor, columns: Tensor, target: Tensor, picked: list[int]) -> int:
    """The column whose addition raises the evidence most, by the formulas for a change of rank one."""
    inverse = torch.linalg.inv(covariance)
    solved = inverse @ columns
    own, towards = (columns * solved).sum(0), solved.T @ target
    quadratic = target @ inverse @ target - SPARSE_SLAB * towards.square() / (1 + SPARSE_SLAB * own)
    shape = SCALE_SHAPE + len(target) / 2
    gain = -0.5 * torch.log1p(SPARSE_SLAB * own) - shape * torch.log(SCALE_RATE + quadratic.clamp(min=0) / 2)
    gain[picked] = -torch.inf
    return int(gain.argmax())


def _log_sets_of(picked: list[Pick], columns: int) -> float:
    """Log of the number of sets of so many columns, and of so many pairs of them."""
    singles = sum(len(pick) == 1 for pick in picked)
    pairs = len(picked) - singles
    return _log_sets(columns, singles) + _log_sets(singles * (singles - 1) // 2, pairs)


def _noisy(gram: Tensor, noise: float) -> Tensor:
    found = gram.clone()
    found.diagonal(dim1=-2, dim2=-1).add_(noise)
    return found


def _log_evidence(covariance: Tensor, target: Tensor) -> Tensor:
    """Log density of the target with the output scale integrated out, up to a constant; ``(m, n, n)`` -> ``(m,)``."""
    lower = torch.linalg.cholesky(covariance)
    solved = torch.linalg.solve_triangular(lower, target[:, None].expand(len(lower), -1, 1), upper=False)
    rate = SCALE_RATE + solved.square().sum((1, 2)) / 2
    found: Tensor = -lower.diagonal(dim1=1, dim2=2).log().sum(1) - (SCALE_SHAPE + len(target) / 2) * rate.log()
    return found


def _log_sets(n: int, k: int) -> float:
    """Log of the number of sets of k among n."""
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _joined(first: Members, wider: Members) -> Members:
    """Both; the first has no variance in the features that only the wider has."""
    missing = wider.features.shape[1] - first.features.shape[1]
    first = first._replace(features=torch.nn.functional.pad(first.features, (0, missing)))
    return Members(*(torch.cat(parts) for parts in zip(first, wider, strict=True)))
