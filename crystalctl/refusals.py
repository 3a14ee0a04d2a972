"""Why a wish for space groups cannot be met, and the nearest that can be. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

from crystalctl.chosen import Chosen
from crystalctl.crystal.elements import symbol_of
from crystalctl.errors import InputError
from crystalctl.symmetry.assignments import (
    atoms_of,
    describe,
    lattice_points,
)
from crystalctl.symmetry.tables import tables
from crystalctl.symmetry.wyckoff import position
from crystalctl.templating import Symmetry, names_of, ways_in

FURTHEST = 96
"""Atoms of the largest cell that a refusal names."""
_LOOKED_AT = 20
"""Assignments of one size of which one must have the group itself."""


def refuse_composition(
    symmetry: Symmetry, unit: Mapping[int, int], units: Sequence[int], most: int
) -> InputError:
    """Why no number of formula units in ``units`` fits, and the nearest atom counts that do.

    ``most``: atoms of the largest cell that the weights know.
    """
    per_unit = sum(unit.values())
    name = "".join(f"{symbol_of(z)}{n if n > 1 else ''}" for z, n in unit.items())
    where = names_of(symmetry.groups)
    tried = f"{' or '.join(str(z * per_unit) for z in units)} atoms in the primitive cell"
    known = [z * per_unit for z in range(1, most // per_unit + 1) if _exists(symmetry, unit, z)]
    further = range(most // per_unit + 1, 0 if known else FURTHEST // per_unit + 1)
    next_size = next((z * per_unit for z in further if _exists(symmetry, unit, z)), None)
    if known:
        hint = f"possible up to {most} atoms: {', '.join(map(str, known))}; use --num-atoms"
    elif next_size:
        hint = f"the smallest cell that fits has {next_size} atoms, the weights know up to {most}"
    elif symmetry.rows is not None:
        hint = _held(symmetry.rows)
    else:
        hint = f"no cell of {name} up to {max(most, FURTHEST)} atoms fits; choose another group"
    if symmetry.rows is not None:
        where = f"{describe(symmetry.rows)} of {where}"
    at = "positions of " if symmetry.rows is None else ""
    if any(_exists(symmetry, unit, z, admitted=False) for z in units):
        return InputError(
            f"{name} with {tried} on {at}{where} always has more symmetry than the group",
            f"{hint}; or add --allow-supergroup",
        )
    if symmetry.rows is not None:
        positions = "position" if len(symmetry.rows) == 1 else "positions"
        return InputError(f"the {positions} {where} cannot hold {name} with {tried}", hint)
    return InputError(f"no Wyckoff positions of {where} add up to {name} with {tried}", hint)


def _exists(symmetry: Symmetry, unit: Mapping[int, int], z: int, *, admitted: bool = True) -> bool:
    """Whether ``z`` units fit, and among the first ways to do so is one that is ``admitted``."""
    composition = {element: z * n for element, n in unit.items()}
    for group in symmetry.groups:
        for way in islice(ways_in(symmetry, group, composition), _LOOKED_AT):
            if not admitted or symmetry.admits(Chosen.of(way)):
                return True
    return False


def _held(rows: Sequence[int]) -> str:
    """How many atoms of the primitive cell positions have, each and together."""
    points = lattice_points(int(tables().group[rows[0]]))
    if len(rows) == 1:
        total = atoms_of(rows)
        return f"it has {total} {'atom' if total == 1 else 'atoms'} there"
    sizes = " + ".join(f"{position(row).multiplicity // points}" for row in rows)
    return f"they have {sizes} = {atoms_of(rows)} atoms there"
