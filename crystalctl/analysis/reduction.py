"""Primitive Niggli cells, bit for bit those StructureMatcher compares, without its detours.

pymatgen builds and compares objects for every site; here a structure is three arrays. Its lattice
reduction itself is used as it is, with a faster search for the vectors of the reduced cell.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystalctl.analysis.niggli import niggli_cell
from crystalctl.crystal.elements import symbol_of

Array = NDArray[np.float64]
Cell = tuple[Array, Array, Sequence[int]]
"""Lattice (3, 3) Å rows, fractional coordinates (n, 3), n atomic numbers."""

_PRIMITIVE_ANG = 0.25
"""pymatgen's tolerance for an atom to be a copy of another in ``get_primitive_structure``."""
_EQUAL, _EQUAL_ANG = 1e-5, 1e-8
"""Relative and absolute tolerance within which pymatgen calls two lattices equal."""
_WIDER = 1 + 1e-6
_CLOSE = 1e-9
"""Numbers that differ by less, relatively, may be equal."""
_AROUND = [s for s in product((-1, 0, 1), repeat=2) if any(s)]
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
        """Å³, by the floating-point operations of pymatgen."""
        (a, b, c), (x, y, z), _ = self.matrix.tolist()
        normal = np.array([b * z - c * y, c * x - a * z, a * y - b * x])
        return float(abs(np.dot(normal, self.matrix[2])))

    @cached_property
    def content(self) -> tuple[tuple[int, int], ...]:
        """(Z, atoms), sorted by Z."""
        return tuple(sorted(Counter(self.numbers.tolist()).items()))

    @cached_property
    def lengths(self) -> list[float]:
        """Sorted lengths of the basis over the cube root of the volume."""
        size = self.volume ** (1 / 3)
        return sorted(math.sqrt(square) / size for square in (self.matrix**2).sum(axis=1).tolist())

    @cached_property
    def minima(self) -> list[float]:
        """Successive minima of the lattice over the cube root of the volume.

        Vectors are added to and subtracted from longer ones until none gets shorter: Minkowski's
        condition in three dimensions.
        """
        basis = [row / self.volume ** (1 / 3) for row in self.matrix]
        while True:
            squares = [float(np.dot(row, row)) for row in basis]
            p, q, r = sorted(range(3), key=squares.__getitem__)
            x, y, z = basis[p], basis[q], basis[r]
            a, b, c = squares[p], squares[q], squares[r]
            xy, xz, yz = float(np.dot(x, y)), float(np.dot(x, z)), float(np.dot(y, z))
            if b + a - 2 * abs(xy) < b * (1 - _CLOSE):
                basis[q] = y - math.copysign(1, xy) * x
                continue
            least, i, j = min(
                (c + i * i * a + j * j * b + 2 * (i * xz + j * yz + i * j * xy), i, j)
                for i, j in _AROUND
            )
            if least >= c * (1 - _CLOSE):
                return [math.sqrt(a), math.sqrt(b), math.sqrt(c)]
            basis[r] = z + i * x + j * y

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
    matrix = np.array(matrix, dtype=float)
    frac = np.asarray(frac, dtype=float)
    niggli = niggli_cell(matrix)
    if niggli is None:
        niggli = np.array(_quick_lattice()(matrix).get_niggli_reduced_lattice().matrix)
    if not (np.abs(niggli - matrix) <= _EQUAL_ANG + _EQUAL * np.abs(matrix)).all():
        frac = np.mod(by_row(by_row(frac, matrix), np.asarray(np.linalg.inv(niggli))), 1)
    found = Reduced(niggli, frac, np.asarray(numbers, dtype=np.int64))
    return found if _surely_primitive(found) else _primitive(found)


def by_row(vectors: Array, matrix: Array) -> Array:
    """``vectors`` (n, 3) times ``matrix`` (3, 3), one by one as pymatgen does for its sites.

    On some processors a product of matrices is rounded in another way.
    """
    return np.array([np.dot(vector, matrix) for vector in vectors])


def _primitive(cell: Reduced) -> Reduced:
    from pymatgen.core import Lattice, Structure

    structure = Structure(Lattice(cell.matrix), cell.numbers.tolist(), cell.frac)
    found = structure.get_primitive_structure()
    numbers = np.array([site.specie.Z for site in found])
    return Reduced(np.array(found.lattice.matrix), np.array(found.frac_coords), numbers)


def _surely_primitive(cell: Reduced) -> bool:
    """True only where ``get_primitive_structure`` returns the cell as it is.

    It looks for translations that put every atom within 0.5 Å (along each axis) of one of its kind,
    among those from an atom of the rarest element (of equals the first by its symbol) to the others
    of its kind: from another atom they may be closer or farther. Each vector of a smaller cell must
    be within 0.25 Å of one of them. A cell k times smaller has a vector with a fractional component
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
    rarest = sorted(cell.sites, key=lambda z: (len(cell.sites[z]), symbol_of(z)))
    groups = [cell.frac[cell.sites[z]] for z in rarest]
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
    cosines = np.minimum(np.maximum(cosines, -1), 1)  # np.clip takes several times as long
    return np.asarray(np.abs(np.rad2deg(np.arccos(cosines)) - angle) <= within)
