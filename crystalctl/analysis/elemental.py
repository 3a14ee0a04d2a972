"""Elements in their known lattices: what a hull needs where a dataset lacks stable ones.

The lattices are AFLOW's prototypes (arXiv:1607.02532), whose table comes with pymatgen.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from crystalctl.analysis.energy import Potential, energies_per_atom
from crystalctl.analysis.relaxation import Relaxed, Settings, primitive, relax

MAX_ATOMS = 12
"""Atoms in the primitive cell. Larger lattices (α-Mn, S8, β-boron) cost most of the time; what
stands for them is within some 0.05 eV/atom."""
SCALES = (0.85, 1.0, 1.15, 1.35)
"""Shortest distance in units of the covalent diameter at which each lattice is tried; of the van
der Waals diameter for noble gases, whose atoms are not bound."""
NOBLE = (2, 10, 18, 36, 54, 86)
LEAST_ANG3 = 4.5
"""Volume of an atom in Å³ below which a lattice is not tried: oxygen packed like copper at the
distance of its molecule is no crystal, and has a thousand neighbours an atom. Diamond has 5.6."""
RELAXED = 3
"""Lattices of an element that are relaxed: those of lowest energy as tried."""
SETTINGS = Settings(fmax=0.02, max_steps=100)


@dataclass(frozen=True)
class Elemental:
    """The lowest energy found for an element: eV/atom and the ``lattice``; or the ``reason``."""

    symbol: str
    energy: float | None
    lattice: str = ""
    reason: str = ""


def elemental(potential: Potential, symbol: str) -> Elemental:
    """The lowest energy of an element with this calculator, over the known elemental lattices."""
    from pymatgen.io.ase import AseAtomsAdaptor

    tried = [
        (name, scaled)
        for name, structure in lattices()
        for scaled in (_scaled(structure, symbol, factor) for factor in SCALES)
        if scaled.volume >= LEAST_ANG3 * len(scaled)
    ]
    frames = [AseAtomsAdaptor.get_atoms(structure) for _, structure in tried]
    best: dict[str, tuple[float, Any]] = {}
    reason = ""
    for (name, structure), energy in zip(tried, energies_per_atom(potential, frames), strict=True):
        if isinstance(energy, str):
            reason = energy
        elif name not in best or energy < best[name][0]:
            best[name] = energy, structure
    chosen = sorted(best, key=lambda name: best[name][0])[:RELAXED]
    done = dict(relax(potential, [best[name][1] for name in chosen], SETTINGS))
    return _lowest(symbol, [(chosen[i], one) for i, one in done.items()], reason)


def _lowest(symbol: str, found: Sequence[tuple[str, Relaxed]], reason: str) -> Elemental:
    usable = [(one.energy, name) for name, one in found if one.energy is not None]
    if usable:
        return Elemental(symbol, *min(usable))
    reasons = [one.reason for _, one in found if one.reason]
    return Elemental(symbol, None, reason=(reasons or [reason or "no lattice"])[0])


@lru_cache(maxsize=1)
def lattices() -> tuple[tuple[str, Any], ...]:
    """Name and primitive cell of every elemental prototype of up to ``MAX_ATOMS`` atoms."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY

        found: dict[str, Any] = {}
        for one in AFLOW_PROTOTYPE_LIBRARY:
            structure = one["snl"].structure
            if len(structure.composition) == 1:
                cell = primitive(structure)
                if len(cell) <= MAX_ATOMS:
                    name = f"{one['tags']['aflow']} ({structure[0].specie.symbol})"
                    found.setdefault(name, cell)
    return tuple(found.items())


def _scaled(structure: Any, symbol: str, factor: float) -> Any:
    """The lattice with another element, its shortest distance ``factor`` diameters of an atom."""
    from ase.data import atomic_numbers, covalent_radii, vdw_radii
    from pymatgen.core import Structure

    number = atomic_numbers[symbol]
    # Neighbours include an atom's own images: a cell of one atom has no other distance.
    centre, _, _, lengths = structure.get_neighbor_list(float(max(structure.lattice.abc)) + 0.1)
    assert len(centre)
    radii = vdw_radii if number in NOBLE else covalent_radii
    wanted = factor * 2 * float(radii[number])
    lattice = structure.lattice.matrix * (wanted / float(lengths.min()))
    return Structure(lattice, [number] * len(structure), structure.frac_coords)
