"""One seeded random stream per crystal: a crystal does not depend on who shares its batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy

import torch
from torch import Tensor

from crystalctl.crystal.batch import Layout, sent

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch shifts arithmetically)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele et al. 2014): a bijection of 64-bit integers."""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


@contextmanager
def seeded(noise: NoiseSource, layout: Layout) -> Iterator[None]:
    """What torch draws itself, such as dropout, follows ``noise`` here and leaves no trace."""
    with torch.random.fork_rng([]):
        torch.manual_seed(int(noise.integers(layout, 2**31)[0]))
        yield


class NoiseSource:
    """Counter-based random numbers: value = hash(seed, stream of the crystal, draw, position).

    ``stream`` is (C,) int64, one number per crystal that names it for good (a dataset row, a sample
    number). There is no state but the draw counter, so a run continues exactly from any draw, and
    the same stream gives the same numbers on any device and in any batch.
    """

    def __init__(self, seed: int, stream: Tensor) -> None:
        self.stream = stream.long()
        self.draw = 0
        # Not torch.tensor: it would make the number on the host, and wait for the device.
        start = torch.full((), seed, dtype=torch.int64, device=stream.device)
        self._key = _mix(_mix(start * _GOLDEN) + self.stream * _GOLDEN)

    def of(self, which: Sequence[int]) -> NoiseSource:
        """The source of the crystals ``which`` of this batch alone, drawn from as often."""
        part = copy(self)
        rows = sent(torch.tensor(which), self.stream.device)
        part.stream, part._key = self.stream[rows], self._key[rows]
        return part

    def _bits(self, layout: Layout, per_atom: bool, width: int) -> Tensor:
        """(rows, width) int64 with 64 random bits each; rows = atoms or crystals."""
        column = torch.arange(width, device=self.stream.device)
        if per_atom:
            key = self._key[layout.crystal_idx]
            position = layout.atom_idx[:, None] * width + column
        else:
            key, position = self._key, column.expand(layout.n_crystals, width)
        self.draw += 1
        # Hashing (key, draw) first keeps the counters of different draws apart.
        draw = torch.full((), self.draw, dtype=torch.int64, device=key.device) * _GOLDEN
        return _mix(_mix(key + draw)[:, None] + (position + 1) * _GOLDEN)

    def normal(self, layout: Layout, width: int, *, per_atom: bool) -> Tensor:
        """Standard normal numbers, float32: (A, width) or (C, width)."""
        bits = self._bits(layout, per_atom, width)
        radius = (_shift_right(bits, 32).double() + 0.5) / 2**32
        angle = (bits & 0xFFFFFFFF).double() / 2**32
        # Box-Muller in float64: float32 would cut the tail at 5.5 and repeat values near 1.
        return (torch.sqrt(-2 * torch.log(radius)) * torch.cos(2 * math.pi * angle)).float()

    def uniform(self, layout: Layout, width: int, *, per_atom: bool) -> Tensor:
        """Uniform numbers in [0, 1), float32: (A, width) or (C, width)."""
        return _shift_right(self._bits(layout, per_atom, width), 40).float() / 2**24

    def integers(self, layout: Layout, high: int) -> Tensor:
        """One integer in 1..high for each crystal, (C,) int64."""
        bits = _shift_right(self._bits(layout, False, 1)[:, 0], 11)
        return 1 + torch.clamp((bits.double() / 2**53 * high).long(), max=high - 1)
