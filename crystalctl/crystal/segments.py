"""Sums and means over packed rows: the only place that scatters."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from crystalctl.crystal.batch import Layout


def crystal_mean(rows: Tensor, layout: Layout) -> Tensor:
    """Mean over the atoms of each crystal: (A, H) -> (C, H)."""
    out = rows.new_zeros(layout.n_crystals, *rows.shape[1:])
    out.index_add_(0, layout.crystal_idx, rows)
    return out / layout.n_atoms.to(rows.dtype)[:, None]


class _NeighbourMean(torch.autograd.Function):
    """Mean of consecutive rows. The built-in backward scatters; a gather is all that is needed."""

    @staticmethod
    def forward(ctx: Any, messages: Tensor, degree: Tensor, receiver: Tensor) -> Tensor:
        ctx.save_for_backward(degree, receiver)
        first = F.pad(torch.cumsum(degree, 0), (1, 0))
        rows = torch.arange(messages.shape[0], device=messages.device)
        return F.embedding_bag(rows, messages, first, mode="mean", include_last_offset=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        degree, receiver = ctx.saved_tensors
        return (grad / degree.to(grad.dtype)[:, None])[receiver], None, None


class Graph(Protocol):
    """Pairs sorted by receiver: a ``Layout`` with all its pairs of atoms, or ``Sites``."""

    @property
    def edges(self) -> tuple[Tensor, Tensor]: ...

    @property
    def degree(self) -> Tensor: ...

    @property
    def common_degree(self) -> int | None: ...


def neighbour_mean(messages: Tensor, graph: Graph) -> Tensor:
    """Mean over the neighbours of each receiver, self included: (E, H) -> (A, H).

    ``messages`` are in the order of ``graph.edges``.
    """
    if graph.common_degree is not None:
        return messages.view(-1, graph.common_degree, messages.shape[1]).mean(1)
    apply: Any = _NeighbourMean.apply
    out: Tensor = apply(messages, graph.degree, graph.edges[0])
    return out
