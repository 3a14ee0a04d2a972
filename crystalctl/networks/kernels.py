"""The Triton kernels of ``networks/fused.py``; importing this needs triton.

A program takes ``PAIRS`` consecutive pairs, whoever receives them, so that all have the same work
and nothing depends on how many neighbours an atom has. Pairs are sorted by receiver: within a tile
the sums over neighbours are a product with a matrix of zeros and ones, and a receiver whose pairs
begin in an earlier tile leaves its part in ``carry``, one row a tile, which ``mean_kernel`` adds.
Every sum has a fixed order and nothing is added atomically: the same input gives the same bits.

Budget on an H100 (227 KB of shared memory for a program, 64 K registers), bf16, H = 512, 64 pairs,
64 columns: the sums of the product are 64 x 512 fp32, 64 registers a thread of the 128 there are
with 16 warps, 128 of 255 with 8; one program runs at a time. Two stages of W (512 x 64) are 128 KB;
the slope of the outputs that the backward kernel multiplies with W (64 x 512) is another 64 KB. As
compiled for it by triton 3.7.1: 136 and 200 KB; no register is spilled forward, 40 to 56 a thread
are backward. W is 0.5 MB and what a layer's pairs read a few MB: both stay in the L2 cache (50 MB),
and the forward kernel is limited by what comes from there.

The interpreter (``TRITON_INTERPRET=1``) cannot multiply bf16 (it would take the bits for integers),
so there products are made in fp32, of operands rounded to bf16.

Symbols: E pairs, A receivers, R rows of the table, H outputs (N the next power of 2), M rows read
by a pair.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@triton.jit
def _silu(x):
    return x * tl.sigmoid(x)


@triton.jit
def _silu_slope(x):
    s = tl.sigmoid(x)
    return s * (1 + x * (1 - s))


@triton.jit
def _product(a, b, total, WIDE: tl.constexpr):
    """``total`` + a b, in fp32 on the arithmetic units or on tensor cores."""
    if WIDE:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="ieee")
    return tl.dot(a, b, total)


@triton.jit
def _gather(
    table, rows, weights, extra, first, pair, valid,
    H: tl.constexpr, M: tl.constexpr, GATHER: tl.constexpr, HAS_EXTRA: tl.constexpr,
):  # fmt: skip
    """Pre-activations of a tile: the weighted rows of its pairs, and ``extra``, to ``first``."""
    for start in range(0, H, GATHER):
        column = start + tl.arange(0, GATHER)
        inside = valid[:, None] & (column < H)[None, :]
        place = pair[:, None] * H + column[None, :]
        total = tl.zeros([pair.shape[0], GATHER], tl.float32)
        # Unrolled: the loads of all rows are under way at once.
        for m in tl.static_range(M):
            row = tl.load(rows + pair * M + m, mask=valid, other=0)
            weight = tl.load(weights + pair * M + m, mask=valid, other=0).to(tl.float32)
            read = tl.load(table + row[:, None] * H + column[None, :], mask=inside, other=0)
            total += weight[:, None] * read.to(tl.float32)
        if HAS_EXTRA:
            total += tl.load(extra + place, mask=inside, other=0).to(tl.float32)
        tl.store(first + place, total.to(first.dtype.element_ty), mask=inside)


@triton.jit
def _before_second_silu(
    first, active, w, bias, pair, valid,
    H: tl.constexpr, N: tl.constexpr, COLUMNS: tl.constexpr,
    KEEP: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """W silu(first) + bias of a tile, (PAIRS, N); the first activations go to ``active``."""
    out = tl.arange(0, N)
    total = tl.zeros([pair.shape[0], N], tl.float32)
    for start in range(0, H, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = valid[:, None] & (column < H)[None, :]
        place = pair[:, None] * H + column[None, :]
        x = tl.load(first + place, mask=inside, other=0).to(tl.float32)
        a = _silu(x).to(w.dtype.element_ty)
        if KEEP:
            tl.store(active + place, a, mask=inside)
        used = (column < H)[:, None] & (out < H)[None, :]
        b = tl.load(w + out[None, :] * H + column[:, None], mask=used, other=0)
        total = _product(a, b, total, WIDE)
    return total + tl.load(bias + out, mask=out < H, other=0).to(tl.float32)[None, :]


@triton.jit(do_not_specialize=["n_pairs"])
def message_kernel(
    table, rows, weights, extra, w, bias, receiver, first, sums, carry, n_pairs,
    H: tl.constexpr, N: tl.constexpr, M: tl.constexpr, PAIRS: tl.constexpr,
    COLUMNS: tl.constexpr, GATHER: tl.constexpr, HAS_EXTRA: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Sums of the messages of a tile over neighbours, to ``sums`` (A, H) and ``carry`` (tiles, H).

    ``first`` (E, H) is left for the backward kernel.
    """
    tile = tl.program_id(0).to(tl.int64)
    pair = tile * PAIRS + tl.arange(0, PAIRS)
    valid = pair < n_pairs
    _gather(table, rows, weights, extra, first, pair, valid, H, M, GATHER, HAS_EXTRA)
    # What other threads of this program wrote is read below.
    tl.debug_barrier()
    pre = _before_second_silu(first, first, w, bias, pair, valid, H, N, COLUMNS, False, WIDE)
    message = tl.where(valid[:, None], _silu(pre), 0.0).to(w.dtype.element_ty)
    end = tl.load(receiver + pair, mask=valid, other=-1)
    lowest = tl.load(receiver + tile * PAIRS)
    number = tl.arange(0, PAIRS)
    member = tl.where(end[None, :] - lowest == number[:, None], 1.0, 0.0).to(w.dtype.element_ty)
    total = _product(member, message, tl.zeros([PAIRS, N], tl.float32), WIDE)
    before = tl.load(receiver + tile * PAIRS - 1, mask=tile > 0, other=-1)
    last = tl.load(receiver + tl.minimum((tile + 1) * PAIRS, n_pairs) - 1)
    carried = (number == 0) & (before == lowest)
    own = (number <= last - lowest) & (carried == 0)
    out = tl.arange(0, N)
    place = (lowest + number)[:, None] * H + out[None, :]
    tl.store(sums + place, total, mask=own[:, None] & (out < H)[None, :])
    place = (tile + 0 * number)[:, None] * H + out[None, :]
    tl.store(carry + place, total, mask=carried[:, None] & (out < H)[None, :])


