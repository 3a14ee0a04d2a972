"""The inner loop of pymatgen's StructureMatcher for two primitive cells, all candidates at once.

A candidate lays one structure on the other: a triple of lattice vectors for the cell, and an atom
of the rarest element that comes to lie on the first such atom of the other. Candidates come in
pymatgen's order and are judged as it does: every atom must have one of its kind near (in fractional
coordinates of the mean of both cells); then atoms are paired so that the sum of squared distances
is smallest, and the mean displacement is taken off. What is computed here for many candidates in
a few array operations is the same mathematics, so the value is pymatgen's to rounding, unless a
decision hangs on rounding itself. Where that is possible, the candidate is judged by pymatgen's own
functions on pymatgen's own numbers (``_exactly``):

* a fractional distance equal to its tolerance (to ``_CLOSE``): perfect crystals have 1/2 = 1/2;
* two atoms equally near to a third one: then the pairing, and with it the value, is a matter of
  rounding. A pairing is the only best one if every atom takes the nearest of its kind, no other is
  as near (to ``_TIE``), and none is taken twice. Otherwise the assignment problem is solved by
  elements (it falls apart into them), and once more with the pairs found made dearer by ``_TIE``:
  the same answer shows that every other pairing costs more;
* two images of one atom equally near: as above;
* the basis in which distances are measured, the LLL reduction of the mean cell, comes from
  comparisons; where one of them is of equal numbers, pymatgen reduces its own mean cell.

Distances. With a vector w from one atom to an image of another and the shortest nonzero vector m of
the lattice, any other image is at least m - |w| away; so |w| < m/2 makes w the shortest of all
images. The 27 images that pymatgen compares differ from each other by at most two basis vectors
along each axis, so m need only be the shortest such vector. Longer vectors need a look at all 27
images only where they matter: w comes from the nearest fractional coordinates, none above 1/2, so
any other image has one of 1/2 or more, and its length is at least half the smallest height h of the
cell. A pairing that is the only cheapest one with min(|w|, h/2) for every long vector, and that has
none of these, is the cheapest one for their true lengths.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from crystalctl.analysis.reduction import Reduced, is_lll_reduced, lll_steps, mappings

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
Block = tuple[NDArray[np.intp], NDArray[np.intp]]
"""Atoms of one element in one structure and in the other."""

_ENOUGH = 1e-5
"""The matcher stops looking for a smaller distance below this one."""
_CLOSE = 1e-9
_TIE = 1e-7
_FORBIDDEN = 1e20
_FIRST = 4_000
_BLOCK = 400_000
"""Pairs of atoms handled at once: few at first, as equal structures need no more."""
_FEW = 4
"""Atoms of an element of which all pairings are tried."""
_ROWS = 4
"""Atoms looked at before the next candidates are given up."""
_IMAGES = np.array(list(product((-1, 0, 1), repeat=3)), dtype=float)
_STEPS = np.array([s for s in product(range(-2, 3), repeat=3) if s > (0, 0, 0)], dtype=float)


def best_rms(matcher: Any, one: Reduced, other: Reduced) -> float | None:
    """``get_rms_dist(one, other)[0]`` of two cells with the same atoms of each element."""
    best = np.inf
    for distances in _candidates(matcher, one, other):
        values = np.linalg.norm(distances, axis=1) / distances.shape[1] ** 0.5
        enough = np.flatnonzero(values < _ENOUGH)
        if len(enough):
            return float(values[enough[0]])
        best = min(best, float(values.min()))
    return best if best < matcher.stol else None


def fits(matcher: Any, one: Reduced, other: Reduced) -> bool:
    """``fit(one, other)`` of two cells with the same atoms of each element."""
    return any((d.max(axis=1) < matcher.stol).any() for d in _candidates(matcher, one, other))


@dataclass(frozen=True)
class _Pair:
    """Both structures scaled to one volume, and where to start.

    ``lattice``, ``target``: pymatgen lattices. ``starts``: atoms of ``one`` that may come to lie on
    ``origin`` of ``other``. ``blocks``: for each element its atoms in ``one`` and in ``other``.
    """

    matcher: Any
    one: Reduced
    other: Reduced
    lattice: Any
    target: Any
    starts: NDArray[np.intp]
    origin: int
    blocks: list[Block]


def _candidates(matcher: Any, one: Reduced, other: Reduced) -> Iterator[Array]:
    """Distances (K, n) of paired atoms over (V/n)^(1/3), K candidates at a time.

    Candidates without a pairing are left out.
    """
    from pymatgen.core import Lattice

    ratio = (other.volume / one.volume) ** (1 / 6)
    lattice, target = Lattice(one.matrix * ratio), Lattice(other.matrix / ratio)
    blocks = [(one.sites[z], where) for z, where in other.sites.items()]
    starts, origins = blocks[0]
    pair = _Pair(matcher, one, other, lattice, target, starts, int(origins[0]), blocks)
    size = len(starts) * sum(len(a) * len(b) for a, b in blocks)
    most = max(1, _FIRST // size)
    for cells, steps in mappings(lattice, target, matcher.ltol, matcher.angle_tol):
        cells = cells[np.abs(np.abs(np.linalg.det(steps)) - 1) <= 0.5]
        while len(cells):
            found, cells = _lay(pair, cells[:most]), cells[most:]
            most = max(1, _BLOCK // size)
            if len(found):
                yield found


def _lay(pair: _Pair, cells: Array) -> Array:
    """Distances (K, n) of the candidates with these cells (M, 3, 3)."""
    n, stol, choices = len(pair.one.numbers), pair.matcher.stol, len(pair.starts)
    frac = (pair.one.frac @ pair.lattice.matrix) @ np.linalg.inv(cells)
    frac -= np.floor(frac)
    mean = _mean_cells(cells, pair.target)
    scale = np.cbrt(n / np.abs(np.linalg.det(mean)))
    shift = (frac[:, pair.starts] - pair.other.frac[pair.origin]).reshape(-1, 3)
    # The axis comes first from here on: operations over three numbers in a row are slow.
    ours, theirs, shift = frac.transpose(2, 0, 1).copy(), pair.other.frac.T[:, None], shift.T.copy()
    index, unsure = _near(pair, ours, shift, _widths(mean, scale, stol))
    if not len(index):
        return np.empty((0, n))
    which = index // choices
    there, row = np.unique(which, return_inverse=True)
    means = _reduced_means(mean[there], scale[there], pair, cells[there])
    moved = theirs + shift[:, index, None]
    vectors, feasible, doubtful = _paired(pair.blocks, means, row, (ours[:, which], moved))
    vectors -= vectors.mean(axis=1, keepdims=True)
    found = np.sqrt(np.einsum("kix,kix->ki", vectors, vectors)) * scale[which][:, None]
    found[~feasible] = np.inf
    for k in np.flatnonzero(unsure | doubtful):
        found[k] = _exactly(pair, cells[which[k]], int(pair.starts[index[k] % choices]))
    return np.asarray(found[np.isfinite(found[:, 0])])


def _near(pair: _Pair, ours: Array, shift: Array, widths: Array) -> tuple[NDArray[np.intp], Flags]:
    """Candidates for which every atom has one of its kind near, and whether that is in doubt.

    ``ours`` (3, M, n), ``shift`` (3, M starts), ``widths`` (M, 3).
    """
    index, unsure = np.arange(shift.shape[1]), np.zeros(shift.shape[1], dtype=bool)
    theirs = pair.other.frac.T
    for ours_at, theirs_at in pair.blocks[len(pair.starts) == 1 :]:
        for k in range(0, len(theirs_at), _ROWS):
            which = index // len(pair.starts)
            moved = theirs[:, None, theirs_at[k : k + _ROWS]] + shift[:, index, None]
            others = ours[:, which[:, None], ours_at]
            least = _apart(moved, others, widths[which])[1].min(axis=2).max(axis=1)
            near = least <= _CLOSE
            index, unsure = index[near], (unsure | (least >= -_CLOSE))[near]
            if not len(index):
                return index, unsure
    return index, unsure


def _apart(theirs: Array, ours: Array, widths: Array) -> tuple[list[Array], Array]:
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


def _exactly(pair: _Pair, cell: Array, start: int) -> Array:
    """Distances (n,) of one candidate by pymatgen's own functions; infinite for no pairing."""
    from pymatgen.core import Lattice

    matcher, n = pair.matcher, len(pair.one.numbers)
    lattice = Lattice(cell)
    ours = lattice.get_fractional_coords(pair.lattice.get_cartesian_coords(pair.one.frac))
    ours = ours - np.floor(ours)
    moved = pair.other.frac + (ours[start] - pair.other.frac[pair.origin])
    mean = _mean(cell, pair.target)
    scale = (n / mean.volume) ** (1 / 3)
    mask = (pair.other.numbers[:, None] != pair.one.numbers).astype(np.int64)
    widths = np.array(mean.reciprocal_lattice.abc) * matcher.stol / (np.pi * scale)
    if not matcher._cmp_fstruct(ours, moved, widths, mask):
        return np.full(n, np.inf)
    reduced = np.array(mean.get_lll_reduced_lattice().reciprocal_lattice.abc)
    widths = reduced * matcher.stol / (np.pi * scale)
    return np.asarray(matcher._cart_dists(ours, moved, mean, mask, scale, widths)[0])


