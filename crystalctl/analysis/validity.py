"""Is a sample a possible cell? A reason in words when it is not; nothing is ever dropped."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MIN_DISTANCE_ANG = 0.5
"""Closest approach of two atoms that counts as a structure (as in the published benchmark)."""
MIN_VOLUME_PER_ATOM = 0.1
MAX_VOLUME_PER_ATOM = 1000.0
MAX_LENGTH_ANG = 200.0
_MIN_SINE = 1e-3


def invalid_reason(lattice: Any, frac: Any) -> str:
    """Why the structure is impossible, or an empty string.

    ``lattice`` (3, 3) Å with rows a, b, c; ``frac`` (n, 3) fractional. Both array-like. Checked:
    ``invalid_cell``, and every distance under periodic boundaries (images of the same atom
    included).
    """
    cell, points = np.asarray(lattice, dtype=float), np.asarray(frac, dtype=float)
    reason = invalid_cell(cell, points)
    if not reason and min_distance(cell, points) <= MIN_DISTANCE_ANG:
        return f"atoms closer than {MIN_DISTANCE_ANG} Å"
    return reason


def invalid_cell(cell: Array, points: Array) -> str:
    """Why the cell (3, 3) of atoms (n, 3) is impossible, or an empty string.

    Checked: finite numbers, lengths, angles with a volume, volume per atom.
    """
    if not (np.isfinite(cell).all() and np.isfinite(points).all()):
        return "not finite"
    if not len(points):
        return "no atoms"
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(cell, axis=1)
    if lengths.min() < MIN_DISTANCE_ANG:
        return f"cell length below {MIN_DISTANCE_ANG} Å"
    if lengths.max() > MAX_LENGTH_ANG:
        return f"cell length above {MAX_LENGTH_ANG:g} Å"
    volume = abs(float(np.linalg.det(cell)))
    if volume / float(lengths.prod()) < _MIN_SINE:
        return "cell angles without volume"
    if volume / len(points) < MIN_VOLUME_PER_ATOM:
        return f"volume per atom below {MIN_VOLUME_PER_ATOM} Å³"
    if volume / len(points) > MAX_VOLUME_PER_ATOM:
        return f"volume per atom above {MAX_VOLUME_PER_ATOM:g} Å³"
    return ""


def lengths_angles(lattice: Any) -> tuple[float, float, float, float, float, float]:
    """a, b, c in Å and α, β, γ in degrees of a (3, 3) cell of rows; NaN where undefined."""
    cell = np.asarray(lattice, dtype=float)
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(cell, axis=1)
        unit = cell / lengths[:, None]
        cosines = np.array([unit[1] @ unit[2], unit[0] @ unit[2], unit[0] @ unit[1]])
        angles = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
    a, b, c, alpha, beta, gamma = (float(x) for x in (*lengths, *angles))
    return a, b, c, alpha, beta, gamma


def min_distance(lattice: Array, frac: Array) -> float:
    """Shortest distance in Å between two atoms or an atom and its own image, exact for any cell.

    ``lattice`` (3, 3) with volume, ``frac`` (n, 3).
    """
    cell, change = _reduced_basis(np.asarray(lattice, dtype=float))
    points = np.asarray(frac, dtype=float) @ np.linalg.inv(change)
    delta = points[:, None] - points[None, :]
    delta = (delta - np.round(delta))[np.triu_indices(len(points), k=1)]
    # Any vector of the lattice bounds the answer from above, and so fixes how far to look.
    bound = float(np.linalg.norm(cell, axis=1).min())
    if len(delta):
        bound = min(bound, float(np.linalg.norm(delta @ cell, axis=1).min()))
    heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    reach = [math.floor(bound / h + 0.5) for h in heights]
    axes = [np.arange(-r, r + 1) for r in reach]
    shifts = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3).astype(float)
    best = bound
    images = shifts[np.abs(shifts).sum(1) > 0]
    if len(images):
        best = min(best, float(np.linalg.norm(images @ cell, axis=1).min()))
    for shift in shifts if len(delta) else ():
        best = min(best, float(np.linalg.norm((delta + shift) @ cell, axis=1).min()))
    return best


def _reduced_basis(cell: Array) -> tuple[Array, Array]:
    """Nearly orthogonal basis of the same lattice: ``(reduced, change)``, reduced = change @ cell.

    Pairwise (Gauss) reduction: subtract the nearest multiple of each vector from the others until
    nothing gets shorter. ``change`` has determinant ±1.
    """
    basis, change = cell.copy(), np.eye(3)
    for _ in range(200):
        moved = False
        for i in range(3):
            for j in range(3):
                if i == j:
                    continue
                steps = np.round(basis[i] @ basis[j] / (basis[j] @ basis[j]))
                shorter = basis[i] - steps * basis[j]
                if steps and shorter @ shorter < basis[i] @ basis[i] * (1 - 1e-12):
                    basis[i], change[i] = shorter, change[i] - steps * change[j]
                    moved = True
        if not moved:
            break
    return basis, change
