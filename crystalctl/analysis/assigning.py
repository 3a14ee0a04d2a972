"""Atoms of two structures in one cell, paired so that the sum of squared distances is smallest.

Many ways to lay one on the other at once. Where the answer of pymatgen's StructureMatcher hangs on
rounding, it is called doubtful; see ``strict``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

CLOSE = 1e-9
"""Numbers that differ by less, relatively, may be equal."""
TIE = 1e-7
"""Squared distances, Å², that differ by less may be equal."""
_FORBIDDEN = 1e20
_FEW = 4
"""Atoms of an element of which all pairings are tried."""
_IMAGES = np.array(list(product((-1, 0, 1), repeat=3)), dtype=float)


@dataclass(frozen=True)
class Means:
    """Mean cells in their reduced basis.

    ``matrix`` (M, 3, 3) Å, ``metric`` (3, 3, M); ``change`` (M, 3, 3) takes fractional coordinates
    there; ``widths`` (M, 3) of the box of allowed pairs. ``short`` (M,): below this square a vector
    between the nearest fractional coordinates is the shortest of all images; ``least`` (M,): the
    square of any other image, at least.
    """

    matrix: Array
    metric: Array
    change: Array
    widths: Array
    short: Array
    least: Array


def apart(theirs: Array, ours: Array, widths: Array) -> tuple[list[Array], Array]:
    """Fractional vectors from ``theirs`` (3, K, p) to the images of ``ours`` (3, K, q) around them.

    Three arrays (K, p, q); and how far the farthest component is outside ``widths`` (K, 3).
    """
    vectors, outside = [], None
    for x, y, width in zip(theirs, ours, widths.T, strict=True):
        vector = y[:, None, :] - x[:, :, None]
        vector -= np.rint(vector)
        over = np.abs(vector)
        over -= width[:, None, None]
        outside = over if outside is None else np.maximum(outside, over, out=outside)
        vectors.append(vector)
    assert outside is not None
    return vectors, outside


def pair_atoms(
    blocks: list[slice], means: Means, row: NDArray[np.intp], points: tuple[Array, Array]
) -> tuple[Array, Flags, Flags]:
    """Vectors (K, n, 3) between paired atoms, whether there is a pairing, whether in doubt.

    ``row`` (K,): which of ``means``; ``points``: theirs and ours, fractional, (3, K, n).
    """
    theirs, ours = (np.einsum("ckn,kcd->dkn", f, means.change[row]) for f in points)
    chosen_frac = np.zeros((len(row), theirs.shape[2], 3))
    feasible, doubtful = np.ones(len(row), dtype=bool), np.zeros(len(row), dtype=bool)
    for block in blocks:
        left = np.flatnonzero(feasible)
        mine = theirs[:, left, block], ours[:, left, block]
        chosen_frac[left, block], feasible[left], unclear = _pair_element(means, row[left], *mine)
        doubtful[left] |= unclear
    return chosen_frac @ means.matrix[row], feasible, doubtful & feasible


def _pair_element(
    means: Means, row: NDArray[np.intp], theirs: Array, ours: Array
) -> tuple[Array, Flags, Flags]:
    """The same for the atoms of one element, (3, K, n) each; vectors are fractional."""
    n = theirs.shape[2]
    away, outside = apart(theirs, ours, means.widths[row])
    allowed = outside <= CLOSE
    square = squares(away, means.metric[..., row, None, None])
    square[~allowed] = np.inf
    long = square >= means.short[row, None, None]
    least = np.minimum(
        square, means.least[row, None, None], where=long & allowed, out=square.copy()
    )
    chosen, there, unclear = _assign(least)
    pick = np.arange(len(row))[:, None], np.arange(n), chosen
    again = np.flatnonzero(there & (unclear | long[pick].any(axis=1)))
    if len(again):
        k, i, j = np.nonzero((long & allowed)[again])
        at = again[k], i, j
        vectors, square[at], several = _nearest_images(
            ours[:, at[0], j], theirs[:, at[0], i], means.metric[..., row[at[0]], None]
        )
        for axis, nearest in zip(away, vectors, strict=True):
            axis[at] = nearest
        chosen[again], there[again], unclear[again] = _assign(square[again])
        tied = np.zeros(square.shape, dtype=bool)
        tied[at] = several
        unclear |= tied[pick].any(axis=1)
    unclear |= (allowed & (outside >= -CLOSE)).any(axis=(1, 2))
    return np.stack([axis[pick] for axis in away], axis=2), there, unclear


def squares(vectors: list[Array], metric: Array) -> Array:
    """Squared lengths of fractional vectors; ``metric`` (3, 3) of arrays that broadcast."""
    x, y, z = vectors
    found = x * metric[0, 0]
    found += (2 * metric[0, 1]) * y
    found += (2 * metric[0, 2]) * z
    found *= x
    rest = y * metric[1, 1]
    rest += (2 * metric[1, 2]) * z
    rest *= y
    found += rest
    np.multiply(z, z, out=rest)
    rest *= metric[2, 2]
    found += rest
    return np.asarray(found)


def _nearest_images(ours: Array, theirs: Array, metric: Array) -> tuple[Array, Array, Flags]:
    """Nearest images of points (3, P) around others (3, P): vectors (3, P), squares, whether tied.

    Of the 27 images that pymatgen compares; ``metric`` (3, 3, P, 1).
    """
    images = (ours % 1 - theirs % 1)[:, :, None] + _IMAGES.T[:, None]
    lengths = squares(list(images), metric)
    every, nearest = np.arange(len(lengths)), lengths.argmin(axis=1)
    first = lengths[every, nearest]
    lengths[every, nearest] = np.inf
    return images[:, every, nearest], first, lengths.min(axis=1) - first < TIE


def _assign(square: Array) -> tuple[NDArray[np.intp], Flags, Flags]:
    """Cheapest pairings of costs (K, n, n), infinite = not allowed: columns (K, n) by row.

    Also whether there is one (K,), and whether another may be as cheap (K,).
    """
    k, n, _ = square.shape
    if n == 1:
        return np.zeros((k, 1), dtype=np.intp), np.isfinite(square[:, 0, 0]), np.zeros(k, bool)
    if n <= _FEW:
        orders = _orders(n)
        totals = square[:, np.arange(n), orders].sum(axis=2)
        best = totals.argmin(axis=1)
        least = totals[np.arange(k), best]
        totals[np.arange(k), best] = np.inf
        there = np.isfinite(least)
        return orders[best], there, ~there | (totals.min(axis=1) < least + TIE)
    chosen = square.argmin(axis=2)
    first, second = np.moveaxis(np.partition(square, 1, axis=2)[:, :, :2], 2, 0)
    there = np.isfinite(first).all(axis=1)
    unclear = (second < first + TIE).any(axis=1)
    twice = (np.diff(np.sort(chosen, axis=1), axis=1) == 0).any(axis=1)
    hard = np.flatnonzero(there & twice)
    if len(hard):
        costs = np.where(np.isfinite(square[hard]), square[hard], _FORBIDDEN)
        chosen[hard] = _cheapest(costs)
        pick = np.arange(len(hard))[:, None], np.arange(n), chosen[hard]
        there[hard] = costs[pick].max(axis=1) < _FORBIDDEN
        costs[pick] += TIE
        found = there[hard]
        hard, costs = hard[found], costs[found]
        unclear[hard] = (_cheapest(costs) != chosen[hard]).any(axis=1)
    return chosen, there, unclear


def _cheapest(costs: Array) -> NDArray[np.intp]:
    """Columns (K, n) of the cheapest pairing of each of costs (K, n, n)."""
    found = [linear_sum_assignment(some)[1] for some in costs]
    return np.array(found, dtype=np.intp).reshape(costs.shape[:2])


@lru_cache(maxsize=8)
def _orders(n: int) -> NDArray[np.intp]:
    return np.array(list(permutations(range(n))))
