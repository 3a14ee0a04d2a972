"""The changes of setting that keep a group, as permutations of its positions: for ``build.py``.

An affine map x -> W x + w normalises a group when it turns the set of its operations into itself;
it then turns Wyckoff positions into Wyckoff positions, only the letters change. Those of the affine
normaliser that matter are found by search: integer matrices W with entries -1, 0, 1 that keep the
lattice, and shifts w in 24ths of the kinds that occur in the International Tables; a closure adds
what products of them give. Ref: Koch, Fischer & Müller, International Tables A, ch. 3.5.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import Any

import numpy as np

from crystalctl.symmetry.groups import primitive_basis
from crystalctl.symmetry.tables import TRANSLATION_DENOMINATOR, Ints

_SHIFTS = [k for k in range(TRANSLATION_DENOMINATOR) if k % 2 == 0 or k % 3 == 0]
_POINT = np.array([0.1357, 0.2943, 0.4179])
"""Anchors of no symmetry, to see where a position goes."""


def relabellings(number: int, table: Any) -> Ints:
    """All permutations of the positions of group ``number``, (M, P), the identity first.

    Entry [m, p]: the position, counted from the group's first, that position p becomes.
    """
    n = int(table.first_position[number] - table.first_position[number - 1])
    if n == 1:
        return np.zeros((1, 1), dtype=np.int64)
    found = {tuple(range(n))}
    generators: list[tuple[int, ...]] = []
    for matrix, shift in _normalising(number, table):
        new = _permutation(number, table, matrix, shift)
        if new not in found:
            generators.append(new)
            found = _closure(generators, n)
    return np.array(sorted(found), dtype=np.int64)


def _closure(generators: list[tuple[int, ...]], n: int) -> set[tuple[int, ...]]:
    found = {tuple(range(n))}
    edge = found
    while edge:
        edge = {tuple(step[p] for p in old) for old in edge for step in generators} - found
        found |= edge
    return found


def _normalising(number: int, table: Any) -> Iterator[tuple[Ints, Ints]]:
    """Pairs (W, w), w in 24ths, that generate the normaliser together with the group.

    The group's own operations move no position, so one W of each coset W R is enough. Two pairs of
    one W differ by a pure shift, so the first stands for all of them where W is not the identity.
    """
    last = int(table.first_position[number]) - 1
    here = slice(int(table.first_operation[last]), int(table.first_operation[last + 1]))
    rotation = table.rotation[here]
    translation = np.rint(table.translation[here] * TRANSLATION_DENOMINATOR).astype(np.int64)
    # The general position starts with the operations x -> R x, one for each centring vector; the
    # translation of an operation counts modulo the whole lattice.
    basis = primitive_basis(table.symbols[number - 1][0])
    into = np.linalg.inv(basis.T)
    there: dict[bytes, Ints] = {}
    for matrix, shift in zip(rotation, translation, strict=True):
        there.setdefault(matrix.astype(np.int8).tobytes(), shift)
    shifts = np.array(list(product(_SHIFTS, repeat=3)))
    tried: set[bytes] = set()
    matrices = _matrices(table.families[number - 1])
    for matrix in matrices[_whole_rows((into @ matrices @ basis.T).reshape(-1, 9))]:
        if matrix.astype(np.int8).tobytes() in tried:
            continue
        tried |= {one.astype(np.int8).tobytes() for one in matrix @ rotation}
        inverse = np.rint(np.linalg.inv(matrix)).astype(np.int64)
        turned = matrix @ rotation @ inverse
        keys = [one.astype(np.int8).tobytes() for one in turned]
        if any(key not in there for key in keys):
            continue
        # (W, w) (R, t) (W, w)^-1 = (R', W t + w - R' w) must be (R', t') modulo the lattice.
        excess = translation @ matrix.T - np.stack([there[key] for key in keys])
        good = np.ones(len(shifts), dtype=bool)
        for rest, other in zip(excess, turned, strict=True):
            difference = rest + shifts[good] @ (np.eye(3, dtype=np.int64) - other).T
            good[good] = _whole_rows(difference @ into.T / TRANSLATION_DENOMINATOR)
        pure = np.array_equal(matrix, np.eye(3))
        for shift in shifts[good] if pure else shifts[good][:1]:
            yield matrix, shift


@cache
def _matrices(family: str) -> Ints:
    """Candidates for W. Where the lattice allows shears, elementary ones generate the others."""
    every = np.array(list(product((-1, 0, 1), repeat=9))).reshape(-1, 3, 3)
    unimodular = every[np.rint(np.abs(np.linalg.det(every))) == 1]
    most = 4 if family in ("triclinic", "monoclinic") else 9
    chosen = unimodular[np.count_nonzero(unimodular, axis=(1, 2)) <= most]
    far = np.abs(chosen - np.eye(3, dtype=np.int64)).sum((1, 2))
    return np.array([m for _, m in sorted(zip(far.tolist(), chosen.tolist(), strict=True))])


def _whole_rows(values: np.ndarray) -> np.ndarray:
    whole: np.ndarray = np.abs(values - np.rint(values)).max(1) < 1e-6
    return whole


def _permutation(number: int, table: Any, matrix: Ints, shift: Ints) -> tuple[int, ...]:
    first = int(table.first_position[number - 1])
    last = int(table.first_position[number]) - 1
    general = slice(int(table.first_operation[last]), int(table.first_operation[last + 1]))
    out = []
    for row in range(first, last + 1):
        start = int(table.first_operation[row])
        point = table.rotation[start] @ _POINT + table.translation[start]
        point = matrix @ point + shift / TRANSLATION_DENOMINATOR
        orbit = (table.rotation[general] @ point + table.translation[general]) % 1.0
        out.append(_position_of(orbit, row, table, range(first, last + 1)) - first)
    assert sorted(out) == list(range(len(out)))
    return tuple(out)


def _position_of(orbit: np.ndarray, like: int, table: Any, rows: range) -> int:
    """The position on whose first point some point of an orbit stands, of the kind of ``like``."""
    cells = np.array(list(product((-1, 0, 1), repeat=3)))
    for row in rows:
        same = table.multiplicity[row] == table.multiplicity[like]
        if not same or table.freedom[row] != table.freedom[like]:
            continue
        start = int(table.first_operation[row])
        rotation, translation = table.rotation[start], table.translation[start]
        vectors = (orbit[:, None] + cells - translation).reshape(-1, 3)
        rest = vectors - vectors @ (rotation @ np.linalg.pinv(rotation)).T
        if np.abs(rest).max(1).min() < 1e-6:
            return row
    raise AssertionError(f"position {like} goes nowhere")
