"""A CIF written with its symmetry: group, operations, one row for each orbit."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING

from crystalctl.crystal.elements import symbol_of
from crystalctl.symmetry.groups import group, operations
from crystalctl.symmetry.wyckoff import position

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_AXES = "xyz"


def orbit_cif(
    number: int,
    cell: Sequence[float],
    rows: Sequence[int],
    *,
    anchors: NDArray[np.float64],
    species: Sequence[int],
    name: str,
) -> str:
    """CIF of a structure given by its orbits, in the standard setting of group ``number``.

    ``cell``: a, b, c in Å and the angles in degrees; ``rows``: table row of the position of each
    orbit; ``anchors`` (O, 3) on their positions; ``species`` atomic numbers. Operations are exact
    fractions; coordinates have ten digits, so that no reader doubles a special position.
    """
    symbol, hall = _symbols(number)
    lines = [f"data_{name}"]
    names = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    lines += [f"_cell_{key} {value:.8f}" for key, value in zip(names, cell, strict=True)]
    lines += [
        f"_symmetry_space_group_name_H-M '{symbol}'",
        f"_space_group_name_H-M_alt '{symbol}'",
        f"_space_group_name_Hall '{hall}'",
        f"_space_group_IT_number {number}",
        f"_symmetry_Int_Tables_number {number}",
        "loop_",
        "_symmetry_equiv_pos_site_id",
        "_symmetry_equiv_pos_as_xyz",
    ]
    rotations, shifts = operations(number)
    for i, (rotation, shift) in enumerate(zip(rotations, shifts, strict=True), start=1):
        lines.append(f"{i} '{_triplet(rotation, shift)}'")
    lines += [
        "loop_",
        "_atom_site_type_symbol",
        "_atom_site_label",
        "_atom_site_symmetry_multiplicity",
        "_atom_site_Wyckoff_symbol",
        "_atom_site_fract_x",
        "_atom_site_fract_y",
        "_atom_site_fract_z",
        "_atom_site_occupancy",
    ]
    for i, (row, anchor, z) in enumerate(zip(rows, anchors, species, strict=True)):
        place, element = position(row), symbol_of(z)
        where = " ".join(f"{value:.10f}" for value in anchor)
        lines.append(f"{element} {element}{i} {place.multiplicity} {place.letter} {where} 1")
    return "\n".join(lines) + "\n"


@cache
def _symbols(number: int) -> tuple[str, str]:
    """Hermann-Mauguin symbol with its spaces (``P 1 21/c 1``), and Hall symbol, by spglib."""
    import spglib

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of its old way to report errors
        facts = spglib.get_spacegroup_type(group(number).hall)
    return facts.international.split(" = ")[-1].replace("_", ""), facts.hall_symbol


def _triplet(rotation: NDArray[np.int64], shift: NDArray[np.float64]) -> str:
    """One operation as ``-x+1/2, y, z``."""
    parts = []
    for row, t in zip(rotation, shift, strict=True):
        text = ""
        for coefficient, axis in zip(row, _AXES, strict=True):
            if coefficient:
                sign = "-" if coefficient < 0 else "+" if text else ""
                text += sign + ("" if abs(coefficient) == 1 else str(abs(coefficient))) + axis
        fraction = Fraction(float(t)).limit_denominator(24)
        parts.append(text + (f"+{fraction}" if fraction else ""))
    return ", ".join(parts)
