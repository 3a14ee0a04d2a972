"""Textbook structures, and files of them, for the tests of evaluate."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pymatgen.core import Lattice, Structure

ZERO, HALF, QUARTER = [0, 0, 0], [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]


def cubic(group: str, a: float, species: Sequence[str], sites: Sequence[Any]) -> Structure:
    return Structure.from_spacegroup(
        group, Lattice.cubic(a), list(species), list(sites)
    ).get_primitive_structure()


def rock_salt(cation: str = "Na", anion: str = "Cl", a: float = 5.64) -> Structure:
    return cubic("Fm-3m", a, [cation, anion], [ZERO, HALF])


def caesium_chloride(cation: str = "Cs", anion: str = "Cl", a: float = 4.12) -> Structure:
    return cubic("Pm-3m", a, [cation, anion], [ZERO, HALF])


def zinc_blende(cation: str = "Zn", anion: str = "S", a: float = 5.41) -> Structure:
    return cubic("F-43m", a, [cation, anion], [ZERO, QUARTER])


def perovskite(a: float = 3.905) -> Structure:
    return cubic("Pm-3m", a, ["Sr", "Ti", "O"], [ZERO, HALF, [0.5, 0.5, 0]])


def diamond(a: float = 3.57) -> Structure:
    return cubic("Fd-3m", a, ["C"], [ZERO])


def squeezed() -> Structure:
    """Two atoms 0.3 Å apart."""
    return Structure(Lattice.cubic(4), ["Na", "Cl"], [ZERO, [0.075, 0, 0]])


def lonely() -> Structure:
    """One atom in 20 Å of nothing: it has no neighbours to make a fingerprint of."""
    return Structure(Lattice.cubic(20), ["Na"], [ZERO])


def record(structure: Structure, **columns: Any) -> dict[str, Any]:
    """A JSON line of the structure."""
    return {
        "lattice": structure.lattice.matrix.tolist(),
        "species": [site.specie.symbol for site in structure],
        "frac": structure.frac_coords.tolist(),
        **columns,
    }


def write_lines(path: Path, records: Sequence[Mapping[str, Any] | str]) -> Path:
    lines = [one if isinstance(one, str) else json.dumps(one) for one in records]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_cif(path: Path, structure: Structure) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(structure.to(fmt="cif"))
    return path