@dataclass(frozen=True)
class _Means:
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


def _reduced_means(means: Array, scale: Array, pair: _Pair, cells: Array) -> _Means:
    """Of the mean cells (M, 3, 3) of ``cells`` (M, 3, 3) and the target."""
    matrix, change = means.copy(), np.broadcast_to(np.eye(3), means.shape).copy()
    for k in np.flatnonzero(~is_lll_reduced(means)):
        steps = lll_steps(means[k].tobytes())
        if steps is None:
            lattice = _mean(cells[k], pair.target)
            matrix[k], change[k] = lattice.lll_matrix, lattice.lll_inverse
        else:
            matrix[k], change[k] = steps[0] @ means[k], steps[1]
    metric = (matrix @ matrix.transpose(0, 2, 1)).transpose(1, 2, 0)
    short = _squares(list(_STEPS.T[..., None]), metric[:, :, None]).min(axis=0) / 4
    widths = _widths(matrix, scale, pair.matcher.stol)
    reciprocal = (np.linalg.inv(matrix) ** 2).sum(axis=1)
    least = 1 / (4 * reciprocal.max(axis=1))
    return _Means(matrix, metric, change, widths, short - _TIE, least - _TIE)


def _mean(cell: Array, target: Any) -> Any:
    from pymatgen.core import Lattice

    return Lattice.from_parameters(
        *(np.array(Lattice(cell).parameters) + np.array(target.parameters)) / 2
    )


