"""The 230 space groups: names as people write them, operations, lattice constraints, metrics."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import cache

import numpy as np

from crystalctl.errors import InputError
from crystalctl.symmetry.tables import N_GROUPS, Floats, Ints, tables

FAMILIES = ("triclinic", "monoclinic", "orthorhombic", "tetragonal", "hexagonal", "cubic")
"""The six crystal families; hexagonal holds the trigonal groups, which use hexagonal axes."""
PRIMITIVE_BASIS: dict[str, list[list[float]]] = {
    "P": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "A": [[1, 0, 0], [0, 0.5, -0.5], [0, 0.5, 0.5]],
    "C": [[0.5, 0.5, 0], [-0.5, 0.5, 0], [0, 0, 1]],
    "I": [[-0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.5, 0.5, -0.5]],
    "F": [[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]],
    "R": [[2 / 3, 1 / 3, 1 / 3], [-1 / 3, 1 / 3, 1 / 3], [-1 / 3, -2 / 3, 1 / 3]],
}
"""Primitive basis vectors (rows) in the conventional basis; R in its obverse setting."""
_NUMBER = re.compile(r"[+-]?\d+")
_SETTING = re.compile(r"(:\s*(?:[12HRhr]|[12]?(?:-?[abc]){1,3}[1-3]?)|(?<=\w)\s*[SZHRszhr])\s*$")
"""``:2``, ``:H``, ``:b1``, ``:2cab``; or the letter of the ICSD's settings, ``F d -3 m S``."""
_DECORATION = re.compile(r"[\s_{}$\\]")


@dataclass(frozen=True)
class Group:
    """One group in its standard setting.

    ``lattice_free`` (6,) bool says which of the coefficients k1..k6 may vary, ``lattice_fixed``
    (6,) the values of the others; ``metric`` (3, 3) is a Gram matrix H with Rᵀ H R = H for every
    rotation part R acting on fractional columns.
    """

    number: int
    symbol: str
    point_group: str
    centring: str
    family: str
    hall: int
    lattice_free: tuple[bool, ...]
    lattice_fixed: tuple[float, ...]
    metric: Floats

    @property
    def order(self) -> int:
        """Number of operations modulo whole translations, centring included."""
        return len(operations(self.number)[0])


@cache
def group(number: int) -> Group:
    """The group of this number. Raises ``InputError`` unless it is 1..230."""
    check_number(number)
    table, row = tables(), number - 1
    return Group(
        number,
        table.symbols[row],
        table.point_groups[row],
        table.symbols[row][0],
        table.families[row],
        int(table.hall[row]),
        tuple(bool(x) for x in table.lattice_free[row]),
        tuple(float(x) for x in table.lattice_fixed[row]),
        table.metric[row],
    )


def check_number(number: int) -> None:
    """Raise ``InputError`` unless ``number`` is 1..230."""
    if not 1 <= number <= N_GROUPS:
        raise InputError(
            f"there is no space group {number}", f"numbers run from 1 (P1) to {N_GROUPS} (Ia-3d)"
        )


def operations(number: int) -> tuple[Ints, Floats]:
    """All operations x -> R x + t of a group: R (n, 3, 3) int64, t (n, 3) in [0, 1).

    Those of the general position, centring included, the identity first.
    """
    check_number(number)
    table = tables()
    last = int(table.first_position[number]) - 1
    rows = slice(int(table.first_operation[last]), int(table.first_operation[last + 1]))
    return table.rotation[rows], table.translation[rows]


@cache
def primitive_basis(centring: str) -> Floats:
    """Rows a, b, c of a primitive cell in the conventional basis, (3, 3)."""
    return np.array(PRIMITIVE_BASIS[centring], dtype=float)


def normalise_symbol(text: str) -> str:
    """A symbol without blanks, underscores, setting and capitals: the key of look-ups."""
    text = text.strip().replace("\u2212", "-").replace("\\bar", "-").replace("\u0305", "")
    return _DECORATION.sub("", _SETTING.sub("", text)).lower()


def parse_group(text: str | int) -> int:
    """Number of a group given by number or Hermann-Mauguin symbol, in any usual spelling.

    ``225``, ``Fm-3m``, ``F m -3 m``, ``fm-3m``, ``P2_1/c``, ``P 1 21/c 1`` and symbols of other
    settings (``P21/n``, ``Pbnm``) all work; the answer is always in the standard setting. Raises
    ``InputError`` naming the nearest symbols.
    """
    if isinstance(text, int):
        check_number(text)
        return text
    if _NUMBER.fullmatch(text.strip()):
        check_number(int(text))
        return int(text)
    aliases = tables().aliases
    key = normalise_symbol(text)
    if key in aliases:
        return aliases[key]
    near: dict[int, None] = {}
    for name in difflib.get_close_matches(key, aliases, n=8, cutoff=0.5):
        near[aliases[name]] = None
    names = ", ".join(f"{tables().symbols[n - 1]} ({n})" for n in list(near)[:3])
    raise InputError(
        f"{text!r} is not a space group",
        (f"did you mean {names}? " if names else "")
        + "Give a number 1..230 or a Hermann-Mauguin symbol such as Fm-3m or P2_1/c",
    )


def groups_of_family(name: str) -> list[int]:
    """Numbers of the groups of a family or crystal system (``cubic``, ``trigonal``, ``any``).

    Raises ``InputError`` for other words.
    """
    systems = {
        "triclinic": (1, 2),
        "monoclinic": (3, 15),
        "orthorhombic": (16, 74),
        "tetragonal": (75, 142),
        "trigonal": (143, 167),
        "hexagonal": (168, 194),
        "cubic": (195, 230),
        "any": (1, N_GROUPS),
    }
    key = name.strip().lower()
    if key not in systems:
        raise InputError(f"{name!r} is not a crystal system", f"allowed: {', '.join(systems)}")
    first, last = systems[key]
    return list(range(first, last + 1))
