"""Pairs with all their near periodic images, in real space: what pair potentials are made of.

What CSPNet sees of a pair, directions in fractional coordinates beside the lattice, fixes bond
lengths but leaves them, and what forces and stresses do, to be learnt. Here both are given, for
the price of a few percent: each pair (i, j) has a smoothed histogram of the distances
|f_j - f_i + n| over lattice vectors n, and the same with every image weighted by its direction.
The histogram enters the messages; the heads of ``PairHead`` add up learnt functions of distance
times direction, as a pair potential adds up forces and stress. None of this is in the published
network; every equivariance of the network stays, as the parts are distances and vectors.

Symbols: E pairs, C crystals, K centres, R radius of a crystal, B_1..B_6 the lattice basis
(``diffusion/lattice_coords.py``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crystalctl.crystal.precision import full_precision

FIRST, CUTOFF = 0.5, 6.5
"""Centres of the first and of the last Gaussian, Å; nothing beyond the last one is seen."""
_GAIN = 4.0
"""The histogram is ln(1 + 4 n) of the smoothed number n of images: never large."""
_BLOCK, _BLOCK_ON_GPU = 1 << 12, 1 << 17
"""Pairs looked at together: bounds the memory at 27 K numbers a pair."""


@dataclass(frozen=True)
class Shells:
    """Images of pairs by distance.

    ``count`` (E, K): the histogram. ``vector`` (E, K, 3): sum of the fractional pair vectors.
    ``strain`` (E, K, 6): sum of u B_i u over the unit vectors u in Å, how the distance grows with
    the lattice coefficient k_i.
    """

    count: Tensor
    vector: Tensor
    strain: Tensor


class PeriodicShells(nn.Module):
    """``n_radial`` Gaussians of the distance, summed over periodic images.

    With pair vectors wrapped to [-1/2, 1/2) the 27 nearest images hold every image closer than 3/2
    of the smallest distance between lattice planes. That, or ``CUTOFF`` if it is less, is the
    radius R of a crystal, where the sums fade out: no image is missed, whatever the cell.
    """

    centres: Tensor
    images: Tensor

    def __init__(self, n_radial: int) -> None:
        super().__init__()
        self.width = (CUTOFF - FIRST) / max(n_radial - 1, 1)
        centres = torch.linspace(FIRST, CUTOFF, n_radial)
        step = torch.arange(-1, 2)
        images = torch.cartesian_prod(step, step, step).float()
        self.register_buffer("centres", centres, persistent=False)
        self.register_buffer("images", images, persistent=False)

    @torch.no_grad()
    def forward(self, delta: Tensor, cell: Tensor, crystal_idx: Tensor) -> Shells:
        """``delta`` (E, 3) fractional, any period; ``cell`` (C, 3, 3) rows in Å; (E,) crystals."""
        with full_precision():
            radius = _covered(cell).clamp(max=CUTOFF)
            offset = delta - torch.round(delta)
            block = _BLOCK if offset.device.type == "cpu" else _BLOCK_ON_GPU
            rows = zip(offset.split(block), crystal_idx.split(block), strict=True)
            sums = torch.cat([self._sums(part, cell[idx], radius[idx]) for part, idx in rows])
        count = torch.log1p(_GAIN * sums[..., 0])
        return Shells(count, sums[..., 1:4], sums[..., 4:])

    def _sums(self, offset: Tensor, cell: Tensor, radius: Tensor) -> Tensor:
        """Number, vectors and strains of the images of each pair by distance, (E, K, 10)."""
        frac = offset[:, None] + self.images.to(offset.dtype)
        cart = torch.bmm(frac, cell)
        distance = torch.linalg.vector_norm(cart, dim=2)
        fade = (1 - (distance / radius[:, None]) ** 2).clamp(min=0) ** 2
        unit = math.sqrt(0.5) / self.width
        centres = self.centres.to(offset.dtype)
        bumps = (unit * distance)[:, None] - (unit * centres)[:, None]
        # In place, and no smaller than 1e-17: denormal numbers cost ten times as much.
        bumps = bumps.square_().neg_().clamp_(min=-40).exp_().mul_(fade[:, None])
        x, y, z = (cart / distance.clamp(min=1e-6)[:, :, None]).unbind(2)
        half, third, sixth = math.sqrt(0.5), math.sqrt(1 / 3), math.sqrt(1 / 6)
        ones, square = torch.ones_like(x), x**2 + y**2 + z**2
        parts = [ones, *frac.unbind(2), x * y / half, x * z / half, y * z / half]
        parts += [half * (x**2 - y**2), sixth * (square - 3 * z**2), third * square]
        return torch.bmm(bumps, torch.stack(parts, 2))


class PairHead(nn.Module):
    """Learnt functions of distance for each pair of atoms, read out as vector and strain.

    It starts at zero, so that weights made without it can be continued.
    """

    def __init__(self, hidden: int, n_radial: int, width: int = 64) -> None:
        super().__init__()
        self.receiver = nn.Linear(hidden, width)
        self.sender = nn.Linear(hidden, width, bias=False)
        self.count = nn.Linear(n_radial, width, bias=False)
        self.out = nn.Linear(width, 2 * n_radial)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, h: Tensor, receiver: Tensor, sender: Tensor, shells: Shells
    ) -> tuple[Tensor, Tensor]:
        """Sums over the pairs of each receiver: displacement (A, 3) fractional, strain (A, 6).

        ``h`` (A, H); ``receiver`` and ``sender`` (E,) rows of it.
        """
        ends = self.receiver(h)[receiver] + self.sender(h)[sender]
        gain = self.out(F.silu(ends + self.count(shells.count))).to(shells.vector.dtype)
        pull, press = gain.chunk(2, 1)
        vector = torch.einsum("ek,eki->ei", pull, shells.vector)
        strain = torch.einsum("ek,eki->ei", press, shells.strain)
        both = torch.cat([vector, strain], 1)
        sums = both.new_zeros(len(h), 9).index_add(0, receiver, both)
        return sums[:, :3], sums[:, 3:]


def _covered(cell: Tensor) -> Tensor:
    """Distance within which 27 images are all there are, (C,) Å: 3/2 of the closest planes."""
    area = torch.linalg.cross(cell.roll(-1, 1), cell.roll(-2, 1))
    # Not linalg.det: its factorisation on a GPU makes handles that no CUDA graph can record.
    volume = (cell * area).sum(2)[:, 0].abs()
    spacing = volume[:, None] / torch.linalg.vector_norm(area, dim=2).clamp(min=1e-6)
    closest: Tensor = spacing.amin(1)
    return 1.5 * closest.clamp(min=1e-3)
