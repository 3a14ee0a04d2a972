"""Crystals <-> pymatgen <-> ASE, the edge of the numeric core."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from crystalctl.crystal.batch import MAX_Z, Crystals, Layout
from crystalctl.crystal.periodic import wrap
from crystalctl.errors import DataError

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure


def to_structures(crystals: Crystals) -> list[Structure]:
    """Crystals -> pymatgen Structures, coordinates in double precision."""
    from pymatgen.core import Lattice, Structure

    return [
        Structure(
            Lattice(one.lattice[0].double().cpu().numpy()),
            one.species.tolist(),
            one.frac.double().cpu().numpy(),
        )
        for one in crystals.split()
    ]


def from_structures(
    structures: Sequence[Structure], dtype: torch.dtype = torch.float32
) -> Crystals:
    """Pymatgen Structures -> packed crystals, the lattice as it is, coordinates wrapped.

    Raises ``DataError`` for a structure with partial occupancy or an element above Z = 100.
    """
    species = []
    for number, structure in enumerate(structures):
        if not structure.is_ordered:
            raise DataError(
                f"structure {number} ({structure.formula}) has partially occupied sites",
                "replace them by an ordered structure first",
            )
        species.append([int(getattr(s.specie, "Z", 0)) for s in structure])
    return _pack(
        [s.lattice.matrix for s in structures], [s.frac_coords for s in structures], species, dtype
    )


def to_atoms(crystals: Crystals) -> list[Atoms]:
    """Crystals -> ASE Atoms, periodic in three directions."""
    from ase import Atoms

    return [
        Atoms(
            numbers=one.species.tolist(),
            scaled_positions=one.frac.double().cpu().numpy(),
            cell=one.lattice[0].double().cpu().numpy(),
            pbc=True,
        )
        for one in crystals.split()
    ]


def from_atoms(atoms: Sequence[Atoms], dtype: torch.dtype = torch.float32) -> Crystals:
    """ASE Atoms -> packed crystals, the lattice as it is, coordinates wrapped.

    Raises ``DataError`` for atoms that are not periodic in three directions.
    """
    for number, one in enumerate(atoms):
        if one.cell.rank < 3 or not one.pbc.all():
            raise DataError(
                f"structure {number} ({one.get_chemical_formula()}) is not periodic in three "
                f"directions (pbc {one.pbc.tolist()})",
                "set the cell and pbc=True",
            )
    return _pack(
        [one.cell.array for one in atoms],
        [one.cell.scaled_positions(one.positions) for one in atoms],
        [one.numbers.tolist() for one in atoms],
        dtype,
    )


def _pack(
    lattices: Sequence[object],
    fracs: Sequence[object],
    species: Sequence[Sequence[int]],
    dtype: torch.dtype,
) -> Crystals:
    for number, row in enumerate(species):
        if not row or not all(1 <= z <= MAX_Z for z in row):
            raise DataError(
                f"structure {number} has atomic numbers {sorted(set(row))}",
                f"each structure needs at least one atom, of elements 1 to {MAX_Z}",
            )
    frac = [torch.tensor(f, dtype=torch.float64).reshape(-1, 3) for f in fracs]
    lattice = [torch.tensor(m, dtype=torch.float64).reshape(1, 3, 3) for m in lattices]
    return Crystals(
        Layout(torch.tensor([len(row) for row in species], dtype=torch.int64)),
        torch.cat([torch.zeros(0, 3, 3, dtype=torch.float64), *lattice]).to(dtype),
        # Wrapped again after rounding: 0.99999999 becomes 1.0 in single precision.
        wrap(wrap(torch.cat([torch.zeros(0, 3, dtype=torch.float64), *frac])).to(dtype)),
        torch.tensor([z for row in species for z in row], dtype=torch.int64),
    )
