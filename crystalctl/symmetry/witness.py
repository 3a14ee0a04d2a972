"""Whether occupied positions leave a structure with exactly its group, shown by an example."""

from __future__ import annotations

import warnings
from functools import lru_cache

import numpy as np

from crystalctl.symmetry.groups import primitive_basis
from crystalctl.symmetry.tables import Floats, tables

_SYMPREC_ANG = 1e-3


@lru_cache(maxsize=4096)
def has_own_group(rows: tuple[int, ...], species: tuple[int, ...] | None = None) -> bool:
    """Whether random anchors have the group of ``rows`` exactly; if not, no anchors do.

    ``rows``: table rows of one group. Positions such as 2a of P222 alone always give a supergroup.
    ``species``: atomic number on each, without it another element on each: NaCl on 4a 4b 8c of
    Fm-3m, chlorine on both 4a and 4b, is the CsCl structure.
    """
    import spglib

    table = tables()
    number = int(table.group[rows[0]])
    draw = np.random.default_rng(sum(rows))
    # In the primitive cell, as spglib is several times faster with fewer atoms.
    basis = primitive_basis(table.symbols[number - 1][0])
    into = np.linalg.inv(basis)
    frac, kinds = [], []
    for kind, row in zip(species or range(1, len(rows) + 1), rows, strict=True):
        here = slice(int(table.first_operation[row]), int(table.first_operation[row + 1]))
        anchor = draw.random(3)
        placed = table.rotation[here] @ anchor + table.translation[here]
        points = placed @ into % 1.0
        points = points[np.unique(np.round(points, 6) % 1.0, axis=0, return_index=True)[1]]
        frac.append(points)
        kinds += [kind] * len(points)
    cell = (basis @ _lattice(number, draw), np.concatenate(frac), kinds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            facts = spglib.get_symmetry_dataset(cell, symprec=_SYMPREC_ANG)
        except Exception:  # the class of its errors changed between versions
            return False
    return facts is not None and int(facts.number) == number


def _lattice(number: int, draw: np.random.Generator) -> Floats:
    """A cell of the family of a group with nothing special about it, about 10 Å wide."""
    a, b, c = 10.0, 11.3, 12.9
    angles = np.radians(draw.uniform(80, 100, 3))
    family = tables().families[number - 1]
    if family != "triclinic":
        angles[[0, 2]] = np.pi / 2
    if family not in ("triclinic", "monoclinic"):
        angles[1] = np.pi / 2
    if family in ("tetragonal", "hexagonal", "cubic"):
        b = a
    if family == "cubic":
        c = a
    if family == "hexagonal":
        angles[2] = np.radians(120)
    cosines = np.cos(angles)
    x = (cosines[0] - cosines[1] * cosines[2]) / np.sin(angles[2])
    height = np.sqrt(1 - cosines[1] ** 2 - x**2)
    return np.array(
        [
            [a, 0, 0],
            [b * cosines[2], b * np.sin(angles[2]), 0],
            [c * cosines[1], c * x, c * height],
        ]
    )
