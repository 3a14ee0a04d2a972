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
* the basis in which distances are measured, that of the LLL reduction of the mean cell, is chosen by
  comparisons; where one of them is of equal numbers, the reduction is pymatgen's on its numbers.

Distances. With a vector w from one atom to an image of another and the shortest nonzero vector m of
the lattice, any other image is at least m - |w| away; so |w| < m/2 makes w the shortest of all
images, and only longer ones are compared with the 27 images that pymatgen looks at. Those differ
from w by at most two basis vectors along each axis, so m need only be the shortest such vector.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from crystalctl.analysis.reduction import Reduced, mappings

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
Block = tuple[NDArray[np.intp], NDArray[np.intp]]
"""Atoms of one element in one structure and in the other."""

_ENOUGH = 1e-5
"""The matcher stops looking for a smaller distance below this one."""
_CLOSE = 1e-9
_TIE = 1e-7
_FORBIDDEN = 1e20
_BLOCK = 400_000
"""Fractional distances handled at once."""
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
    most = max(1, _BLOCK // (len(starts) * max(len(a) * len(b) for a, b in blocks)))
    for cells, steps in mappings(lattice, target, matcher.ltol, matcher.angle_tol):
        cells = cells[np.abs(np.abs(np.linalg.det(steps)) - 1) <= 0.5]
        for k in range(0, len(cells), most):
            found = _lay(pair, cells[k : k + most])
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


def _near(
    pair: _Pair, ours: Array, shift: Array, widths: Array
) -> tuple[NDArray[np.intp], Flags]:
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

    ``matrix`` (M, 3, 3) Å; ``change`` (M, 3, 3) takes fractional coordinates there; ``widths``
    (M, 3) of the box of allowed pairs; ``half`` (M,): half the shortest lattice vector, Å.
    """

    matrix: Array
    change: Array
    widths: Array
    half: Array



def _reduced_means(means: Array, scale: Array, pair: _Pair, cells: Array) -> _Means:
    """Of the mean cells (M, 3, 3) of ``cells`` (M, 3, 3) and the target."""
    matrix, change = means.copy(), np.broadcast_to(np.eye(3), means.shape).copy()
    for k in np.flatnonzero(~_is_reduced(means)):
        steps = lll_steps(means[k].tobytes())
        if steps is None:
            lattice = _mean(cells[k], pair.target)
            matrix[k], change[k] = lattice.lll_matrix, lattice.lll_inverse
        else:
            matrix[k], change[k] = steps[0] @ means[k], steps[1]
    half = np.sqrt(((_STEPS @ matrix) ** 2).sum(axis=2).min(axis=1)) / 2
    return _Means(matrix, change, _widths(matrix, scale, pair.matcher.stol), half)


def _mean(cell: Array, target: Any) -> Any:
    from pymatgen.core import Lattice

    return Lattice.from_parameters(
        *(np.array(Lattice(cell).parameters) + np.array(target.parameters)) / 2
    )


def _mean_cells(cells: Array, target: Any) -> Array:
    """Cells (M, 3, 3) with the mean lengths and angles of each of ``cells`` and the target."""
    lengths = np.sqrt((cells**2).sum(axis=2))
    pairs = ((1, 2), (2, 0), (0, 1))
    cosines = [(cells[:, i] * cells[:, j]).sum(1) / (lengths[:, i] * lengths[:, j]) for i, j in pairs]
    angles = np.degrees(np.arccos(np.clip(np.stack(cosines, axis=1), -1, 1)))
    a, b, c = ((lengths + np.array(target.lengths)) / 2).T
    alpha, beta, gamma = np.radians((angles + np.array(target.angles)) / 2).T
    cosine = (np.cos(alpha) * np.cos(beta) - np.cos(gamma)) / (np.sin(alpha) * np.sin(beta))
    cosine = np.clip(cosine, -1, 1)
    zero = np.zeros_like(a)
    vectors = (
        (a * np.sin(beta), zero, a * np.cos(beta)),
        (-b * np.sin(alpha) * cosine, b * np.sin(alpha) * np.sqrt(1 - cosine**2), b * np.cos(alpha)),
        (zero, zero, c),
    )
    return np.stack([np.stack(vector, axis=1) for vector in vectors], axis=1)


def _widths(cells: Array, scale: Array, stol: float) -> Array:
    """Half widths (M, 3) of the box of fractional distances that are near enough."""
    reciprocal = np.sqrt((np.linalg.inv(cells) ** 2).sum(axis=1))
    return np.asarray(2 * stol * reciprocal / scale[:, None])


def _is_reduced(cells: Array) -> Flags:
    """Whether the LLL reduction (delta 3/4) surely leaves each cell as it is."""
    a, b, c = cells.transpose(1, 0, 2)
    aa = (a * a).sum(1)
    ab, ac = (a * b).sum(1) / aa, (a * c).sum(1) / aa
    b = b - ab[:, None] * a
    bb = (b * b).sum(1)
    bc = (b * c).sum(1) / bb
    c = c - ac[:, None] * a - bc[:, None] * b
    small = (np.abs(np.stack([ab, ac, bc])) < 0.5 - _CLOSE).all(axis=0)
    second = bb > (0.75 - ab**2 + _CLOSE) * aa
    return np.asarray(small & second & ((c * c).sum(1) > (0.75 - bc**2 + _CLOSE) * bb))


@lru_cache(maxsize=4096)
def lll_steps(raw: bytes) -> tuple[Array, Array] | None:
    """LLL reduction (delta 3/4) of the cell (3, 3) with these bytes, None where it is not sure.

    The reduced basis in multiples of the given one (3, 3), and the inverse. Not sure: a decision
    compares numbers that are equal to rounding.
    """
    basis = np.frombuffer(raw).reshape(3, 3).tolist()
    steps = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    k = 1
    while k < 3:
        for i in range(k - 1, -1, -1):
            ratio = _gram_schmidt(basis, k)[0][i]
            times = round(ratio)
            if abs(abs(ratio - times) - 0.5) < _CLOSE:
                return None
            if times:
                basis[k] = [x - times * y for x, y in zip(basis[k], basis[i], strict=True)]
                steps[k] = [x - times * y for x, y in zip(steps[k], steps[i], strict=True)]
        ratios, squares = _gram_schmidt(basis, k)
        least = (0.75 - ratios[k - 1] ** 2) * squares[k - 1]
        if abs(squares[k] - least) < _CLOSE * squares[k - 1]:
            return None
        if squares[k] >= least:
            k += 1
        else:
            for rows in (basis, steps):
                rows[k - 1], rows[k] = rows[k], rows[k - 1]
            k = max(k - 1, 1)
    found = np.array(steps, dtype=float)
    return found, np.linalg.inv(found)


def _gram_schmidt(basis: list[list[float]], k: int) -> tuple[list[float], list[float]]:
    """Coefficients of vector k on the orthogonalised ones before it; squares of 0..k of these."""
    orthogonal: list[list[float]] = []
    squares: list[float] = []
    ratios: list[float] = []
    for x, y, z in basis[: k + 1]:
        ratios = []
        rest = [x, y, z]
        for (u, v, w), square in zip(orthogonal, squares, strict=True):
            ratio = (x * u + y * v + z * w) / square
            ratios.append(ratio)
            rest = [rest[0] - ratio * u, rest[1] - ratio * v, rest[2] - ratio * w]
        orthogonal.append(rest)
        squares.append(rest[0] ** 2 + rest[1] ** 2 + rest[2] ** 2)
    return ratios, squares


def _paired(
    blocks: list[Block], means: _Means, row: NDArray[np.intp], frac: tuple[Array, Array]
) -> tuple[Array, Flags, Flags]:
    """Vectors (K, n, 3) between paired atoms, whether there is a pairing, whether in doubt.

    ``row`` (K,): which of ``means``; ``frac``: of both structures, (3, K, n).
    """
    change, matrix = means.change[row], means.matrix[row]
    ours, theirs = (np.einsum("ckn,kcd->dkn", f, change) for f in frac)
    metric = (matrix @ matrix.transpose(0, 2, 1)).transpose(1, 2, 0)[..., None, None]
    widths, short = means.widths[row], np.maximum(means.half[row] - _TIE, 0)[:, None, None] ** 2
    k = len(row)
    chosen_frac = np.zeros((k, theirs.shape[2], 3))
    feasible, doubtful = np.ones(k, dtype=bool), np.zeros(k, dtype=bool)
    every = np.arange(k)[:, None]
    for ours_at, theirs_at in blocks:
        mine, other = ours[:, :, ours_at], theirs[:, :, theirs_at]
        away, outside = _apart(other, mine, widths)
        allowed = outside <= _CLOSE
        square = _squares(away, metric)
        at = np.nonzero((square >= short) & allowed)
        tied = np.zeros((k, len(theirs_at)), dtype=bool)
        square[~allowed] = np.inf
        images = None
        if len(at[0]):
            images = _nearest_images(mine[:, at[0], at[2]], other[:, at[0], at[1]], matrix[at[0]])
            square[at] = images[1]
            for vector, nearest in zip(away, images[0].T, strict=True):
                vector[at] = nearest
        chosen, there, unclear = _assign(square)
        pick = every, np.arange(len(theirs_at)), chosen
        chosen_frac[:, theirs_at] = np.stack([vector[pick] for vector in away], axis=2)
        if images is not None:
            several = np.zeros(square.shape, dtype=bool)
            several[at] = images[2]
            tied = several[pick]
        doubtful |= unclear | tied.any(axis=1) | (allowed & (outside >= -_CLOSE)).any(axis=(1, 2))
        feasible &= there
    return chosen_frac @ matrix, feasible, doubtful


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
    return found


def _nearest_images(mine: Array, other: Array, matrix: Array) -> tuple[Array, Array, Flags]:
    """Nearest image of points (3, P) seen from others (3, P): vector (P, 3), square, whether tied.

    Of the 27 images that pymatgen compares; ``matrix`` (P, 3, 3).
    """
    images = (mine % 1 - other % 1).T[:, None] + _IMAGES
    squares = ((images @ matrix) ** 2).sum(axis=2)
    first, second = np.partition(squares, 1, axis=1)[:, :2].T
    nearest = images[np.arange(len(images)), squares.argmin(axis=1)]
    return nearest, first, second - first < _TIE


def _assign(square: Array) -> tuple[NDArray[np.intp], Flags, Flags]:
    """Cheapest pairings of costs (K, n, n), infinite = not allowed: columns (K, n) by row.

    Also whether there is one (K,), and whether another may be as cheap (K,).
    """
    k, n, _ = square.shape
    chosen = square.argmin(axis=2)
    if n == 1:
        return chosen, np.isfinite(square[:, 0, 0]), np.zeros(k, dtype=bool)
    first, second = np.moveaxis(np.partition(square, 1, axis=2)[:, :, :2], 2, 0)
    there = np.isfinite(first).all(axis=1)
    with np.errstate(invalid="ignore"):
        unclear = (second - first < _TIE).any(axis=1)
    twice = (np.diff(np.sort(chosen, axis=1), axis=1) == 0).any(axis=1)
    for i in np.flatnonzero(there & twice):
        costs = np.where(np.isfinite(square[i]), square[i], _FORBIDDEN)
        rows, chosen[i] = linear_sum_assignment(costs)
        there[i] = costs[rows, chosen[i]].max() < _FORBIDDEN
        costs[rows, chosen[i]] += _TIE
        unclear[i] = (linear_sum_assignment(costs)[1] != chosen[i]).any()
    return chosen, there, unclear
