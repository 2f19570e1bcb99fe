"""Trained parameters of K candidates in one module: each with a leading K, over rows that stand candidate by candidate.

A module of this kind computes the same from plain parameters and from stacked ones; which they are, their number of
dimensions tells. Rows are ``(K * B, ...)``, those of the first candidate first. Frozen parameters have no K: all rows
read the same. `StackedParameters` makes a model's parameters stacked, one candidate's values a line of one matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ALIGNED = 32  # numbers: 128 bytes, which compiled kernels read at once and count on


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x W^T + b`` in the type of ``x``; of stacked parameters each candidate's rows read its own.

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
    """Rows of a table, or of each candidate's own.

    Shapes: table ``(n, width)`` or ``(K, n, width)``, places ``(K * B, ...)`` -> ``(K * B, ..., width)``.
    """
    if table.dim() == 3:
        k, n, width = table.shape
        own = torch.arange(k, device=places.device).repeat_interleave(len(places) // k) * n
        table, places = table.reshape(k * n, width), places + own.view(-1, *[1] * (places.dim() - 1))
    return take(table, places)


def take(table: Tensor, places: Tensor) -> Tensor:
    """Rows ``(..., width)`` of a table ``(n, width)``.

    The backward adds in a fixed order on a CPU; on CUDA it adds where the rows stand, without sorting them first.
    """
    if table.is_cuda:
        return table.index_select(0, places.reshape(-1)).view(*places.shape, table.shape[-1])
    return F.embedding(places, table)


def gather_tokens(hidden: Tensor, positions: Tensor) -> Tensor:
    """Some tokens of each row. Shapes: hidden ``(batch, m, width)``, positions ``(batch, n)`` -> ``(batch, n, width)``."""
    batch, m, width = hidden.shape
    rows = torch.arange(batch, device=hidden.device)[:, None] * m
    return take(hidden.reshape(batch * m, width), positions + rows)


def per_row(values: Tensor, rows: int) -> Tensor:
    """A candidate's numbers at each of its rows: ``(K, ...)`` -> ``(rows, ...)``."""
    return values.repeat_interleave(rows // len(values), dim=0)


class Linear(nn.Linear):
    """A linear map whose parameters may be stacked."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Table(nn.Embedding):
    """A table of vectors that may be stacked."""

    def forward(self, places: Tensor) -> Tensor:
        return lookup(self.weight, places)


class Flat:
    """The trained parameters of a model as one line of numbers, and back.

    Args:
        model: its trained parameters, each once, however many modules share it.

    Attributes:
        shapes: by name.
        size: of a line; each parameter begins at a multiple of `ALIGNED`, with zeros before it.
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
        """Tensors of the parameters' names and shapes as ``(size,)``."""
        return self.joined([named[name].detach()[None] for name in self.shapes])[0] if self.shapes else torch.zeros(0)

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """A tensor with a leading K of every parameter, in their order, as ``(K, size)``."""
        k = len(parts[0])
        pieces = []
        for part, gap in zip(parts, self.gaps, strict=True):
            pieces.append(part.reshape(k, -1))
            if gap:
                pieces.append(part.new_zeros(k, gap))
        return torch.cat(pieces, dim=1)

    def named(self, line: Tensor) -> dict[str, Tensor]:
        """What `line` undoes; of ``(K, size)`` with a leading K. The parts share the line's memory."""
        found, start = {}, 0
        for (name, shape), count, gap in zip(self.shapes.items(), self.counts, self.gaps, strict=True):
            found[name] = line.narrow(-1, start, count).view((*line.shape[:-1], *shape))
            start += count + gap
        return found


class StackedParameters:
    """The trained parameters of K candidates of one model as one matrix, a line a candidate.

    The model's own parameters become views of it: plain ones for K = 1, with a leading K otherwise. What is read and
    written here is what the model computes with.

    Args:
        model: its trained parameters are replaced in place.
        flat: of them.
        lines: every candidate's values, each ``(size,)``.

    Attributes:
        matrix: ``(K, size)``, whose moments an optimiser keeps.
    """

    def __init__(self, model: nn.Module, flat: Flat, lines: Sequence[Tensor]) -> None:
        self.flat, self.matrix = flat, torch.stack(list(lines))
        self.views: dict[str, nn.Parameter] = {}
        for name, view in flat.named(self.matrix[0] if len(lines) == 1 else self.matrix).items():
            self.views[name] = nn.Parameter(view)
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, self.views[name])

    def gradient(self, loss: Tensor) -> Tensor:
        """Of a loss that is summed over candidates: ``(K, size)``; zero where it does not depend on a parameter."""
        found = torch.autograd.grad(loss, list(self.views.values()), allow_unused=True, materialize_grads=True)
        return self.flat.joined([part[None] for part in found] if len(self.matrix) == 1 else found)
