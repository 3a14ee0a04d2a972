"""Many comparisons of structures, as fast as they can be with the matcher's own answers.

Composition first, then a bound on the lattices, then pymatgen's StructureMatcher on cells that were
reduced once. Structures travel to worker processes as plain arrays.

The bound. The matcher refuses two structures whose primitive cells do not hold the same number of
atoms of each element. It then scales both primitive cells, ``L1`` of the first structure and ``L2``
of the second, to one volume and looks for three independent vectors of ``L1`` of which the i-th is
shorter than (1 + ltol) times the i-th basis vector of ``L2``; without them there is no match.
Sort the lengths of the basis of ``L2``: d1 <= d2 <= d3. By definition the successive minima m1, m2,
m3 of ``L1`` are the smallest numbers such that i independent vectors of ``L1`` are no longer than
mi; the i vectors found for d1 .. di are independent and no longer than (1 + ltol) di. So a match
needs mi < (1 + ltol) di for i = 1, 2, 3. In three dimensions the minima are the lengths of a
Minkowski-reduced basis. Nothing else is excluded: volumes say nothing, as both are scaled.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystalctl.analysis.matching import BENCHMARK, DUPLICATES, _matcher
from crystalctl.analysis.strict import best_rms
from crystalctl.analysis.strict import fits as same

Array = NDArray[np.float64]
Cell = tuple[Array, Array, Sequence[int]]
"""Lattice (3, 3) Å rows, fractional coordinates (n, 3), n atomic numbers."""

_ROUNDING = 1e-6
"""Slack of the bound for rounding in the reductions."""
MAX_TABLE = 20_000
"""All predictions of a formula are compared with all its references up to this many pairs."""


class Prepared:
    """A structure reduced once as the matcher would; ``cell`` None = cannot be compared."""

    def __init__(self, cell: Cell | None) -> None:
        self._cell = cell

    @cached_property
    def reduced(self) -> Any:
        """The primitive Niggli cell as a pymatgen Structure, or None where there is none."""
        if self._cell is None:
            return None
        from pymatgen.core import Lattice, Structure

        lattice, frac, numbers = self._cell
        try:
            structure = Structure(Lattice(lattice), list(numbers), frac)
            # With one formula unit no smaller cell exists, and looking for one takes half the time.
            several = gcd(*Counter(numbers).values()) > 1
            return _matcher(**BENCHMARK)._get_reduced_structure(structure, several, True)
        except Exception:  # the reduction raises various errors for cells it cannot reduce
            return None

    @cached_property
    def content(self) -> tuple[tuple[int, int], ...]:
        """(Z, atoms) of the primitive cell."""
        numbers = [site.specie.Z for site in self.reduced]
        return tuple((z, numbers.count(z)) for z in sorted(set(numbers)))

    @cached_property
    def lengths(self) -> Array:
        """Sorted lengths of the reduced basis over the cube root of the volume, (3,)."""
        return np.asarray(np.sort(self.reduced.lattice.abc) / np.cbrt(self.reduced.volume))

    @cached_property
    def minima(self) -> Array:
        """Successive minima of the lattice over the cube root of the volume, (3,)."""
        from ase.geometry import minkowski_reduce

        basis, _ = minkowski_reduce(self.reduced.lattice.matrix)
        lengths = np.sort(np.linalg.norm(basis, axis=1))
        return np.asarray(lengths / np.cbrt(self.reduced.volume))


def may_match(one: Prepared, other: Prepared, ltol: float) -> bool:
    """False only where the matcher cannot match ``one`` with ``other`` (proof above)."""
    if one.reduced is None or other.reduced is None or one.content != other.content:
        return False
    return bool((one.minima <= (1 + ltol) * other.lengths * (1 + _ROUNDING)).all())


def rms(one: Prepared, other: Prepared, tolerances: dict[str, float] = BENCHMARK) -> float | None:
    """What ``StructureMatcher.get_rms_dist`` gives for the two, None = no match."""
    if not may_match(one, other, tolerances["ltol"]):
        return None
    try:
        return best_rms(_matcher(**tolerances), one.reduced, other.reduced)
    except Exception:  # as in the published evaluation, an error is no match
        return None


def fits(one: Prepared, other: Prepared, tolerances: dict[str, float] = DUPLICATES) -> bool:
    """What ``StructureMatcher.fit`` gives for the two."""
    if not may_match(one, other, tolerances["ltol"]):
        return False
    try:
        return same(_matcher(**tolerances), one.reduced, other.reduced)
    except Exception:
        return False


@dataclass(frozen=True)
class Task:
    """What to compare within one reduced formula.

    ``structures``, ``references``, ``known``: (row, cell) of the predictions, of the structures
    they should match, and of those that make them not new. ``pairs``: (row, reference row) wanted
    at least; ``table``: compare every structure with every reference. ``distinct``: rows to sort
    into groups of equal structures and to compare with ``known``.
    """

    structures: Sequence[tuple[int, Cell]]
    references: Sequence[tuple[int, Cell]] = ()
    known: Sequence[tuple[int, Cell]] = ()
    pairs: Sequence[tuple[int, int]] = ()
    table: bool = False
    distinct: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Compared:
    """Answer to a task: distances by (row, reference row), first equal row, rows not new."""

    distances: dict[tuple[int, int], float]
    first: dict[int, int]
    known: dict[int, int]


def compare(task: Task) -> Compared:
    """All comparisons of one task, each structure reduced once. Runs in worker processes."""
    warnings.filterwarnings("ignore")
    ready: dict[bytes, Prepared] = {}
    ours = {row: _prepared(cell, ready) for row, cell in task.structures}
    theirs = {row: _prepared(cell, ready) for row, cell in task.references}
    wanted = [(i, j) for i in ours for j in theirs] if task.table else list(task.pairs)
    distances = {}
    for i, j in wanted:
        distance = rms(ours[i], theirs[j])
        if distance is not None:
            distances[i, j] = distance
    first: dict[int, int] = {}
    leaders: list[int] = []
    for row in sorted(task.distinct):
        found = next((lead for lead in leaders if fits(ours[lead], ours[row])), None)
        if found is None:
            leaders.append(row)
        first[row] = row if found is None else found
    not_new: dict[int, int] = {}
    old = [(row, _prepared(cell, ready)) for row, cell in task.known]
    for row in sorted(task.distinct):
        twin = next((j for j, one in old if fits(ours[row], one)), None)
        if twin is not None:
            not_new[row] = twin
    return Compared(distances, first, not_new)


def _prepared(cell: Cell, ready: dict[bytes, Prepared]) -> Prepared:
    """The structure reduced once, also where several rows hold exactly the same numbers."""
    lattice, frac, numbers = cell
    key = np.asarray(lattice).tobytes() + np.asarray(frac).tobytes() + bytes(numbers)
    return ready.setdefault(key, Prepared(cell))
