"""A structure as bare numbers: thousands are kept at once, and pymatgen's objects are large."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystalctl.analysis.reduction import Cell


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """``lattice`` (3, 3) Å rows, ``frac`` (n, 3) fractional, ``numbers`` (n,) atomic numbers.

    1 kB for 25 atoms, where a pymatgen Structure takes 15.
    """

    lattice: NDArray[np.float64]
    frac: NDArray[np.float64]
    numbers: NDArray[np.uint8]

    @staticmethod
    def of(structure: Any) -> Packed:
        """The numbers of a pymatgen Structure without partial occupancy."""
        numbers = [site.specie.Z for site in structure]
        frac = np.array(structure.frac_coords)
        return Packed(np.array(structure.lattice.matrix), frac, np.array(numbers, np.uint8))

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def cell(self) -> Cell:
        """Lattice, coordinates and atomic numbers, as comparisons take them."""
        return self.lattice, self.frac, self.numbers.tolist()

    @property
    def structure(self) -> Any:
        """The pymatgen Structure, made anew: exactly that of ``of``, but for site properties."""
        from pymatgen.core import Lattice, Structure

        return Structure(Lattice(self.lattice), self.numbers.tolist(), self.frac)