def _mean_cells(cells: Array, target: Any) -> Array:
    """Cells (M, 3, 3) with the mean lengths and angles of each of ``cells`` and the target."""
    lengths = np.sqrt((cells**2).sum(axis=2))
    pairs = ((1, 2), (2, 0), (0, 1))
    cosines = [
        (cells[:, i] * cells[:, j]).sum(1) / (lengths[:, i] * lengths[:, j]) for i, j in pairs
    ]
    angles = np.degrees(np.arccos(np.clip(np.stack(cosines, axis=1), -1, 1)))
    a, b, c = ((lengths + np.array(target.lengths)) / 2).T
    alpha, beta, gamma = np.radians((angles + np.array(target.angles)) / 2).T
    cosine = (np.cos(alpha) * np.cos(beta) - np.cos(gamma)) / (np.sin(alpha) * np.sin(beta))
    cosine = np.clip(cosine, -1, 1)
    zero = np.zeros_like(a)
    vectors = (
        (a * np.sin(beta), zero, a * np.cos(beta)),
        (
            -b * np.sin(alpha) * cosine,
            b * np.sin(alpha) * np.sqrt(1 - cosine**2),
            b * np.cos(alpha),
        ),
        (zero, zero, c),
    )
    return np.stack([np.stack(vector, axis=1) for vector in vectors], axis=1)


