"""The surrogate's dictionary as a GPyTorch kernel, for BoTorch models that learn one mixture by maximum a posteriori.

`Surrogate` averages over mixtures and needs no optimiser; use this kernel where a full BoTorch model is needed, for instance
with several outputs or another acquisition.
"""

from __future__ import annotations

from typing import Any

import torch
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import Kernel
from gpytorch.priors import GammaPrior
from torch import Tensor

from dasearch.bayes.choices import Choices
from dasearch.bayes.features import ISOTROPIC, PAIRS, dictionary

VARIANCE_PRIOR = (0.35, 2.0)  # gamma: most components near zero, like the surrogate's own mixtures
LEAST = 1e-8  # variance of a component; the prior's density is unbounded at 0, so the mode needs a lower bound


class LayeredKernel(Kernel):  # type: ignore[misc]  # GPyTorch is not typed for mypy
    """A kernel with a learned variance for each component of a space's dictionary.

    Shapes: codes ``(..., n, d)``, ``(..., m, d)`` -> ``(..., n, m)``.

    Examples:
        >>> import torch
        >>> from dasearch.bayes import Choices, LayeredKernel
        >>> kernel = LayeredKernel(Choices.named({"layer01.site": 2, "layer02.site": 2}))
        >>> codes = torch.tensor([[0, 0], [0, 1], [1, 1]])
        >>> kernel(codes, codes).to_dense().shape
        torch.Size([3, 3])
    """

    def __init__(self, choices: Choices) -> None:
        super().__init__()
        self.choices, self.dictionary = choices, dictionary(choices)
        count = len(self.dictionary.names)
        self.register_parameter("raw_variances", torch.nn.Parameter(torch.zeros(count, dtype=torch.float64)))
        self.register_constraint("raw_variances", GreaterThan(LEAST))
        self.register_prior(
            "variance_prior",
            GammaPrior(*VARIANCE_PRIOR),
            lambda kernel: kernel.variances,
            lambda kernel, v: kernel.set(v),
        )
        self.set(torch.full((count,), 1 / count, dtype=torch.float64))

    @property
    def variances(self) -> Tensor:
        """Variance of each component, in the order of ``dictionary.names``."""
        variances: Tensor = self.raw_variances_constraint.transform(self.raw_variances)
        return variances

    def set(self, variances: Tensor) -> None:
        """Set the components' variances, each above `LEAST`, as a starting point."""
        self.initialize(raw_variances=self.raw_variances_constraint.inverse_transform(variances))

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **_: Any) -> Tensor:
        """Covariances of points, with GPyTorch's signature; shapes as of the class, or the diagonal if ``diag``."""
        if diag:
            own: Tensor = self.forward(x1[..., None, :], x2[..., None, :])[..., 0, 0]
            return own
        a, b = self.choices.contrasts(x1), self.choices.contrasts(x2)
        by_name = dict(zip(self.dictionary.names, self.variances, strict=True))
        of_features = torch.stack([by_name[component] for component in self.dictionary.component])
        covariance: Tensor = (self.dictionary.features(a) * of_features) @ self.dictionary.features(b).mT
        covariance = covariance + by_name[PAIRS] * self.dictionary.pair_kernel(a, b)
        covariance = covariance + by_name[ISOTROPIC] * self.dictionary.isotropic_kernel(a, b)
        return covariance
