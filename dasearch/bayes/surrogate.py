"""A Gaussian process over categorical choices that learns which structure the landscape has.

The posterior of a mixture of kernels, the members of `averaging`, and the effects of choices that follow from it. There is
no optimisation and no randomness in a fit, so it is reproducible bit for bit. Use it for up to a few hundred evaluations.
Float64 throughout.

Sources: leave-one-out formulas, Rasmussen & Williams 2006, sec. 5.4.2; the kriging believer for running trials, Ginsbourger
et al. 2010.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from dasearch.bayes.averaging import (
    LEVEL,
    SCALE_RATE,
    SCALE_SHAPE,
    Evaluations,
    Members,
    informed,
    likeliest,
    weighed,
)
from dasearch.bayes.choices import Choices
from dasearch.bayes.features import Dictionary, dictionary
from dasearch.bayes.transfer import Prior, related, spread_of
from dasearch.deprecation import renamed

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
        known = Evaluations(dictionary(choices), choices.contrasts(codes), (values - centre) / spread)
        members, picked = weighed(known) if prior is None else informed(known, prior)
        members, weights = likeliest(members)
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
