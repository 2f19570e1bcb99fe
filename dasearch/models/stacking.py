"""Trained parameters of K candidates in one module: each with a leading K, over rows ordered by candidate.

A stackable module computes the same from plain and from stacked parameters, which it distinguishes by their number of
dimensions. Rows are ``(K * B, ...)``, those of the first candidate first. Frozen parameters have no K: all rows read the same.
`StackedParameters` stacks a model's parameters, with one row of a matrix per candidate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ALIGNED = 32  # float32 numbers: 128 bytes, the alignment that compiled kernels assume


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x W^T + b`` in the dtype of ``x``; with stacked parameters, each candidate's rows use its own.

    Shapes: x ``(K * B, ..., in)``, weight ``(out, in)`` or ``(K, out, in)``, bias ``(out,)`` or ``(K, out)``
    -> ``(K * B, ..., out)``.
    """
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    rows = x.reshape(len(weight), -1, x.shape[-1])
    turned = weight.transpose(1, 2)
    out = torch.bmm(rows, turned) if bias is None else torch.baddbmm(bias[:, None], rows, turned)
    return out.view(*x.shape[:-1], out.shape[-1])


def lookup(table: Tensor, places: Tensor) -> Tensor:
    """Rows of a table, or of each candidate's own table.

    Shapes: table ``(n, width)`` or ``(K, n, width)``, places ``(K * B, ...)`` -> ``(K * B, ..., width)``.
    """
    if table.dim() == 3:
        k, n, width = table.shape
        own = torch.arange(k, device=places.device).repeat_interleave(len(places) // k) * n
        table, places = table.reshape(k * n, width), places + own.view(-1, *[1] * (places.dim() - 1))
    return take(table, places)


def take(table: Tensor, places: Tensor) -> Tensor:
    """Rows ``(..., width)`` of a table ``(n, width)``.

    The backward pass accumulates in a fixed order on a CPU; on CUDA it accumulates without sorting rows first.
    """
    if table.is_cuda:
        return table.index_select(0, places.reshape(-1)).view(*places.shape, table.shape[-1])
    return F.embedding(places, table)


def gather_tokens(hidden: Tensor, positions: Tensor) -> Tensor:
    """Selected tokens of each row. Shapes: hidden ``(batch, m, width)``, positions ``(batch, n)`` -> ``(batch, n, width)``."""
    batch, m, width = hidden.shape
    rows = torch.arange(batch, device=hidden.device)[:, None] * m
    return take(hidden.reshape(batch * m, width), positions + rows)


def per_row(values: Tensor, rows: int) -> Tensor:
    """Each candidate's numbers repeated for its rows: ``(K, ...)`` -> ``(rows, ...)``."""
    return values.repeat_interleave(rows // len(values), dim=0)


class Linear(nn.Linear):
    """A linear map whose parameters may be stacked."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply `linear` with the module's parameters."""
        return linear(x, self.weight, self.bias)


class Table(nn.Embedding):
    """An embedding table that may be stacked."""

    def forward(self, places: Tensor) -> Tensor:
        """Apply `lookup` with the module's table."""
        return lookup(self.weight, places)


class Flat:
    """Conversion of a model's trained parameters to and from one flat vector.

    Args:
        model: the model; parameters shared by several modules are included once.

    Attributes:
        shapes: the parameters' shapes, by name.
        size: length of the vector; each parameter begins at a multiple of `ALIGNED`, padded with zeros.
    """

    def __init__(self, model: nn.Module) -> None:
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.shapes = {name: parameter.shape for name, parameter in trained.items()}
        self.counts = [parameter.numel() for parameter in trained.values()]
        self.gaps = [-count % ALIGNED for count in self.counts]
        self.size = sum(self.counts) + sum(self.gaps)

    def __len__(self) -> int:
        """How many numbers are trained."""
        return sum(self.counts)

    def line(self, named: Mapping[str, Tensor]) -> Tensor:
        """The flat vector ``(size,)`` of tensors with the parameters' names and shapes."""
        return self.joined([named[name].detach()[None] for name in self.shapes])[0] if self.shapes else torch.zeros(0)

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """The matrix ``(K, size)`` of tensors with a leading K, one for every parameter in order."""
        k = len(parts[0])
        pieces = []
        for part, gap in zip(parts, self.gaps, strict=True):
            pieces.append(part.reshape(k, -1))
            if gap:
                pieces.append(part.new_zeros(k, gap))
        return torch.cat(pieces, dim=1)

    def named(self, line: Tensor) -> dict[str, Tensor]:
        """The inverse of `line`; tensors with a leading K for ``(K, size)``. They are views of the vector."""
        tensors, start = {}, 0
        for (name, shape), count, gap in zip(self.shapes.items(), self.counts, self.gaps, strict=True):
            tensors[name] = line.narrow(-1, start, count).view((*line.shape[:-1], *shape))
            start += count + gap
        return tensors


class StackedParameters:
    """The trained parameters of K candidates of one model as one matrix, with one row per candidate.

    The model's own parameters become views of it: plain ones for K = 1, with a leading K otherwise. Reading and writing the
    matrix therefore reads and writes the parameters that the model computes with.

    Args:
        model: the model, whose trained parameters are replaced in place.
        flat: the conversion of its parameters.
        lines: every candidate's values, each ``(size,)``.

    Attributes:
        matrix: ``(K, size)``, the parameter that an optimiser updates.
    """

    def __init__(self, model: nn.Module, flat: Flat, lines: Sequence[Tensor]) -> None:
        self.flat, self.matrix = flat, torch.stack(list(lines))
        self.views: dict[str, nn.Parameter] = {}
        for name, view in flat.named(self.matrix[0] if len(lines) == 1 else self.matrix).items():
            self.views[name] = nn.Parameter(view)
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, self.views[name])

    def gradient(self, loss: Tensor) -> Tensor:
        """Gradient of a loss summed over candidates: ``(K, size)``; zero for parameters that it does not depend on."""
        gradients = torch.autograd.grad(loss, list(self.views.values()), allow_unused=True, materialize_grads=True)
        return self.flat.joined([part[None] for part in gradients] if len(self.matrix) == 1 else gradients)
