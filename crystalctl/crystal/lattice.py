"""Lattices: matrix <-> lengths and angles, volume, orientation.

One convention everywhere: rows of the matrix are a, b, c in Å, so Cartesian = frac @ lattice. The
standard orientation has a in the xz plane and c along z, as in pymatgen's ``from_parameters``.
"""

from __future__ import annotations

import torch
from torch import Tensor


def from_parameters(parameters: Tensor) -> Tensor:
    """(a, b, c in Å, alpha, beta, gamma in degrees) (..., 6) -> lattice (..., 3, 3).

    Angles that no cell can have are pulled to the nearest flat cell, which has volume 0.
    """
    a, b, c = parameters[..., :3].unbind(-1)
    angles = torch.deg2rad(parameters[..., 3:])
    cos_alpha, cos_beta, cos_gamma = torch.cos(angles).unbind(-1)
    sin_alpha, sin_beta = torch.sin(angles[..., :2]).unbind(-1)
    cos_gamma_star = (cos_alpha * cos_beta - cos_gamma) / (sin_alpha * sin_beta)
    cos_gamma_star = cos_gamma_star.clamp(-1.0, 1.0)
    sin_gamma_star = torch.sqrt(1.0 - cos_gamma_star**2)
    zero = torch.zeros_like(a)
    rows = (
        torch.stack([a * sin_beta, zero, a * cos_beta], -1),
        torch.stack(
            [-b * sin_alpha * cos_gamma_star, b * sin_alpha * sin_gamma_star, b * cos_alpha], -1
        ),
        torch.stack([zero, zero, c], -1),
    )
    return torch.stack(rows, -2)


def to_parameters(lattice: Tensor) -> Tensor:
    """Lattice (..., 3, 3) -> (a, b, c in Å, alpha, beta, gamma in degrees) (..., 6)."""
    lengths = torch.linalg.vector_norm(lattice, dim=-1)
    a, b, c = (lattice / lengths.clamp_min(1e-12).unsqueeze(-1)).unbind(-2)
    angles = [_angle_deg(b, c), _angle_deg(a, c), _angle_deg(a, b)]
    return torch.cat([lengths, torch.stack(angles, -1)], -1)


def _angle_deg(u: Tensor, v: Tensor) -> Tensor:
    """Angle between unit vectors (..., 3) in degrees."""
    # atan2 keeps its precision near 0 and 180 degrees, where arccos of a dot product loses half.
    sine = torch.linalg.vector_norm(torch.linalg.cross(u, v, dim=-1), dim=-1)
    degrees: Tensor = torch.rad2deg(torch.atan2(sine, (u * v).sum(-1)))
    return degrees


def volume(lattice: Tensor) -> Tensor:
    """Cell volume in Å³, never negative: (..., 3, 3) -> (...)."""
    a, b, c = lattice.unbind(-2)
    signed: Tensor = (a * torch.linalg.cross(b, c, dim=-1)).sum(-1)
    return signed.abs()


def standard_orientation(lattice: Tensor) -> Tensor:
    """The same cell turned to the standard orientation; a left-handed one is also mirrored."""
    return from_parameters(to_parameters(lattice))


def inverse(lattice: Tensor) -> Tensor:
    """Frac = Cartesian @ inverse: (..., 3, 3) -> (..., 3, 3) in 1/Å; 0 for a cell of zeros."""
    a, b, c = lattice.unbind(-2)
    columns = (torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b))
    signed = (a * columns[0]).sum(-1)
    tiny = torch.finfo(signed.dtype).tiny
    safe = torch.where(signed.abs() < tiny, torch.full_like(signed, tiny), signed)
    return torch.stack(columns, -1) / safe[..., None, None]
