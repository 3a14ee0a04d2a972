"""Primitive Niggli cells, bit for bit those StructureMatcher compares, without its detours.

pymatgen builds and compares objects for every site; here a structure is three arrays. Its lattice
reduction itself is used as it is, with a faster search for the vectors of the reduced cell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Cell = tuple[Array, Array, Sequence[int]]
"""Lattice (3, 3) Å rows, fractional coordinates (n, 3), n atomic numbers."""

_PRIMITIVE_ANG = 0.25
"""pymatgen's tolerance for an atom to be a copy of another in ``get_primitive_structure``."""
_WIDER = 1 + 1e-6
_MANY = 2_000_000
"""Triples looked at in one batch."""


@dataclass(frozen=True, eq=False)
class Reduced:
    """A primitive Niggli cell: ``matrix`` (3, 3) Å rows, ``frac`` (n, 3), ``numbers`` (n,) Z."""

    matrix: Array
    frac: Array
    numbers: NDArray[np.int64]

    @cached_property
    def volume(self) -> float:
        """Å³."""
        return float(abs(np.dot(np.cross(self.matrix[0], self.matrix[1]), self.matrix[2])))

    @cached_property
    def content(self) -> tuple[tuple[int, int], ...]:
        """(Z, atoms), sorted by Z."""
        return tuple(sorted(Counter(self.numbers.tolist()).items()))

    @cached_property
    def sites(self) -> dict[int, NDArray[np.intp]]:
        """Z -> where its atoms are, the rarest element first, of equals the one met first."""
        found = {z: np.flatnonzero(self.numbers == z) for z in dict.fromkeys(self.numbers.tolist())}
        return dict(sorted(found.items(), key=lambda item: len(item[1])))


def reduce_cell(cell: Cell) -> Reduced:
    """What the matcher makes of a structure before it compares. Raises where it does.

    The reduction raises various errors for cells without volume or with extreme angles.
    """
    matrix, frac, numbers = cell
    lattice = _quick_lattice()(matrix)
    niggli = lattice.get_niggli_reduced_lattice()
    frac = np.asarray(frac, dtype=float)
    if niggli != lattice:
        frac = np.mod(lattice.get_cartesian_coords(frac) @ niggli.inv_matrix, 1)
    found = Reduced(np.array(niggli.matrix), frac, np.asarray(numbers, dtype=np.int64))
    return found if _surely_primitive(found) else _primitive(found)


def _primitive(cell: Reduced) -> Reduced:
    from pymatgen.core import Lattice, Structure

    structure = Structure(Lattice(cell.matrix), cell.numbers.tolist(), cell.frac)
    found = structure.get_primitive_structure()
    numbers = np.array([site.specie.Z for site in found])
    return Reduced(np.array(found.lattice.matrix), np.array(found.frac_coords), numbers)


def _surely_primitive(cell: Reduced) -> bool:
    """True only where ``get_primitive_structure`` returns the cell as it is.

    It looks for translations that put every atom within 0.5 Å (along each axis) of one of its kind,
    among the differences of the rarest element's atoms; each vector of a smaller cell must be
    within 0.25 Å of one of them. A cell k times smaller has a vector with a fractional component
    that is no integer, so 1/k or more away from one. When zero is the only such translation, that
    cannot be within 0.25 Å if the axes are longer than 0.25 k Å, for k up to the number of formula
    units. Atoms are tested one by one, with a slightly wider tolerance, until only zero is left.
    """
    units = gcd(*(n for _, n in cell.content))
    lengths = np.linalg.norm(cell.matrix, axis=1)
    if units == 1:
        return True
    if lengths.min() <= _PRIMITIVE_ANG * units * _WIDER:
        return False
    groups = [cell.frac[where] for where in cell.sites.values()]
    steps = groups[0] - groups[0][0]
    tolerance = 2 * _PRIMITIVE_ANG / lengths * _WIDER
    for group in groups:
        for point in group:
            away = steps[:, None] - (group - point)
            near = (np.abs(away - np.round(away)) <= tolerance).all(axis=2).any(axis=1)
            steps = steps[near]
            if len(steps) <= 1:
                return True
    return False


@lru_cache(maxsize=1)
def _quick_lattice() -> Any:
    from pymatgen.core import Lattice

    class QuickLattice(Lattice):  # type: ignore[misc]
        """A lattice that finds its mappings on another faster, in the same order."""

        def find_all_mappings(
            self, other_lattice: Any, ltol: float = 1e-5, atol: float = 1, *_: Any, **__: Any
        ) -> Iterator[tuple[Any, None, Any]]:
            for cells, steps in mappings(self, other_lattice, ltol, atol):
                for cell, step in zip(cells, steps, strict=True):
                    if abs(np.linalg.det(step)) >= 1e-8:
                        yield Lattice(cell), None, step.astype(np.int64)

    return QuickLattice


def mappings(
    lattice: Any, target: Any, ltol: float, angle_tol: float
) -> Iterator[tuple[Array, Array]]:
    """Triples of vectors of ``lattice`` with the lengths and angles of ``target``, in batches.

    As pymatgen's ``find_all_mappings``, in its order, with the same floating-point operations:
    cells (M, 3, 3) in Å and the same in multiples of the basis, (M, 3, 3). Triples of vectors in
    one plane are among them.
    """
    lengths = target.lengths
    frac, dist, _, _ = lattice.get_points_in_sphere(
        [[0, 0, 0]], [0, 0, 0], max(lengths) * (1 + ltol), zip_results=False
    )
    cart = lattice.get_cartesian_coords(frac)
    near = [(dist / x < 1 + ltol) & (dist / x > 1 / (1 + ltol)) for x in lengths]
    a, b, c = (cart[chosen] for chosen in near)
    if not (len(a) and len(b) and len(c)):
        return
    steps = [frac[chosen] for chosen in near]
    sizes = [np.sum(v**2, axis=-1) ** 0.5 for v in (a, b, c)]
    alpha, beta, gamma = target.angles
    bc = _angles_near(b, c, sizes[1], sizes[2], alpha, angle_tol)
    ac = _angles_near(a, c, sizes[0], sizes[2], beta, angle_tol)
    ab = _angles_near(a, b, sizes[0], sizes[1], gamma, angle_tol)
    rows = max(1, _MANY // bc.size)
    for start in range(0, len(a), rows):
        part = slice(start, start + rows)
        i, j, k = np.nonzero(ab[part, :, None] & (bc & ac[part, None, :]))
        i += start
        cells = np.stack([a[i], b[j], c[k]], axis=1)
        yield cells, np.stack([steps[0][i], steps[1][j], steps[2][k]], axis=1)


def _angles_near(
    one: Array, other: Array, size: Array, size_other: Array, angle: float, within: float
) -> NDArray[np.bool_]:
    cosines = np.inner(one, other) / size[:, None] / size_other
    np.clip(cosines, -1, 1, out=cosines)
    return np.asarray(np.abs(np.rad2deg(np.arccos(cosines)) - angle) <= within)
