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
from typing import Any, NamedTuple

import numpy as np

from crystalctl.symmetry.groups import primitive_basis
from crystalctl.symmetry.tables import TRANSLATION_DENOMINATOR, Ints

_SHIFTS = [k for k in range(TRANSLATION_DENOMINATOR) if k % 2 == 0 or k % 3 == 0]
_POINT = np.array([0.1357, 0.2943, 0.4179])
"""Anchors of no symmetry, to see where a position goes."""
_CELLS = np.array(list(product((-1, 0, 1), repeat=3)))


def relabellings(number: int, table: Any) -> Ints:
    """All permutations of the positions of group ``number``, (M, P), the identity first.

    Entry [m, p]: the position, counted from the group's first, that position p becomes.
    """
    n = int(table.first_position[number] - table.first_position[number - 1])
    if n == 1:
        return np.zeros((1, 1), dtype=np.int64)
    found = {tuple(range(n))}
    generators: list[tuple[int, ...]] = []
    places = _places(number, table)
    general = _general(number, table)
    for matrix, shift in normalising(number, table):
        new = _permutation(places, general, matrix, shift / TRANSLATION_DENOMINATOR)
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


def normalising(number: int, table: Any) -> Iterator[tuple[Ints, Ints]]:
    """Pairs (W, w), w in 24ths, that generate the normaliser together with the group.

    The group's own operations move no position, so one W of each coset W R is enough. Two pairs of
    one W differ by a pure shift, so the first stands for all of them where W is not the identity.
    """
    rotation, exact = _general(number, table)
    translation = np.rint(exact * TRANSLATION_DENOMINATOR).astype(np.int64)
    # The general position starts with the operations x -> R x, one for each centring vector; the
    # translation of an operation counts modulo the whole lattice.
    basis = primitive_basis(table.symbols[number - 1][0])
    into = np.linalg.inv(basis.T)
    there: dict[int, Ints] = {}
    for code, shift in zip(_codes(rotation), translation, strict=True):
        there.setdefault(code, shift)
    shifts = np.array(list(product(_SHIFTS, repeat=3)))
    tried: set[int] = set()
    matrices = _matrices(table.families[number - 1])
    matrices = matrices[_whole_rows((into @ matrices @ basis.T).reshape(-1, 9))]
    inverses = np.rint(np.linalg.inv(matrices)).astype(np.int64)
    for code, matrix, inverse in zip(_codes(matrices), matrices, inverses, strict=True):
        if code in tried:
            continue
        tried.update(_codes(matrix @ rotation))
        turned = matrix @ rotation @ inverse
        keys = _codes(turned)
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


def _codes(matrices: Ints) -> list[int]:
    """A number for each integer matrix (n, 3, 3) with entries from -20 to 20."""
    codes: list[int] = ((matrices.reshape(-1, 9) + 20) @ 41 ** np.arange(9)).tolist()
    return codes


def _general(number: int, table: Any) -> tuple[Ints, np.ndarray]:
    """The operations of the general position, which is the last of a group."""
    last = int(table.first_position[number]) - 1
    here = slice(int(table.first_operation[last]), int(table.first_operation[last + 1]))
    return table.rotation[here], table.translation[here]


class _Place(NamedTuple):
    """A position: a point on it, the origin of its first operation, what takes a vector off it."""

    kind: tuple[int, int]
    point: np.ndarray
    origin: np.ndarray
    off: np.ndarray


def _places(number: int, table: Any) -> list[_Place]:
    found = []
    for row in range(*table.first_position[number - 1 : number + 1]):
        start = int(table.first_operation[row])
        rotation, origin = table.rotation[start], table.translation[start]
        off = np.eye(3) - rotation @ np.linalg.pinv(rotation)
        kind = int(table.multiplicity[row]), int(table.freedom[row])
        found.append(_Place(kind, rotation @ _POINT + origin, origin, off))
    return found


def _permutation(
    places: list[_Place], general: tuple[Ints, np.ndarray], matrix: Ints, shift: np.ndarray
) -> tuple[int, ...]:
    rotation, translation = general
    out = []
    for place in places:
        moved = matrix @ place.point + shift
        out.append(_position_of((rotation @ moved + translation) % 1.0, place, places))
    assert sorted(out) == list(range(len(out)))
    return tuple(out)


def _position_of(orbit: np.ndarray, like: _Place, places: list[_Place]) -> int:
    """The position on whose first point some point of an orbit stands, of the kind of ``like``."""
    for number, place in enumerate(places):
        if place.kind == like.kind:
            vectors = orbit[:, None] + _CELLS - place.origin
            if np.abs(vectors @ place.off.T).max(2).min() < 1e-6:
                return number
    raise AssertionError(f"a position of kind {like.kind} goes nowhere")
