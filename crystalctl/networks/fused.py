"""The messages of all pairs in one kernel: gather, add, SiLU, GEMM, SiLU, mean over neighbours.

The plain form is in ``networks/cspnet.py``, and runs where this does not: on a CPU, without triton,
in other precisions, and where someone asks for gradients of the pair vectors. Of what a pair needs
only its pre-activations (H numbers) are kept for the backward pass: to gather them again would cost
ten times the traffic. All else is computed again.

Symbols: E pairs, A receivers, R rows of the table, H outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from crystalctl.crystal.segments import Graph
from crystalctl.networks.choice import Choice
from crystalctl.networks.pairs import Incidence

_ENTRIES = 16
"""Entries of a table row that are added up at once."""


@dataclass(frozen=True)
class Tile:
    """Sizes of a program, all powers of 2 and at least 16, and how it runs.

    ``pairs`` it takes; ``columns`` of a step of the product; ``gather`` columns gathered at once.
    """

    pairs: int
    columns: int
    gather: int
    warps: int
    stages: int


TILES = {
    torch.bfloat16: (Tile(64, 64, 128, warps=16, stages=2), Tile(64, 64, 128, warps=8, stages=2)),
    torch.float32: (Tile(32, 32, 64, warps=8, stages=2),),
}
"""What is tried for operands of a type; ``networks/kernels.py`` has the budget."""
TOLERANCE = {torch.bfloat16: 3e-2, torch.float32: 1e-4}
"""Difference to the plain form that is rounding, as a part of the norm."""


@dataclass(frozen=True)
class Work:
    """What the messages are made of.

    ``ends`` (R, H): table, receivers and senders; ``extra`` (E, H) or None is added to what
    ``pairs`` read of them; ``weight`` (H, H) and ``bias`` (H,) of the second Linear.
    """

    ends: Tensor
    extra: Tensor | None
    weight: Tensor
    bias: Tensor
    pairs: Incidence
    graph: Graph

    @property
    def dtype(self) -> torch.dtype:
        """Of the operands: that of autocast where it is on."""
        kind = self.ends.device.type
        if torch.is_autocast_enabled(kind):
            return torch.get_autocast_dtype(kind)
        return self.ends.dtype

    @property
    def learns(self) -> bool:
        """Whether gradients will be asked for."""
        return torch.is_grad_enabled() and self.ends.requires_grad


def best_tile(work: Work, plain: Callable[[Work], Tensor], choice: Choice) -> Tile | None:
    """The tile with which ``fused_messages`` does ``work`` fastest; None: ``plain`` is faster.

    Tried once for each kind of work, sizes within a factor of 2 being one kind: later calls neither
    try nor wait for the device. None where the kernels cannot do it.
    """
    dtype = work.dtype
    if dtype not in TILES or work.pairs.weights.requires_grad:
        return None
    size = len(work.pairs.rows).bit_length()
    kind = (work.learns, dtype, work.ends.shape[1], work.extra is None, size)
    ways = {tile: _trial(work, partial(fused_messages, tile=tile)) for tile in TILES[dtype]}
    return choice.pick(kind, _trial(work, plain), ways, tolerance=TOLERANCE[dtype])


def _trial(work: Work, messages: Callable[[Work], Tensor]) -> Callable[[], Sequence[Tensor]]:
    """The messages, and with them all gradients of half their square if they will be needed."""

    def run() -> Sequence[Tensor]:
        if not work.learns:
            return [messages(work)]
        ends = work.ends.detach().requires_grad_()
        extra = None if work.extra is None else work.extra.detach().requires_grad_()
        leaves = [x for x in (ends, extra, work.weight, work.bias) if x is not None]
        out = messages(replace(work, ends=ends, extra=extra))
        found = torch.autograd.grad(out, [x for x in leaves if x.requires_grad], out.detach())
        return [out.detach(), *found]

    return run


def fused_messages(work: Work, tile: Tile) -> Tensor:
    """Mean messages (A, H) in float32, differentiable in all tensors of ``work`` but the pairs."""
    apply: Any = _Messages.apply
    out: Tensor = apply(work.ends, work.extra, work.weight, work.bias, work, tile, work.dtype)
    return out


class _Messages(torch.autograd.Function):
    """Operands are rounded to ``dtype`` here, so that gradients come back as they were given."""

    @staticmethod
    def forward(
        ctx: Any,
        ends: Tensor,
        extra: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        work: Work,
        tile: Tile,
        dtype: torch.dtype,
    ) -> Tensor:
        from crystalctl.networks import kernels

        pairs, (receiver, _), degree = work.pairs, work.graph.edges, work.graph.degree
        (n_pairs, m), hidden = pairs.rows.shape, ends.shape[1]
        weight = weight.to(dtype).contiguous()
        added = None if extra is None else extra.to(dtype).contiguous()
        first = ends.new_empty(n_pairs, hidden, dtype=dtype)
        n_tiles = -(-n_pairs // tile.pairs)
        out = ends.new_empty(len(degree), hidden, dtype=torch.float32)
        sums = torch.empty_like(out)
        carry = sums.new_empty(n_tiles, hidden)
        sizes = _sizes(hidden, tile)
        with torch.cuda.device_of(ends):
            kernels.message_kernel[(n_tiles,)](
                ends.to(dtype).contiguous(), pairs.rows, pairs.weights, added, weight, bias,
                receiver, first, sums, carry, n_pairs, M=m, COLUMNS=tile.columns,
                GATHER=tile.gather, HAS_EXTRA=added is not None, **sizes, **_running(tile, dtype),
            )  # fmt: skip
            begin = torch.cumsum(degree, 0) - degree
            kernels.mean_kernel[(len(degree),)](sums, carry, begin, degree, out, **sizes)
        ctx.save_for_backward(first, weight, bias)
        ctx.pairs, ctx.graph, ctx.tile, ctx.rows = pairs, work.graph, tile, len(ends)
        ctx.dtypes = [None if x is None else x.dtype for x in (ends, extra, work.weight)]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        from crystalctl.networks import kernels

        first, weight, bias = ctx.saved_tensors
        graph, tile, (n_pairs, hidden) = ctx.graph, ctx.tile, first.shape
        each = (grad / graph.degree.to(grad.dtype)[:, None]).to(first.dtype).contiguous()
        active, slope, first_grad = (torch.empty_like(first) for _ in range(3))
        bias_grad = grad.new_empty(-(-n_pairs // tile.pairs), hidden)
        sizes = _sizes(hidden, tile)
        with torch.cuda.device_of(first):
            kernels.slope_kernel[(len(bias_grad),)](
                first, weight, bias, graph.edges[0], each, active, slope, first_grad, bias_grad,
                n_pairs, COLUMNS=tile.columns, **sizes, **_running(tile, first.dtype),
            )  # fmt: skip
            pairs, weights, bound = ctx.pairs.transposed
            table_grad = grad.new_empty(ctx.rows, hidden)
            kernels.table_kernel[(ctx.rows,)](
                first_grad, pairs, weights, bound, table_grad,
                H=hidden, N=sizes["N"], ENTRIES=_ENTRIES,
            )  # fmt: skip
        ends_dtype, extra_dtype, weight_dtype = ctx.dtypes
        return (
            table_grad.to(ends_dtype),
            None if extra_dtype is None else first_grad.to(extra_dtype),
            (slope.t() @ active).to(weight_dtype),
            bias_grad.sum(0).to(bias.dtype),
            None,
            None,
            None,
        )


def _sizes(hidden: int, tile: Tile) -> dict[str, int]:
    return {"H": hidden, "N": max(16, 1 << (hidden - 1).bit_length()), "PAIRS": tile.pairs}


def _running(tile: Tile, dtype: torch.dtype) -> dict[str, Any]:
    from crystalctl.networks import kernels

    wide = dtype == torch.float32 or kernels.INTERPRETED
    return {"WIDE": wide, "num_warps": tile.warps, "num_stages": tile.stages}