def _widths(cells: Array, scale: Array, stol: float) -> Array:
    """Half widths (M, 3) of the box of fractional distances that are near enough."""
    reciprocal = np.sqrt((np.linalg.inv(cells) ** 2).sum(axis=1))
    return np.asarray(2 * stol * reciprocal / scale[:, None])


def _paired(
    blocks: list[Block], means: _Means, row: NDArray[np.intp], frac: tuple[Array, Array]
) -> tuple[Array, Flags, Flags]:
    """Vectors (K, n, 3) between paired atoms, whether there is a pairing, whether in doubt.

    ``row`` (K,): which of ``means``; ``frac``: of both structures, (3, K, n).
    """
    ours, theirs = (np.einsum("ckn,kcd->dkn", f, means.change[row]) for f in frac)
    chosen_frac = np.zeros((len(row), theirs.shape[2], 3))
    feasible, doubtful = np.ones(len(row), dtype=bool), np.zeros(len(row), dtype=bool)
    for ours_at, theirs_at in blocks:
        left = np.flatnonzero(feasible)
        points = theirs[:, left[:, None], theirs_at], ours[:, left[:, None], ours_at]
        vectors, feasible[left], unclear = _paired_element(means, row[left], *points)
        chosen_frac[left[:, None], theirs_at] = vectors
        doubtful[left] |= unclear
    return chosen_frac @ means.matrix[row], feasible, doubtful & feasible


def _paired_element(
    means: _Means, row: NDArray[np.intp], theirs: Array, ours: Array
) -> tuple[Array, Flags, Flags]:
    """The same for the atoms of one element, (3, K, n) each; vectors are fractional."""
    n = theirs.shape[2]
    away, outside = _apart(theirs, ours, means.widths[row])
    allowed = outside <= _CLOSE
    square = _squares(away, means.metric[..., row, None, None])
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
    unclear |= (allowed & (outside >= -_CLOSE)).any(axis=(1, 2))
    return np.stack([axis[pick] for axis in away], axis=2), there, unclear


def _squares(vectors: list[Array], metric: Array) -> Array:
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
    squares = _squares(list(images), metric)
    every, nearest = np.arange(len(squares)), squares.argmin(axis=1)
    first = squares[every, nearest]
    squares[every, nearest] = np.inf
    return images[:, every, nearest], first, squares.min(axis=1) - first < _TIE


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
        return orders[best], there, ~there | (totals.min(axis=1) < least + _TIE)
    chosen = square.argmin(axis=2)
    first, second = np.moveaxis(np.partition(square, 1, axis=2)[:, :, :2], 2, 0)
    there = np.isfinite(first).all(axis=1)
    unclear = (second < first + _TIE).any(axis=1)
    twice = (np.diff(np.sort(chosen, axis=1), axis=1) == 0).any(axis=1)
    for i in np.flatnonzero(there & twice):
        costs = np.where(np.isfinite(square[i]), square[i], _FORBIDDEN)
        rows, chosen[i] = linear_sum_assignment(costs)
        there[i] = costs[rows, chosen[i]].max() < _FORBIDDEN
        costs[rows, chosen[i]] += _TIE
        unclear[i] = (linear_sum_assignment(costs)[1] != chosen[i]).any()
    return chosen, there, unclear


@lru_cache(maxsize=8)
def _orders(n: int) -> NDArray[np.intp]:
    return np.array(list(permutations(range(n))))
