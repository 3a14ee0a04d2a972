"""Structures <-> files: CIF with symmetry operations, POSCAR, extended XYZ; writes are atomic."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalctl.errors import InputError

if TYPE_CHECKING:
    from crystalctl.analysis.symmetrise import Symmetric

FORMATS = {"cif": ".cif", "poscar": ".vasp", "extxyz": ".extxyz"}
"""File formats for ranked structures and their suffixes."""
_CIF_SYMPREC = 0.005
_UNITS = re.compile(r"^_cell_formula_units_Z.*\n", re.MULTILINE)


def parse_formats(text: str) -> list[str]:
    """The value of ``--format``: a comma-separated list out of ``FORMATS``."""
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        raise InputError(f"--format is '{text}'", f"allowed: {', '.join(FORMATS)}, or several")
    return list(dict.fromkeys(names))


def write_atomic(path: Path, content: str | bytes | Iterable[str]) -> None:
    """Write a file in one step: a reader sees the old file or the new one, never half.

    ``content`` may come in pieces, which are not held together in memory.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    pieces = [content] if isinstance(content, str | bytes) else content
    try:
        with part.open("wb") as handle:
            for piece in pieces:
                handle.write(piece.encode() if isinstance(piece, str) else piece)
            handle.flush()
            os.fsync(handle.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def structure_text(symmetric: Symmetric, form: str, *, info: Mapping[str, Any]) -> str:
    """A structure with its group as the text of a file of format ``form`` (see ``FORMATS``).

    A CIF carries the operations of the group.
    """
    structure = symmetric.structure
    if form == "cif" and symmetric.orbits is not None:
        from crystalctl.io.cif import orbit_cif  # the tables of groups need numpy

        cell = symmetric.orbits
        return orbit_cif(
            cell.number,
            cell.cell,
            cell.rows,
            anchors=cell.anchors,
            species=cell.species,
            name=structure.composition.reduced_formula,
        )
    if form == "cif":
        return cif_text(structure, symmetric.number)
    if form == "poscar":
        from pymatgen.io.vasp import Poscar

        return str(Poscar(structure.get_sorted_structure()).get_str(significant_figures=10))
    row = (structure.lattice.matrix, structure.frac_coords, [s.specie.Z for s in structure], info)
    return extxyz_text([row])


def cif_text(structure: Any, number: int = 1) -> str:
    """CIF of a pymatgen structure; with symmetry operations when ``number`` is above 1.

    Falls back to P1 with all atoms when the operations found are not those of ``number``.
    """
    from pymatgen.io.cif import CifWriter

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if number > 1:
            text = str(CifWriter(structure, symprec=_CIF_SYMPREC, significant_figures=8))
            if f"_symmetry_Int_Tables_number   {number}\n" in text:
                return _whole_units(text, structure)
        return _whole_units(str(CifWriter(structure, significant_figures=8)), structure)


def _whole_units(text: str, structure: Any) -> str:
    """Without the number of formula units where it is none: one Cl is half a Cl2 to pymatgen."""
    if structure.composition.get_reduced_composition_and_factor()[1] % 1 == 0:
        return text
    return _UNITS.sub("", text)


Row = tuple[Any, Any, Sequence[int], Mapping[str, Any]]
"""Lattice (3, 3) Å rows, fractional coordinates (n, 3), n atomic numbers, facts to store."""


def extxyz_text(rows: Sequence[Row]) -> str:
    """Raw cells as extended XYZ, also impossible ones (their numbers may be nan)."""
    import ase.io
    import numpy as np
    from ase import Atoms

    frames = []
    for lattice, frac, species, info in rows:
        cell, points = np.asarray(lattice, dtype=float), np.asarray(frac, dtype=float)
        with np.errstate(all="ignore"):
            cartesian = points @ cell
        frame = Atoms(numbers=list(species), positions=cartesian, cell=cell, pbc=True)
        frame.info.update(info)
        frames.append(frame)
    text = io.StringIO()
    if frames:
        ase.io.write(text, frames, format="extxyz")
    return text.getvalue()


def read_extxyz(path: Path) -> list[tuple[Any, dict[str, Any]]]:
    """Frames of an extended XYZ file as ``(ase.Atoms, info)``."""
    import ase.io

    frames = ase.io.read(path, index=":", format="extxyz")
    return [(frame, dict(frame.info)) for frame in frames]
