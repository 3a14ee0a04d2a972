"""A sample that was drawn within a space group: its exact cell, and the group it really has."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from crystalctl.analysis.packed import Packed
from crystalctl.analysis.validity import lengths_angles
from crystalctl.symmetry.groups import group

if TYPE_CHECKING:
    from crystalctl.crystal.batch import Crystals

SYMPREC_ANG = 0.01
"""spglib must find the requested group, no more, at this tolerance."""


@dataclass(frozen=True, slots=True)
class OrbitCell:
    """A conventional cell by its orbits, in double precision.

    ``cell``: a, b, c (Å) and angles (degrees), those the family fixes exact; ``rows`` (O,) table
    rows, ``anchors`` (O, 3), ``species`` (O,) Z. ``packed``: all atoms.
    """

    number: int
    cell: tuple[float, ...]
    rows: tuple[int, ...]
    anchors: Any
    species: tuple[int, ...]
    packed: Packed

    @property
    def structure(self) -> Any:
        """All atoms, a pymatgen Structure."""
        return self.packed.structure

    @property
    def symbol(self) -> str:
        return group(self.number).symbol


def orbit_cell(crystal: Crystals) -> OrbitCell | None:
    """The exact cell of one crystal with orbits, a batch of one; None without orbits."""
    from pymatgen.core import Lattice

    orbits, groups = crystal.layout.orbits, crystal.layout.space_group
    if orbits is None or groups is None:
        return None
    number = int(groups[0])
    frac = orbits.place(orbits.at_anchors(crystal.frac).double())
    cell = exact_parameters(number, lengths_angles(crystal.lattice[0].double().numpy()))
    species = crystal.species.tolist()
    return OrbitCell(
        number,
        cell,
        tuple(orbits.position.tolist()),
        orbits.at_anchors(frac).numpy(),
        tuple(orbits.at_anchors(crystal.species).tolist()),
        Packed(
            np.array(Lattice.from_parameters(*cell).matrix),
            frac.numpy(),
            np.array(species, np.uint8),
        ),
    )


def exact_parameters(number: int, cell: Any) -> tuple[float, ...]:
    """Cell parameters with the equalities of the group's family made exact (a = b, 90, 120)."""
    a, b, c, alpha, beta, gamma = (float(x) for x in cell)
    family = group(number).family
    if family == "triclinic":
        return a, b, c, alpha, beta, gamma
    if family == "monoclinic":
        return a, b, c, 90.0, beta, 90.0
    if family in ("tetragonal", "hexagonal"):
        a = b = float(np.sqrt(a * b))
    if family == "cubic":
        a = b = c = float(np.cbrt(a * b * c))
    return a, b, c, 90.0, 90.0, 120.0 if family == "hexagonal" else 90.0


def found_group(structure: Any, symprec: float = SYMPREC_ANG) -> int:
    """Number of the space group spglib finds, 0 for none."""
    import spglib

    cell = (structure.lattice.matrix, structure.frac_coords, [s.specie.Z for s in structure])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            facts = spglib.get_symmetry_dataset(cell, symprec=symprec)
        except Exception:  # the class of its errors changed between versions
            return 0
    return 0 if facts is None else int(facts.number)
