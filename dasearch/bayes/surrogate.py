"""A Gaussian process over categorical choices that learns which structure the landscape has.

A single fixed kernel is too rigid: a kernel with structure across layers wins where there is any and loses where there is
none. This surrogate averages over members instead (Bayesian model averaging). Each member mixes the components of
`features.Dictionary` in its own shares, or selects a few single choices and models the rest as small (sparse landscapes);
members are weighted by their evidence, so structure is used where the data support it, and so are another study's results
(`transfer`). Output scale and noise are learned with them; there is no optimisation and no randomness, so a fit is
reproducible bit for bit. Use it for up to a few hundred evaluations. Float64 throughout.

Sources: evidence with the scale integrated out, Rasmussen & Williams 2006, sec. 2.7 and 5.4; leave-one-out formulas, there
sec. 5.4.2; the kriging believer for running trials, Ginsbourger et al. 2010.
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
from dasearch.bayes.transfer import CORRELATIONS, UNRELATED, Prior, related, spread_of
from dasearch.deprecation import renamed

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
AT_ONCE = 128  # points per block of features, so that a block fits the CPU cache for spaces with many choices


class Posterior(NamedTuple):
    """Mean and standard deviation of the latent function, each ``(m,)``, in the units of the values.

    Examples:
        >>> import torch
        >>> from dasearch.bayes import Surrogate
        >>> codes = torch.tensor([[0, 0], [0, 1], [1, 0]])
        >>> surrogate = Surrogate.fit(codes, torch.tensor([0.0, 0.4, 0.5]))
        >>> mean, sd = surrogate.posterior(torch.tensor([[0, 1], [1, 1]]))
        >>> bool(sd[0] < sd[1])  # the first was evaluated
        True
    """

    mean: Tensor
    sd: Tensor


class LeaveOneOut(NamedTuple):
    """Leave-one-out predictions of each value, noise included: mean and sd ``(n,)``, and the mean log density.

    Examples:
        >>> import torch
        >>> from dasearch.bayes import Surrogate
        >>> codes = torch.cartesian_prod(*[torch.tensor([0, 1])] * 4)
        >>> values = codes @ torch.tensor([0, 1, 2, 3])
        >>> left_out = Surrogate.fit(codes, values).leave_one_out()
        >>> bool((left_out.mean - values).abs().max() < 0.5)
        True
    """

    mean: Tensor
    sd: Tensor
    log_density: float


class Effects(NamedTuple):
    """Effects of choices on the value, averaged over all other choices: mean and sd, each ``(k,)``.

    ``choices`` identifies them: ``(variable, k)`` for choice k against the first, or two of these for an interaction.

    Examples:
        >>> import torch
        >>> from dasearch.bayes import Surrogate
        >>> codes = torch.cartesian_prod(*[torch.tensor([0, 1])] * 3)
        >>> effects = Surrogate.fit(codes, codes @ torch.tensor([3, 0, -1])).main_effects()
        >>> effects.choices
        [((0, 1),), ((1, 1),), ((2, 1),)]
        >>> effects.mean.round().tolist()
        [3.0, 0.0, -1.0]
    """

    choices: list[tuple[tuple[int, int], ...]]
    mean: Tensor
    sd: Tensor


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


@dataclass(frozen=True, eq=False)
class Surrogate:
    """A fitted process, immutable; `fit` creates one.

    Examples:
        >>> import torch
        >>> from dasearch.bayes import Surrogate
        >>> codes = torch.tensor([[0, 0], [0, 1], [1, 0]])
        >>> surrogate = Surrogate.fit(codes, torch.tensor([0.0, 0.4, 0.5]))
        >>> surrogate
        Surrogate(3 evaluations of 2 variables)
        >>> unseen = surrogate.posterior(torch.tensor([[1, 1]]))
        >>> bool(unseen.mean > 0.3)  # the mean of what was evaluated: each change was better alone
        True
    """

    choices: Choices
    dictionary: Dictionary
    codes: Tensor  # (n, d)
    values: Tensor  # (n,)
    members: Members
    weights: Tensor  # (M,), sum to one
    scale: Tensor  # (M,), output variance of standardised values
    centre: Tensor
    spread: Tensor
    prior: Prior | None = None

    def __repr__(self) -> str:
        informed = "" if self.prior is None else f", prior of {len(self.prior.values)}"
        return f"Surrogate({len(self.values)} evaluations of {self.codes.shape[1]} variables{informed})"

    @classmethod
    def fit(
        cls, codes: Tensor, values: Tensor, choices: Choices | None = None, *, prior: Prior | None = None
    ) -> Surrogate:
        """Compute the members' weights from the evaluations.

        Shapes: codes ``(n, d)``, values ``(n,)``, n at least 1. Without ``choices`` codes are bits without layers.
        ``prior`` holds another study's results, which are used as far as the values support them (`transfer`).

        Raises:
            ValueError: if there is no evaluation, or a value is not finite.
        """
        codes, values = codes.double(), values.double()
        if not len(values) or not values.isfinite().all():
            raise ValueError("a surrogate needs at least one evaluation and finite values; drop the others")
        choices = choices or Choices.binary(codes.shape[1])
        centre, spread = values.mean(), spread_of(values)
        if not spread:
            spread = values.new_tensor(1.0)
        known = _Known(dictionary(choices), choices.contrasts(codes), (values - centre) / spread)
        members, picked = _weighed(known) if prior is None else _informed(known, prior)
        weights = members.log_evidence.softmax(0)
        best = weights.topk(min(MOST_MEMBERS, len(weights))).indices
        kept = best[weights[best] > NEGLIGIBLE * weights.max()]
        members, weights = members.chosen(kept), weights[kept] / weights[kept].sum()
        extended, unscaled = known.dictionary.with_pairs(picked), torch.ones_like(weights)
        fitted = cls(choices, extended, codes, values, members, weights, unscaled, centre, spread, prior)
        return replace(fitted, scale=fitted._scales())

    @cached_property
    def contrasts(self) -> Tensor:
        """Contrasts of all evaluations, those of the prior last: ``(n, D)``; all other properties have the same order."""
        known = self.codes if self.prior is None else torch.cat([self.codes, self.prior.codes])
        return self.choices.contrasts(known)

    @cached_property
    def standardised(self) -> Tensor:
        """Standardised values of all evaluations, ``(n,)``."""
        own = (self.values - self.centre) / self.spread
        return own if self.prior is None else torch.cat([own, self.prior.values])

    @cached_property
    def correlation(self) -> Tensor:
        """Correlation of the landscape with that of each evaluation, 1 except for the prior's: ``(M, n)``."""
        correlation = torch.ones(len(self.weights), len(self.contrasts), dtype=torch.float64)
        correlation[:, len(self.codes) :] = self.members.correlation[:, None]
        return correlation

    def _scales(self) -> Tensor:
        """Posterior mode of the output variance, from the evaluations that each member uses: ``(M,)``."""
        believed = self.correlation > 0
        target = self.standardised * believed
        quadratic = torch.einsum("mn,mnk,mk->m", target, self.inverse, target)
        return (SCALE_RATE + quadratic / 2) / (SCALE_SHAPE + believed.sum(1) / 2)

    @cached_property
    def _known_features(self) -> list[Tensor]:
        """Features of the evaluations, by component: ``(its features, n)`` each."""
        terms = self.dictionary.terms(self.contrasts)
        return [part.features(terms) for part in self.dictionary.parts]

    @cached_property
    def _variances(self) -> list[Tensor]:
        """Prior variances of the features, by component: ``(M, its features)`` each."""
        return list(self.members.features.split([part.count for part in self.dictionary.parts], 1))

    @cached_property
    def _shares(self) -> Tensor:
        """Prior variances of components with a single variance for all features, the two kernels last: ``(M, k)``."""
        alike = [own[:, 0] for part, own in zip(self.dictionary.parts, self._variances, strict=True) if part.alike]
        return torch.stack([*alike, self.members.pairs, self.members.isotropic], 1)

    @cached_property
    def _separate(self) -> tuple[Tensor, Tensor]:
        """Prior variances of all other features ``(M, S)``, and their products with the evaluations' features ``(M * n, S)``."""
        every = zip(self.dictionary.parts, self._variances, self._known_features, strict=True)
        separate = [(own, known) for part, own, known in every if not part.alike]
        variances = torch.cat([own for own, _ in separate], 1)
        return variances, (variances[:, None] * torch.cat([known for _, known in separate]).T).flatten(0, 1)

    @cached_property
    def inverse(self) -> Tensor:
        """Inverse of each member's covariance of the evaluations, noise included, before the output scale: ``(M, n, n)``."""
        gram, _ = self._of_points(self.contrasts)
        gram = related(gram, len(self.codes), self.members.correlation)
        gram.diagonal(dim1=1, dim2=2).add_(self.members.noise[:, None])
        return torch.cholesky_inverse(torch.linalg.cholesky(gram))

    @cached_property
    def _solution(self) -> Tensor:
        """Inverse times standardised values, ``(M, n)``."""
        return self.inverse @ self.standardised

    def _of_points(self, contrasts: Tensor) -> tuple[Tensor, Tensor]:
        """Covariances with the evaluations ``(M, n, m)``, as if all were of this landscape, and variances ``(M, m)``.

        Both before the output scale. Shapes: contrasts ``(m, D)``.
        """
        features = self.dictionary
        pairs = features.pair_kernel(self.contrasts, contrasts), features.pair_variance(contrasts)
        isotropic = features.isotropic_kernel(self.contrasts, contrasts), contrasts.new_ones(len(contrasts))
        cross, variance = self._of_terms(features.terms(contrasts), pairs, isotropic)
        return cross.add_(LEVEL), variance.add_(LEVEL)

    def _of_terms(self, terms: Tensor, *kernels: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The same as `_of_points` for weighted sums of terms. Computations shared by members are done once.

        Shapes: terms ``(T, k)``; for each of the two kernels without features, covariances ``(n, k)`` and variances ``(k,)``.
        """
        alike, separate = [], []
        for part, known in zip(self.dictionary.parts, self._known_features, strict=True):
            features = part.features(terms)
            if part.alike:
                alike.append((known.T @ features, features.square_().sum(0)))
            else:
                separate.append(features)
        covariances, variances = (torch.stack(numbers) for numbers in zip(*alike, *kernels, strict=True))
        own, weighted = self._separate
        features = torch.cat(separate)
        cross = (self._shares @ covariances.flatten(1)).view(len(weighted), len(features.T)).addmm_(weighted, features)
        return cross.view(len(own), *covariances.shape[1:]), self._shares @ variances + own @ features.square_()

    each = renamed("each", "member_posteriors")
    believing = renamed("believing", "fantasize")

    @torch.no_grad()
    def member_posteriors(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Every member's mean and sd in the units of the values. Shapes: codes ``(m, d)`` -> ``(M, m)`` twice."""
        parts = self.choices.contrasts(codes).split(AT_ONCE)
        posteriors = [self._conditional(*self._of_points(part), least=1e-12) for part in parts]
        mean, sd = (torch.cat(numbers, 1) for numbers in zip(*posteriors, strict=True))
        return self.centre + mean, sd

    def _conditional(self, cross: Tensor, prior: Tensor, *, least: float) -> tuple[Tensor, Tensor]:
        """Every member's mean and sd of linear functionals, without the centre added: ``(M, k)`` twice.

        Shapes: covariances with the evaluations ``(M, n, k)``, as if all were of this landscape, and prior variances
        ``(M, k)``, before the output scale.
        """
        if self.prior is not None:
            cross = cross * self.correlation[:, :, None]
        mean = (self._solution[:, None] @ cross).squeeze(1)
        explained = (self.inverse @ cross).mul_(cross).sum(1)
        variance = (prior - explained).clamp(min=least) * self.scale[:, None]
        return self.spread * mean, self.spread * variance.sqrt()

    def posterior(self, codes: Tensor) -> Posterior:
        """Posterior of the mixture. Shapes: codes ``(m, d)`` -> mean, sd ``(m,)``."""
        return Posterior(*_mixed(self.weights, *self.member_posteriors(codes)))

    @torch.no_grad()
    def draws(self, codes: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Samples of the latent function at ``codes`` ``(m, d)``, without noise: ``(count, m)``.

        Each sample is of one member, drawn by its weight.
        """
        contrasts = self.choices.contrasts(codes)
        features = self.dictionary.features(contrasts)
        member = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        standard = torch.randn(count, len(codes), dtype=torch.float64, generator=generator)
        cross = self._of_points(contrasts)[0] * self.correlation[:, :, None]
        mean, _ = self.member_posteriors(codes)
        samples = torch.empty(count, len(codes), dtype=torch.float64)
        for m in member.unique().tolist():
            own = (
                (features * self.members.features[m]) @ features.T
                + self.members.pairs[m] * self.dictionary.pair_kernel(contrasts, contrasts)
                + self.members.isotropic[m] * self.dictionary.isotropic_kernel(contrasts, contrasts)
                + LEVEL
                - cross[m].T @ self.inverse[m] @ cross[m]
            )
            values, directions = torch.linalg.eigh(own)
            root = directions * (values.clamp(min=0) * self.scale[m]).sqrt() * self.spread
            chosen = member == m
            samples[chosen] = mean[m] + standard[chosen] @ root.T
        return samples

    @property
    def noise_sd(self) -> Tensor:
        """Standard deviation of the noise in the units of the values, ``()``."""
        return self.spread * (self.weights @ (self.members.noise * self.scale)).sqrt()

    def fantasize(self, running: Tensor) -> Surrogate:
        """This process conditioned on ``running`` ``(p, d)`` at their posterior means; members and scales are unchanged."""
        if not len(running):
            return self
        codes = torch.cat([self.codes, running.double()])
        return replace(self, codes=codes, values=torch.cat([self.values, self.posterior(running).mean]))

    def leave_one_out(self) -> LeaveOneOut:
        """Leave-one-out predictions, exact for the fitted members and scales; members are reweighted without the value."""
        n = len(self.values)
        diagonal = self.inverse.diagonal(dim1=1, dim2=2)[:, :n]
        mean = self.values - self.spread * self._solution[:, :n] / diagonal  # (M, n)
        sd = self.spread * (self.scale[:, None] / diagonal).sqrt()
        density = torch.distributions.Normal(mean, sd).log_prob(self.values)
        log_weights = (self.weights.log()[:, None] - density).log_softmax(0)
        mixed = _mixed(log_weights.exp(), mean, sd)
        return LeaveOneOut(*mixed, float((log_weights + density).logsumexp(0).mean()))

    def main_effects(self) -> Effects:
        """Main effects of every choice against the first of its variable."""
        rows = self.choices.effect_rows()
        level, raised = self.dictionary.isotropic_weights()
        isotropic = rows * (level * raised)
        terms = torch.nn.functional.pad(rows.T, (0, 0, 0, len(self.dictionary.pairs)))
        nothing = terms.new_zeros(len(self.contrasts), len(rows)), terms.new_zeros(len(rows))
        alike = self.contrasts @ isotropic.T, (rows * isotropic).sum(1)
        return self._effects([(column,) for column in self.choices.columns], *self._of_terms(terms, nothing, alike))

    def pair_effects(self) -> Effects:
        """Interactions of every two choices of different variables: by how much one changes the other's effect."""
        columns = self.choices.columns
        pairs_of_columns = [
            (a, b) for a in range(len(columns)) for b in range(a + 1, len(columns)) if columns[a][0] != columns[b][0]
        ]
        names = [(columns[a], columns[b]) for a, b in pairs_of_columns]
        first, second = (torch.tensor([pair[side] for pair in pairs_of_columns], dtype=torch.long) for side in (0, 1))
        rows = self.choices.effect_rows()
        level, raised = self.dictionary.isotropic_weights()
        terms = torch.nn.functional.pad(self._pair_terms(rows[first], rows[second]), (0, 0, len(columns), 0))

        def products(of_rows: Tensor, weight: float) -> Tensor:
            """Weighted pairwise products of per-column numbers. Shapes: ``(..., D)`` -> ``(..., k)``."""
            return weight * of_rows[..., first] * of_rows[..., second]

        weight = self.dictionary.pair_weight
        pairs = products(self.contrasts @ rows.T, weight), products(rows.square().sum(1), weight)
        isotropic = products(self.contrasts @ (rows * raised).T, level), products(rows.square() @ raised, level)
        return self._effects(names, *self._of_terms(terms, pairs, isotropic))

    def _pair_terms(self, first: Tensor, second: Tensor) -> Tensor:
        """Interactions as sums of products. Shapes: column weights ``(k, D)`` twice -> ``(P, k)``."""
        (a, b), first, second = self.dictionary.pairs.T, first.T, second.T
        return first[a] * second[b] + first[b] * second[a]

    def _effects(self, names: Sequence[tuple[tuple[int, int], ...]], cross: Tensor, prior: Tensor) -> Effects:
        """Posterior of linear functionals. Shapes: covariances with the evaluations ``(M, n, k)``, variances ``(M, k)``."""
        return Effects(list(names), *_mixed(self.weights, *self._conditional(cross, prior, least=0.0)))


def _mixed(weights: Tensor, mean: Tensor, sd: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sd of a mixture of normals. Shapes: weights ``(M,)`` or ``(M, m)``, mean and sd ``(M, m)``."""
    weights = weights if weights.ndim == 2 else weights[:, None]
    centre = (weights * mean).sum(0)
    return centre, (weights * (sd.square() + (mean - centre).square())).sum(0).sqrt()


class _Known:
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
        return _log_evidence(related(covariance, self.own, correlation), self.target)

    def members(self, shares: Tensor, noise: Tensor, correlation: Tensor, log_evidence: Tensor) -> Members:
        """Members from their component shares ``(M, components)``, noise, correlation and log evidence, each ``(M,)``."""
        pairs, isotropic = self.names.index(PAIRS), self.names.index(ISOTROPIC)
        features = shares[:, :-2].repeat_interleave(self.counts, 1)
        return Members(features, shares[:, pairs], shares[:, isotropic], noise, correlation, log_evidence)


Pick = tuple[int, ...]  # a column, or two picked columns
Pairs = list[tuple[int, int]]


def _weighed(known: _Known) -> tuple[Members, Pairs]:
    """All members, dense and sparse, and the pairs that any of them picked."""
    sparse, picked = _sparse(known)
    return _joined([(_mixtures(known), []), (sparse, picked)])


def _informed(known: _Known, prior: Prior) -> tuple[Members, Pairs]:
    """Members that ignore the prior, which is modelled separately, and members that model both studies jointly."""
    features, choices = known.dictionary, known.dictionary.choices
    elsewhere = choices.contrasts(prior.codes)
    (other, _), (apart, picked) = (_weighed(one) for one in (_Known(features, elsewhere, prior.values), known))
    contrasts, target = torch.cat([known.contrasts, elsewhere]), torch.cat([known.target, prior.values])
    both = _Known(features, contrasts, target, own=known.own, correlations=CORRELATIONS)
    together, picked_together = _weighed(both)
    of_prior = other.log_evidence.logsumexp(0) - math.log(2) + _log_constant(len(prior.values))
    apart_weight = math.log(UNRELATED) + _log_constant(known.own) + of_prior
    together_weight = math.log(1 - UNRELATED) + _log_constant(len(target))
    apart = apart._replace(log_evidence=apart.log_evidence + apart_weight)
    together = together._replace(log_evidence=together.log_evidence + together_weight)
    return _joined([(apart, picked), (together, picked_together)])


@lru_cache(maxsize=8)
def _shares(components: int) -> Tensor:
    """The candidate mixtures, ``(mixtures, components)``: the same for every study."""
    drawn = np.random.default_rng(0).dirichlet(np.full(components, CONCENTRATION), size=MIXTURES)
    alone = ALONE * np.eye(components) + (1 - ALONE) / components
    return torch.from_numpy(np.concatenate([alone, drawn]))


def _mixtures(known: _Known) -> Members:
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


def _sparse(known: _Known) -> tuple[Members, Pairs]:
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
        best = _next_pick(covariance, candidates, target, [names.index(pick) for pick in picked])
        pick = names[best]
        if len(pick) == 1:
            partners = [other[0] for other in picked if len(other) == 1]
            names += [(other, pick[0]) for other in partners]
            candidates = torch.cat([candidates, columns[:, partners] * columns[:, [pick[0]]]], 1)
        picked.append(pick)
        covariance = covariance + SPARSE_SLAB * torch.outer(candidates[:, best], candidates[:, best])
        covariances.append(covariance)
    return picked, torch.stack(covariances)


def _next_pick(covariance: Tensor, columns: Tensor, target: Tensor, picked: list[int]) -> int:
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


def _log_evidence(covariance: Tensor, target: Tensor) -> Tensor:
    """Log density of the target, output scale integrated out, up to `_log_constant`. Shapes: ``(m, n, n)`` -> ``(m,)``."""
    lower = torch.linalg.cholesky(covariance)
    solved = torch.linalg.solve_triangular(lower, target[:, None].expand(len(lower), -1, 1), upper=False)
    rate = SCALE_RATE + solved.square().sum((1, 2)) / 2
    evidence: Tensor = -lower.diagonal(dim1=1, dim2=2).log().sum(1) - (SCALE_SHAPE + len(target) / 2) * rate.log()
    return evidence


def _log_sets(n: int, k: int) -> float:
    """Log of the binomial coefficient: the number of sets of k among n."""
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _log_constant(n: int) -> float:
    """The constant omitted by `_log_evidence`, which depends only on the number of values."""
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
