"""Find the symmetry of a sample and the conventional cell that has it exactly."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crystalctl.analysis.exact import OrbitCell
from crystalctl.analysis.packed import Packed

SYMPREC_LADDER_ANG = (0.1, 0.05, 0.01)
"""Tolerances tried in turn; the first whose symmetric cell reproduces the sample is taken."""
_ANGLE_TOLERANCE_DEG = 5.0
_VOLUME_CHANGE = 0.1


@dataclass(frozen=True, slots=True)
class Symmetric:
    """A structure with its group: ``packed`` is the conventional standard cell.

    ``symprec`` is the tolerance in Å that found the group; None when none held, and then the
    structure is the sample itself, described as P1.
    """

    packed: Packed
    number: int
    symbol: str
    symprec: float | None
    orbits: OrbitCell | None = None
    """The same cell by its orbits, where the sample was drawn within its group."""

    @property
    def structure(self) -> Any:
        """The conventional cell, a pymatgen Structure."""
        return self.packed.structure


def symmetrise(structure: Any, ladder: Sequence[float] = SYMPREC_LADDER_ANG) -> Symmetric:
    """The conventional standard cell (spglib) of a valid pymatgen structure, exactly symmetric.

    Falls back to the sample as P1 where no tolerance gives a cell that reproduces it.
    """
    for symprec in ladder:
        found = _standard_cell(structure, symprec)
        if found is None:
            continue
        cell, number, symbol = found
        if number == 1:
            break
        if reproduces(structure, cell, within_ang=2 * symprec):
            return Symmetric(Packed.of(cell), number, symbol, symprec)
    return Symmetric(Packed.of(structure), 1, "P1", None)


def _standard_cell(structure: Any, symprec: float) -> tuple[Any, int, str] | None:
    import spglib
    from pymatgen.core import Structure

    cell = (structure.lattice.matrix, structure.frac_coords, [s.specie.Z for s in structure])
    options = {"symprec": symprec, "angle_tolerance": _ANGLE_TOLERANCE_DEG}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            facts = spglib.get_symmetry_dataset(cell, **options)
        except Exception:  # spglib raises its own errors for cells it cannot standardise
            return None
    if facts is None:
        return None
    standard = Structure(facts.std_lattice, facts.std_types, facts.std_positions % 1.0)
    return standard, int(facts.number), str(facts.international)


def reproduces(sample: Any, cell: Any, *, within_ang: float) -> bool:
    """Whether ``cell`` is the sample with no atom moved by more than ``within_ang`` Å."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    per_atom = sample.volume / len(sample)
    if abs(cell.volume / len(cell) / per_atom - 1) > _VOLUME_CHANGE:
        return False
    matcher = StructureMatcher(ltol=0.1, stol=0.3, angle_tol=5, scale=False)
    found = matcher.get_rms_dist(sample, cell)
    if found is None:
        return False
    return float(found[1]) * float(np.cbrt(per_atom)) <= within_ang
