"""The first linear layer of a pair network as one sparse product: pre-activations in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Incidence:
    """A sparse (E, R) matrix with ``m`` entries in each row, shared by all layers of a call.

    ``rows`` (E, m) int64 column numbers, ``weights`` (E, m).
    """

    rows: Tensor
    weights: Tensor
    n_rows: int

    @cached_property
    def transposed(self) -> tuple[Tensor, Tensor, Tensor]:
        """The entries sorted by column: pair numbers, weights, start of each column (R + 1,)."""
        column, order = torch.sort(self.rows.flatten().to(torch.int32))
        bounds = torch.arange(self.n_rows + 1, device=column.device, dtype=torch.int32)
        pairs = torch.div(order, self.rows.shape[1], rounding_mode="floor")
        return pairs, self.weights.flatten()[order], torch.searchsorted(column, bounds)

    def __matmul__(self, table: Tensor) -> Tensor:
        """Product with a dense ``table`` (R, H), differentiable in table and weights: (E, H)."""
        apply: Any = _Product.apply
        out: Tensor = apply(table, self.weights, self)
        return out


class _Product(torch.autograd.Function):
    """Forward and backward are both gathers: the backward one runs over the transposed entries."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, weights: Tensor, incidence: Incidence) -> Tensor:
        ctx.incidence = incidence
        ctx.weight_dtype = weights.dtype
        # The table only where it is needed: training asks for no gradient of the weights.
        ctx.save_for_backward(*([table] if ctx.needs_input_grad[1] else []))
        weights = weights.to(table.dtype)
        return F.embedding_bag(incidence.rows, table, mode="sum", per_sample_weights=weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        pairs, weights, first = ctx.incidence.transposed
        table_grad = F.embedding_bag(
            pairs,
            grad.contiguous(),
            first,
            mode="sum",
            per_sample_weights=weights.to(grad.dtype),
            include_last_offset=True,
        )
        weight_grad = None
        if ctx.needs_input_grad[1]:
            (table,) = ctx.saved_tensors
            # Entry by entry: all at once would need m times the memory of the pre-activations.
            columns = ctx.incidence.rows.unbind(1)
            entries = [(table[rows].to(grad.dtype) * grad).sum(1) for rows in columns]
            weight_grad = torch.stack(entries, 1).to(ctx.weight_dtype)
        return table_grad, weight_grad, None