@triton.jit
def mean_kernel(
    sums, carry, begin, degree, out, H: tl.constexpr, N: tl.constexpr, PAIRS: tl.constexpr
):
    """The mean of one receiver, whose ``degree`` pairs start at ``begin``, from all its tiles."""
    row = tl.program_id(0).to(tl.int64)
    count, start = tl.load(degree + row), tl.load(begin + row)
    column = tl.arange(0, N)
    inside = column < H
    total = tl.load(sums + row * H + column, mask=inside, other=0)
    for tile in range(start // PAIRS + 1, (start + count - 1) // PAIRS + 1):
        total += tl.load(carry + tile * H + column, mask=inside, other=0)
    tl.store(out + row * H + column, total / count.to(tl.float32), mask=inside)


@triton.jit(do_not_specialize=["n_pairs"])
def slope_kernel(
    first, w, bias, receiver, grad, active, slope, first_grad, bias_grad, n_pairs,
    H: tl.constexpr, N: tl.constexpr, PAIRS: tl.constexpr, COLUMNS: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile's pairs; ``grad`` (A, H) is that of each of a receiver's messages.

    ``first_grad`` (E, H) of the pre-activations; ``active`` and ``slope`` (E, H), whose product is
    the gradient of W; ``bias_grad`` (tiles, H).
    """
    tile = tl.program_id(0).to(tl.int64)
    pair = tile * PAIRS + tl.arange(0, PAIRS)
    valid = pair < n_pairs
    pre = _before_second_silu(first, active, w, bias, pair, valid, H, N, COLUMNS, True, WIDE)
    out = tl.arange(0, N)
    inside = valid[:, None] & (out < H)[None, :]
    end = tl.load(receiver + pair, mask=valid, other=0)
    arriving = tl.load(grad + end[:, None] * H + out[None, :], mask=inside, other=0)
    exact = arriving.to(tl.float32) * _silu_slope(pre)
    tl.store(bias_grad + tile * H + out, tl.sum(exact, 0), mask=out < H)
    rounded = exact.to(w.dtype.element_ty)
    tl.store(slope + pair[:, None] * H + out[None, :], rounded, mask=inside)
    for start in range(0, H, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        used = (out < H)[:, None] & (column < H)[None, :]
        b = tl.load(w + out[:, None] * H + column[None, :], mask=used, other=0)
        back = _product(rounded, b, tl.zeros([PAIRS, COLUMNS], tl.float32), WIDE)
        present = valid[:, None] & (column < H)[None, :]
        place = pair[:, None] * H + column[None, :]
        x = tl.load(first + place, mask=present, other=0).to(tl.float32)
        back *= _silu_slope(x)
        tl.store(first_grad + place, back.to(first_grad.dtype.element_ty), mask=present)


@triton.jit
def table_kernel(
    first_grad, pairs, weights, bound, out, H: tl.constexpr, N: tl.constexpr, ENTRIES: tl.constexpr
):
    """Gradient of one table row: the sum over the entries that read it, ``ENTRIES`` at a time."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, N)
    total = tl.zeros([N], tl.float32)
    stop = tl.load(bound + row + 1)
    for start in range(tl.load(bound + row), stop, ENTRIES):
        entry = start + tl.arange(0, ENTRIES)
        valid = entry < stop
        pair = tl.load(pairs + entry, mask=valid, other=0).to(tl.int64)
        weight = tl.load(weights + entry, mask=valid, other=0).to(tl.float32)
        inside = valid[:, None] & (column < H)[None, :]
        read = tl.load(first_grad + pair[:, None] * H + column[None, :], mask=inside, other=0)
        total += tl.sum(weight[:, None] * read.to(tl.float32), 0)
    tl.store(out + row * H + column, total, mask=column < H)
