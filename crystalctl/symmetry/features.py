"""What networks see of the 230 groups and the 1731 Wyckoff positions: descriptors, not numbers.

A group: its centring (6), family (6), point group (32), whether it is chiral and centrosymmetric,
and a number (16) among the groups that share all this, which differ by screws and glides. A
position: those of its group, its site symmetry (78 symbols), freedom (4), multiplicity (17), and
where it is, by structure factors (48): F(h) = mean over its images of exp(2 pi i h x), averaged
over what is free. Ref: App. A.4.3, arXiv:2505.10994, which has Fourier features of the position's
shape in the asymmetric unit instead. Only numpy is used.
"""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np

from crystalctl.symmetry.groups import FAMILIES, PRIMITIVE_BASIS, operations
from crystalctl.symmetry.tables import N_GROUPS, Floats, tables

WAVES = (
    *((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1), (1, -1, 0)),
    *((2, 0, 0), (0, 2, 0), (0, 0, 2), (2, 2, 0), (2, 0, 2), (0, 2, 2), (2, 2, 2), (0, 2, 1)),
    *((3, 0, 0), (0, 3, 0), (0, 0, 3), (3, 1, 1), (1, 3, 1), (1, 1, 3), (3, 2, 1), (1, 1, 2)),
)
"""The h of the structure factors."""


@cache
def group_features() -> Floats:
    """(231, 62) by group number; row 0 is 0."""
    table = tables()
    points = sorted(set(table.point_groups))
    rows = []
    seen: Counter[tuple[object, ...]] = Counter()
    for row in range(N_GROUPS):
        rotations = operations(row + 1)[0]
        chiral = bool((np.linalg.det(rotations) > 0).all())
        centric = bool((rotations == -np.eye(3, dtype=int)).all((1, 2)).any())
        kind = (table.symbols[row][0], table.families[row], table.point_groups[row])
        parts = [
            _one_hot(list(PRIMITIVE_BASIS).index(kind[0]), len(PRIMITIVE_BASIS)),
            _one_hot(FAMILIES.index(kind[1]), len(FAMILIES)),
            _one_hot(points.index(kind[2]), len(points)),
            np.array([chiral, centric], float),
            _one_hot(seen[kind], 16),
        ]
        seen[kind] += 1
        rows.append(np.concatenate(parts))
    return np.concatenate([np.zeros((1, len(rows[0]))), np.stack(rows)])


@cache
def position_features() -> Floats:
    """(1731, 231) by table row."""
    table = tables()
    sizes = sorted(set(table.multiplicity.tolist()))
    waves = np.array(WAVES, float)
    rows = []
    for row in range(len(table.group)):
        here = slice(int(table.first_operation[row]), int(table.first_operation[row + 1]))
        along = waves @ table.rotation[here]
        phase = np.exp(2j * np.pi * (table.translation[here] @ waves.T))
        # A wave along a free direction averages to nothing.
        factor = np.where((along == 0).all(2), phase, 0).mean(0)
        parts = [
            group_features()[table.group[row]],
            _one_hot(int(table.site_symmetry[row]), len(table.site_symbols)),
            _one_hot(int(table.freedom[row]), 4),
            _one_hot(sizes.index(int(table.multiplicity[row])), len(sizes)),
            factor.real,
            factor.imag,
        ]
        rows.append(np.concatenate(parts))
    return np.stack(rows)


def _one_hot(index: int, width: int) -> Floats:
    found = np.zeros(width)
    found[index] = 1
    return found
