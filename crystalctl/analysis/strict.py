"""The inner loop of pymatgen's StructureMatcher for two primitive cells, its arithmetic batched.

Same candidates in the same order and the same decisions; what pymatgen computes through an object
for each candidate lattice is computed for all of them at once here (a third of the time).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_CLOSE = 1e-5
"""The matcher stops looking for a smaller distance below this one."""


def best_rms(matcher: Any, one: Any, other: Any) -> float | None:
    """``get_rms_dist(one, other)[0]`` of two cells the matcher has reduced already."""
    best: float | None = None
    for distances in _candidates(matcher, one, other):
        value = float(np.linalg.norm(distances) / len(distances) ** 0.5)
        if best is None or value < best:
            best = value
            if value < _CLOSE:
                break
    return best if best is not None and best < matcher.stol else None


def fits(matcher: Any, one: Any, other: Any) -> bool:
    """``fit(one, other)`` of two cells the matcher has reduced already."""
    return any(float(d.max()) < matcher.stol for d in _candidates(matcher, one, other))


def _candidates(matcher: Any, one: Any, other: Any) -> Iterator[Array]:
    """Distances (n,) of paired sites over (V/n)^(1/3), for each way to lay one on the other.

    ``one`` and ``other`` hold the same atoms of each element.
    """
    from pymatgen.core import Lattice

    mask, starts, origin = matcher._get_mask(one, other, 1, True)
    ratio = (other.volume / one.volume) ** (1 / 6)
    lattice, target = Lattice(one.lattice.matrix * ratio), Lattice(other.lattice.matrix / ratio)
    for cells in _mappings(lattice, target, matcher.ltol, matcher.angle_tol):
        yield from _laid_on(matcher, one, other, lattice, target, cells, (mask, starts, origin))


def _laid_on(
    matcher: Any, one: Any, other: Any, lattice: Any, target: Any, cells: Array, start_at: Any
) -> Iterator[Array]:
    from pymatgen.core import Lattice

    mask, starts, origin = start_at
    n = len(one)
    frac = (one.frac_coords @ lattice.matrix) @ np.linalg.inv(cells)
    frac -= np.floor(frac)
    parameters = (_parameters(cells) + np.array(target.parameters)) / 2
    volumes, reciprocal = _volume_and_reciprocal(parameters)
    scale = np.cbrt(n / volumes)
    tolerance = 2 * np.pi * reciprocal * matcher.stol / (np.pi * scale[:, None])
    theirs = np.array(other.frac_coords)
    for index in range(len(cells)):
        average = None
        for start in starts:
            moved = theirs + (frac[index, start] - theirs[origin])
            if not matcher._cmp_fstruct(frac[index], moved, tolerance[index], mask):
                continue
            if average is None:
                average = Lattice.from_parameters(*parameters[index])
                reach = np.array(average.get_lll_reduced_lattice().reciprocal_lattice.abc)
                reach = reach * matcher.stol / (np.pi * scale[index])
            yield matcher._cart_dists(frac[index], moved, average, mask, scale[index], reach)[0]


def _mappings(lattice: Any, target: Any, ltol: float, angle_tol: float) -> Iterator[Array]:
    """All bases of ``lattice`` with the lengths and angles of ``target``, in batches (M, 3, 3).

    The first batch is small: equal structures need no other.
    """
    lengths = target.lengths
    alpha, beta, gamma = target.angles
    frac, dist, _, _ = lattice.get_points_in_sphere(
        [[0, 0, 0]], [0, 0, 0], max(lengths) * (1 + ltol), zip_results=False
    )
    cart = lattice.get_cartesian_coords(frac)
    near = [(dist / x < 1 + ltol) & (dist / x > 1 / (1 + ltol)) for x in lengths]
    a, b, c = (cart[chosen] for chosen in near)
    steps_a, steps_b, steps_c = (np.rint(frac[chosen]) for chosen in near)
    ab = _angles_near(a, b, gamma, angle_tol)
    bc = _angles_near(b, c, alpha, angle_tol)
    ac = _angles_near(a, c, beta, angle_tol)
    found: list[Array] = []
    started = False
    for i, row in enumerate(ab):
        j, k = np.nonzero(row[:, None] & bc & ac[i][None, :])
        if len(j):
            change = np.stack([np.broadcast_to(steps_a[i], (len(j), 3)), steps_b[j], steps_c[k]], 1)
            unimodular = np.abs(np.abs(np.linalg.det(change)) - 1) <= 0.5
            j, k = j[unimodular], k[unimodular]
            cells = np.stack([np.broadcast_to(a[i], (len(j), 3)), b[j], c[k]], 1)
            if len(cells) and not started:
                started = True
                yield cells
            else:
                found.append(cells)
    if sum(map(len, found)):
        yield np.concatenate(found)


def _angles_near(one: Array, other: Array, angle: float, within: float) -> NDArray[np.bool_]:
    lengths = np.linalg.norm(one, axis=1)[:, None] * np.linalg.norm(other, axis=1)
    cosines = np.clip(one @ other.T / lengths, -1, 1)
    return np.asarray(np.abs(np.degrees(np.arccos(cosines)) - angle) <= within)


def _parameters(cells: Array) -> Array:
    """a, b, c and the angles in degrees of cells (M, 3, 3), as (M, 6)."""
    lengths = np.linalg.norm(cells, axis=2)
    unit = cells / lengths[:, :, None]
    cosines = np.stack([(unit[:, i] * unit[:, j]).sum(1) for i, j in ((1, 2), (0, 2), (0, 1))], 1)
    return np.concatenate([lengths, np.degrees(np.arccos(np.clip(cosines, -1, 1)))], axis=1)


def _volume_and_reciprocal(parameters: Array) -> tuple[Array, Array]:
    """Volumes (M,) and lengths of the reciprocal vectors without 2 pi (M, 3)."""
    lengths, angles = parameters[:, :3], np.radians(parameters[:, 3:])
    cosines = np.cos(angles)
    square = 1 - (cosines**2).sum(1) + 2 * cosines.prod(1)
    volumes = lengths.prod(1) * np.sqrt(np.maximum(square, 1e-16))
    faces = lengths.prod(1)[:, None] / lengths * np.sin(angles)
    return volumes, faces / volumes[:, None]
