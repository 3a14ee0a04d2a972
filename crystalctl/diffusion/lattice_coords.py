"""Lattices as vectors.

family6, the six coefficients of the matrix logarithm (DiffCSP++). For rows L = exp(S) Q with Q a
rotation, S = sum_i k_i B_i symmetric; B_1..B_3 are the off-diagonal xy, xz, yz over sqrt 2, B_4 =
diag(1, -1, 0) / sqrt 2, B_5 = diag(1, 1, -2) / sqrt 6, B_6 = I / sqrt 3. Ref: Prop. 1 and Sec. 4.1,
arXiv:2402.03992.

logtan6, (ln a, ln b, ln c, tan(alpha - 90), tan(beta - 90), tan(gamma - 90)) with lengths in Å
(EquiCSP). Any six numbers are lengths and angles. Each angle belongs to the axis it lies opposite,
so other names for the axes permute both triples alike. Ref: arXiv:2512.07289.

scaled6, ln(length / n^(1/3)) and angles, both scaled (SyMat).
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from crystalctl.crystal.lattice import from_parameters, to_parameters

_SERIES, _SQUARINGS = 12, 6
"""Terms of the exponential's series, and how often its argument is halved before."""
AXIS_ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
"""The ways to name the three axes, that of now first."""
_SHORTEST = 1e-3
_FLATTEST = 1.0


def family_basis(dtype: torch.dtype = torch.float64) -> Tensor:
    """B_1..B_6, orthonormal under the Frobenius product, (6, 3, 3)."""
    basis = torch.zeros(6, 3, 3, dtype=dtype)
    for row, (i, j) in enumerate(((0, 1), (0, 2), (1, 2))):
        basis[row, i, j] = basis[row, j, i] = math.sqrt(0.5)
    basis[3] = torch.diag(torch.tensor([1.0, -1.0, 0.0], dtype=dtype)) / math.sqrt(2)
    basis[4] = torch.diag(torch.tensor([1.0, 1.0, -2.0], dtype=dtype)) / math.sqrt(6)
    basis[5] = torch.eye(3, dtype=dtype) / math.sqrt(3)
    return basis


@cache
def _basis_on(device: torch.device) -> Tensor:
    """``family_basis`` in float64, sent to the device once."""
    return family_basis().to(device)


def to_family6(lattice: Tensor) -> Tensor:
    """(C, 3, 3) rows in Å -> the coefficients k of 1/2 log(L L^T), (C, 6), in float64.

    Cells flatter than 1e-6 Å count as that high, so that the numbers stay finite.
    """
    matrix = lattice.double()
    value, vector = torch.linalg.eigh(matrix @ matrix.transpose(1, 2))
    log = (vector * (0.5 * value.clamp(min=1e-12).log())[:, None]) @ vector.transpose(1, 2)
    return torch.einsum("cij,kij->ck", log, _basis_on(log.device))


def from_family6(k: Tensor) -> Tensor:
    """(C, 6) coefficients -> symmetric lattices exp(S), (C, 3, 3) rows in Å, in float64.

    By scaling, series and squaring with fixed counts: relative error below 1e-12 for norms of S
    up to 20. ``torch.linalg.matrix_exp`` looks at the numbers to choose its own: a GPU must wait.
    """
    small = torch.einsum("ck,kij->cij", k.double(), _basis_on(k.device)) / 2**_SQUARINGS
    one = torch.eye(3, dtype=small.dtype, device=k.device).expand_as(small)
    lattice = one
    for order in range(_SERIES, 0, -1):
        lattice = one + small @ lattice / order
    for _ in range(_SQUARINGS):
        lattice = lattice @ lattice
    return lattice


def to_logtan6(lattice: Tensor) -> Tensor:
    """(C, 3, 3) rows in Å -> logtan6, (C, 6), in float64.

    Lengths below 1e-3 Å count as that, angles within 1 degree of 0 or 180 as 1 or 179.
    """
    parameters = to_parameters(lattice.double())
    lengths = parameters[:, :3].clamp(min=_SHORTEST)
    angles = parameters[:, 3:].clamp(_FLATTEST, 180 - _FLATTEST)
    return torch.cat([lengths.log(), torch.tan(torch.deg2rad(angles - 90))], 1)


def from_logtan6(vector: Tensor) -> Tensor:
    """logtan6 (C, 6) -> lattices (C, 3, 3), rows in Å in the standard orientation, in float64.

    Angles that no cell can have give a cell without volume.
    """
    vector = vector.double()
    angles = 90 + torch.rad2deg(torch.atan(vector[:, 3:]))
    return from_parameters(torch.cat([vector[:, :3].exp(), angles], 1))


def rename_axes(rows: Tensor, orders: Tensor) -> Tensor:
    """Each triple of ``rows`` (R, 3k), one number for each axis, in the order (R, 3) of its row."""
    triples = rows.unflatten(1, (-1, 3))
    renamed: Tensor = triples.gather(2, orders[:, None].expand(triples.shape)).flatten(1)
    return renamed


_SCALED_MEAN, _SCALED_STD = math.log(2.5), 0.25
"""Of ln(length / n^(1/3)): what crystals of a few Å^3 to a few tens per atom have."""


def to_scaled6(lattice: Tensor, n_atoms: Tensor) -> Tensor:
    """(C, 3, 3) rows in Å -> ln(length / n^(1/3)) and angles, both scaled to about 1, (C, 6)."""
    parameters = to_parameters(lattice)
    size = n_atoms.to(parameters.dtype)[:, None] ** (1 / 3)
    lengths = (parameters[:, :3].clamp_min(1e-3) / size).log()
    return torch.cat([(lengths - _SCALED_MEAN) / _SCALED_STD, (parameters[:, 3:] - 90) / 15], 1)


def from_scaled6(scaled: Tensor, n_atoms: Tensor) -> Tensor:
    """The inverse of ``to_scaled6``, in the standard orientation; what no cell has is cut off."""
    size = n_atoms.to(scaled.dtype)[:, None] ** (1 / 3)
    lengths = (scaled[:, :3] * _SCALED_STD + _SCALED_MEAN).clamp(-0.5, 3.5).exp() * size
    angles = (scaled[:, 3:] * 15 + 90).clamp(20, 160)
    return from_parameters(torch.cat([lengths, angles], 1))
