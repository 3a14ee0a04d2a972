"""Which elements can sit on which Wyckoff positions: exact covers of a composition.

Only numpy is used, so that impossible requests are refused before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from crystalctl.symmetry.groups import check_number
from crystalctl.symmetry.tables import N_GROUPS, tables
from crystalctl.symmetry.wyckoff import Position, positions

LATTICE_POINTS = {"P": 1, "A": 2, "C": 2, "I": 2, "F": 4, "R": 3}
"""Lattice points in the conventional cell, by centring letter."""

Assignment = tuple[tuple[int, int], ...]
"""(Table row of the position, atomic number) of each orbit, ascending."""


@cache
def lattice_points(group: int) -> int:
    """Lattice points in the conventional cell: its atoms over those of the primitive cell."""
    check_number(group)
    return LATTICE_POINTS[tables().symbols[group - 1][0]]


def assignments(group: int, composition: Mapping[int, int]) -> Iterator[Assignment]:
    """All ways to put a composition (Z -> atoms of the primitive cell) on the positions of a group.

    Positions without freedom are used once at most, others as often as they fit. Few orbits
    come first.
    """
    wanted = [(z, n * lattice_points(group)) for z, n in sorted(composition.items())]
    least = sum(_fewest(group, n) for _, n in wanted)
    if least >= _NEVER:
        return
    for total in range(least, sum(n for _, n in wanted) + 1):
        for found in _place(group, wanted, frozenset(), total):
            yield tuple(sorted(found))


_NEVER = 10**6


def may_hold(group: int, n_atoms: int) -> bool:
    """Whether some positions of a group add up to ``n_atoms`` in the primitive cell."""
    return _fewest(group, n_atoms * lattice_points(group)) < _NEVER


def _place(
    group: int, wanted: Sequence[tuple[int, int]], taken: frozenset[int], n_orbits: int
) -> Iterator[list[tuple[int, int]]]:
    """Ways with exactly ``n_orbits`` orbits for what is left of the composition."""
    if not wanted:
        if n_orbits == 0:
            yield []
        return
    (z, count), rest = wanted[0], wanted[1:]
    later = sum(_fewest(group, n) for _, n in rest)
    for rows in _sums(group, count, n_orbits - later):
        fixed = {row for row, freedom in rows if freedom == 0}
        if fixed & taken:
            continue
        here = [(row, z) for row, _ in rows]
        for more in _place(group, rest, taken | fixed, n_orbits - len(rows)):
            yield here + more


def _sums(
    group: int, count: int, most: int, start: int = 0
) -> Iterator[tuple[tuple[int, int], ...]]:
    """Multisets of at most ``most`` positions with ``count`` atoms: (row, freedom) of each."""
    if count == 0:
        yield ()
        return
    if most <= 0:
        return
    there = positions(group)
    for index in range(start, len(there)):
        here = there[index]
        if here.multiplicity > count:
            continue
        following = index + 1 if here.freedom == 0 else index
        for rest in _sums(group, count - here.multiplicity, most - 1, following):
            yield ((here.row, here.freedom), *rest)


@cache
def _fewest(group: int, count: int) -> int:
    """Least number of orbits with ``count`` atoms together, a large number if there is none."""
    sizes = _sizes(group)
    best = [0] + [_NEVER] * count
    for size, available in sizes:
        if available is None:
            for total in range(size, count + 1):
                best[total] = min(best[total], best[total - size] + 1)
        else:
            for _ in range(available):
                for total in range(count, size - 1, -1):
                    best[total] = min(best[total], best[total - size] + 1)
    return best[count]


@cache
def reach(most: int) -> NDArray[np.bool_]:
    """Whether the positions of a group from the i-th on can add up to m atoms.

    (231, P + 2, most + 1) by group number, i and m, the atoms of the primitive cell; P = 27.
    """
    width = max(len(positions(group)) for group in range(1, N_GROUPS + 1))
    found = np.zeros((N_GROUPS + 1, width + 2, most + 1), dtype=bool)
    found[..., 0] = True
    for group in range(1, N_GROUPS + 1):
        points = lattice_points(group)
        for index, here in reversed(list(enumerate(positions(group)))):
            size = here.multiplicity // points
            row = found[group, index + 1].copy()
            source = row if here.freedom else found[group, index + 1]
            for m in range(size, most + 1):
                row[m] |= source[m - size]
            found[group, index] = row
    return found


@cache
def _sizes(group: int) -> list[tuple[int, int | None]]:
    """Multiplicities with how many orbits of that size there can be; None: any number."""
    found: dict[int, int | None] = {}
    for here in positions(group):
        size = here.multiplicity
        if here.freedom:
            found[size] = None
        elif found.get(size, 0) is not None:
            found[size] = (found.get(size) or 0) + 1
    return sorted(found.items())


def fits(group: int, composition: Mapping[int, int]) -> bool:
    """Whether a composition (Z -> atoms of the primitive cell) can be put on the positions."""
    return next(assignments(group, composition), None) is not None


def possible_atom_counts(group: int, most: int) -> list[int]:
    """Numbers of atoms of the primitive cell, up to ``most``, that some positions add up to."""
    points = lattice_points(group)
    return [n for n in range(1, most + 1) if _fewest(group, n * points) < _NEVER]


def atoms_of(rows: Sequence[int]) -> int:
    """Atoms of the primitive cell on positions ``rows`` (table rows) of one group."""
    table = tables()
    group = int(table.group[rows[0]])
    return sum(int(table.multiplicity[row]) for row in rows) // lattice_points(group)


def covers(rows: Sequence[int], composition: Mapping[int, int]) -> list[Assignment]:
    """All ways to put a composition on exactly the positions ``rows``, which may repeat."""
    table = tables()
    points = lattice_points(int(table.group[rows[0]]))
    left = {z: n * points for z, n in composition.items()}
    found: set[Assignment] = set()

    def place(index: int, chosen: tuple[tuple[int, int], ...]) -> None:
        if index == len(rows):
            if not any(left.values()):
                found.add(tuple(sorted(chosen)))
            return
        size = int(table.multiplicity[rows[index]])
        for z in sorted(left):
            if left[z] >= size:
                left[z] -= size
                place(index + 1, (*chosen, (rows[index], z)))
                left[z] += size

    place(0, ())
    return sorted(found)


def describe(rows: Sequence[int]) -> str:
    """Positions as people write them, ``4a 4b``."""
    from crystalctl.symmetry.wyckoff import position

    labels: list[Position] = [position(row) for row in rows]
    return " ".join(here.label for here in labels)
