"""Templates that differ by the choice of origin or setting only: one form for all of them.

Rock salt can be written with its sites on a, b or on b, a. Such descriptions are turned into each
other by the affine normaliser of the group, which permutes its Wyckoff positions; the table holds
all permutations (``build_normaliser.py`` says how they were found).
Ref: Koch, Fischer & Müller, International Tables for Crystallography A (2016), ch. 3.5.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, lru_cache

from crystalctl.symmetry.tables import Ints, tables

Kinds = tuple[tuple[int, ...], ...]
"""For each kind of atom, such as each element in an agreed order, the table rows it occupies."""

Orbits = tuple[tuple[int, int], ...]
"""(Table row, atomic number) of each orbit, ascending."""


@cache
def relabellings(group: int) -> Ints:
    """(M, P) table rows: entry [m, p] is what the p-th position of the group becomes."""
    table = tables()
    first, end = table.first_position[group - 1 : group + 1]
    start, stop = table.first_relabelling[group - 1 : group + 1]
    every: Ints = table.relabelling[start:stop].reshape(-1, end - first) + first
    return every


@lru_cache(maxsize=1 << 17)
def equivalents(kinds: Kinds) -> tuple[Kinds, ...]:
    """All descriptions of a template, ascending; rows ascend within each kind."""
    group = int(tables().group[kinds[0][0]])
    first = int(tables().first_position[group - 1])
    every = relabellings(group)
    columns = [every[:, [row - first for row in rows]].tolist() for rows in kinds]
    return tuple(
        sorted({tuple(tuple(sorted(rows)) for rows in one) for one in zip(*columns, strict=True)})
    )


def canonical(kinds: Kinds) -> Kinds:
    """The first of all equivalent descriptions: equal for templates that are one."""
    return equivalents(kinds)[0]


@lru_cache(maxsize=1 << 17)
def equivalent_orbits(orbits: Orbits) -> tuple[Orbits, ...]:
    """All descriptions of the orbits of a template."""
    held: dict[int, list[int]] = {}
    for row, z in orbits:
        held.setdefault(z, []).append(row)
    elements = sorted(held)
    found = equivalents(tuple(tuple(sorted(held[z])) for z in elements))
    return tuple(
        tuple(sorted((row, z) for z, rows in zip(elements, kinds, strict=True) for row in rows))
        for kinds in found
    )


def canonical_orbits(orbits: Iterable[tuple[int, int]]) -> Orbits:
    """The description that all equivalent ones share."""
    return equivalent_orbits(tuple(sorted(orbits)))[0]
