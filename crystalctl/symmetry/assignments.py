"""Which elements can sit on which Wyckoff positions: exact covers of a composition.

Only numpy is used, so that impossible requests are refused before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from itertools import product

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
    come first. The search has no dead ends: what it begins ends in an assignment.
    """
    wanted = [(z, n * lattice_points(group)) for z, n in sorted(composition.items())]
    counts = tuple(n for _, n in wanted)
    for total in _members(_together(group, counts, _single(group))):
        for found in _place(group, wanted, frozenset(), total):
            yield tuple(sorted(found))


def may_hold(group: int, n_atoms: int) -> bool:
    """Whether some positions of a group add up to ``n_atoms`` in the primitive cell."""
    count = n_atoms * lattice_points(group)
    return _ways(group, frozenset(), _width(count))[0][count] != 0


Numbers = int
"""A set of numbers of orbits: bit k is set where k orbits will do."""
Usage = tuple[int, ...]
"""How many positions without freedom, of each multiplicity that the group has them of."""


def _members(numbers: Numbers) -> list[int]:
    return [k for k in range(numbers.bit_length()) if numbers >> k & 1]


def _place(
    group: int, wanted: Sequence[tuple[int, int]], taken: frozenset[int], n_orbits: int
) -> Iterator[list[tuple[int, int]]]:
    """Ways with exactly ``n_orbits`` orbits for what is left of the composition.

    ``taken``: positions without freedom, by index, that others are on.
    """
    if not wanted:
        yield []
        return
    (z, count), rest = wanted[0], wanted[1:]
    there, most = positions(group), _width(count)
    free, later = _left(group, taken), tuple(n for _, n in rest)
    allowed = 0
    for used, numbers in _splits(group, count):
        if all(u <= f for u, f in zip(used, free, strict=True)):
            left = tuple(f - u for u, f in zip(used, free, strict=True))
            for k in _members(_together(group, later, left)):
                if k <= n_orbits and numbers >> n_orbits - k & 1:
                    allowed |= 1 << n_orbits - k + _code(group, used, most)
    ways = _ways(group, taken, most)
    for chosen in _sums(group, ways, count, allowed, 0):
        here = [(there[index].row, z) for index in chosen]
        fixed = taken.union(index for index in chosen if there[index].freedom == 0)
        for more in _place(group, rest, fixed, n_orbits - len(chosen)):
            yield here + more


def _sums(
    group: int, ways: list[list[int]], count: int, allowed: int, start: int
) -> Iterator[tuple[int, ...]]:
    """Multisets of positions from index ``start`` on with ``count`` atoms and an ``allowed`` code.

    ``ways`` and the codes are those of ``_ways``.
    """
    if count == 0:
        yield ()
        return
    there, steps = positions(group), _steps(group, len(ways[0]) - 1)
    for index in range(start, len(there)):
        if not ways[index][count] & allowed:
            return
        left = count - there[index].multiplicity
        taken = ways[index + 1] is ways[index]
        if taken or left < 0:
            continue
        following = index + 1 if there[index].freedom == 0 else index
        rest_allowed = allowed >> steps[index]
        if ways[following][left] & rest_allowed:
            for rest in _sums(group, ways, left, rest_allowed, following):
                yield (index, *rest)


@lru_cache(maxsize=100_000)
def _together(group: int, counts: tuple[int, ...], free: Usage) -> Numbers:
    """Numbers of orbits that can hold all ``counts`` with ``free`` positions without freedom."""
    if not counts:
        return 1
    found = 0
    for used, numbers in _splits(group, counts[0]):
        if all(u <= f for u, f in zip(used, free, strict=True)):
            left = tuple(f - u for u, f in zip(used, free, strict=True))
            for k in _members(_together(group, counts[1:], left)):
                found |= numbers << k
    return found


@lru_cache(maxsize=4096)
def _splits(group: int, count: int) -> list[tuple[Usage, Numbers]]:
    """Ways to hold ``count`` atoms: positions without freedom, and numbers of orbits with them."""
    most = _width(count)
    codes = _ways(group, frozenset(), most)[0][count]
    found = []
    for used in product(*(range(n + 1) for n in _single(group))):
        numbers = codes >> _code(group, used, most) & (1 << most + 1) - 1
        if numbers:
            found.append((used, numbers))
    return found


def _width(count: int) -> int:
    return -(-count // 64) * 64


def _code(group: int, used: Usage, most: int) -> int:
    """The bit of no orbits beside ``used`` in a set of codes."""
    code, unit = 0, most + 1
    for u, n in zip(used, _single(group), strict=True):
        code += u * unit
        unit *= n + 1
    return code


@cache
def _kinds(group: int) -> list[int]:
    """Multiplicities of the positions without freedom."""
    return sorted({here.multiplicity for here in positions(group) if here.freedom == 0})


@cache
def _single(group: int) -> Usage:
    """All positions without freedom, by multiplicity."""
    return _left(group, frozenset())


def _left(group: int, taken: frozenset[int]) -> Usage:
    free = [
        here.multiplicity
        for index, here in enumerate(positions(group))
        if here.freedom == 0 and index not in taken
    ]
    return tuple(free.count(kind) for kind in _kinds(group))


@cache
def _steps(group: int, most: int) -> list[int]:
    """What an orbit on each position adds to a code."""
    kinds = _kinds(group)
    return [
        1
        if here.freedom
        else 1 + _code(group, tuple(int(kind == here.multiplicity) for kind in kinds), most)
        for here in positions(group)
    ]


@lru_cache(maxsize=128)
def _ways(group: int, taken: frozenset[int], most: int) -> list[list[int]]:
    """Codes of what holds n atoms of the cell on the positions from index i on: [i][n].

    A set of codes is an integer: bit k + (most + 1) c stands for k orbits, c the mixed-radix number
    of how many positions without freedom are among them, by multiplicity. Of a position that is
    ``taken`` the table is that of the next, the very same.
    """
    steps = _steps(group, most)
    ways = [[1] + [0] * most]
    for index, here in reversed(list(enumerate(positions(group)))):
        if index in taken:
            ways.insert(0, ways[0])
            continue
        row = list(ways[0])
        source = row if here.freedom else ways[0]
        for n in range(here.multiplicity, most + 1):
            row[n] |= source[n - here.multiplicity] << steps[index]
        ways.insert(0, row)
    return ways


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


def fits(group: int, composition: Mapping[int, int]) -> bool:
    """Whether a composition (Z -> atoms of the primitive cell) can be put on the positions."""
    return next(assignments(group, composition), None) is not None


def possible_atom_counts(group: int, most: int) -> list[int]:
    """Numbers of atoms of the primitive cell, up to ``most``, that some positions add up to."""
    return [n for n in range(1, most + 1) if may_hold(group, n)]


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
