"""The inner loop of pymatgen's StructureMatcher for two primitive cells, all candidates at once.

A candidate lays one structure on the other: a triple of lattice vectors for the cell, and an atom
of the rarest element that comes to lie on the first such atom of the other. Candidates come in
pymatgen's order and are judged as it does: every atom must have one of its kind near (in fractional
coordinates of the mean of both cells); then atoms are paired so that the sum of squared distances
is smallest, and the mean displacement is taken off. What is computed here for many candidates in
a few array operations is the same mathematics, so the value is pymatgen's to rounding, unless a
decision hangs on rounding itself. Where that is possible, the candidate is judged by pymatgen's own
functions on pymatgen's own numbers (``_exactly``):

* a fractional distance equal to its tolerance (to ``CLOSE``): perfect crystals have 1/2 = 1/2;
* two atoms equally near to a third one: then the pairing, and with it the value, is a matter of
  rounding. A pairing is the only best one if every atom takes the nearest of its kind, no other is
  as near (to ``TIE``), and none is taken twice. Otherwise the assignment problem is solved by
  elements (it falls apart into them), and once more with the pairs found made dearer by ``TIE``:
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

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystalctl.analysis.assigning import (
    CLOSE,
    TIE,
    Array,
    Flags,
    Means,
    apart,
    pair_atoms,
    squares,
)
from crystalctl.analysis.niggli import is_lll_reduced, lll_steps
from crystalctl.analysis.reduction import Reduced, by_row, mappings

Pair = tuple[Reduced, Reduced]

_ENOUGH = 1e-5
"""The matcher stops looking for a smaller distance below this one."""
_TOGETHER = 64
"""Pairs of structures handled at once."""
_FIRST = 1_000
_BLOCK = 400_000
"""Pairs of atoms handled at once: few of a pair at first, as equal structures need no more."""
_ROWS = 4
"""Atoms looked at before the next candidates are given up."""
_STEPS = np.array([s for s in product(range(-2, 3), repeat=3) if s > (0, 0, 0)], dtype=float)


def best_rms(matcher: Any, pairs: Sequence[Pair]) -> list[float | None]:
    """``get_rms_dist(one, other)[0]`` of each pair of cells with the same atoms of each element."""
    best, done = np.full(len(pairs), np.inf), np.zeros(len(pairs), dtype=bool)
    for owner, distances in _candidates(matcher, pairs, done):
        values = np.linalg.norm(distances, axis=1) / distances.shape[1] ** 0.5
        for k in np.flatnonzero(values < _ENOUGH):
            if not done[owner[k]]:
                best[owner[k]], done[owner[k]] = values[k], True
        left = ~done[owner]
        np.minimum.at(best, owner[left], values[left])
    return [float(value) if value < matcher.stol else None for value in best]


def fits(matcher: Any, pairs: Sequence[Pair]) -> list[bool]:
    """``fit(one, other)`` of each pair of cells with the same atoms of each element."""
    done = np.zeros(len(pairs), dtype=bool)
    for owner, distances in _candidates(matcher, pairs, done):
        done[owner[distances.max(axis=1) < matcher.stol]] = True
    return list(map(bool, done))


class _Laid:
    """A pair, both scaled to one volume, its atoms by element, the rarest first.

    ``cells`` (M, 3, 3): the triples of vectors of ``one`` that may become the cell of ``other``.
    """

    def __init__(self, matcher: Any, one: Reduced, other: Reduced) -> None:
        from pymatgen.core import Lattice

        ratio = (other.volume / one.volume) ** (1 / 6)
        self.one, self.other = one, other
        self.lattice, self.target = Lattice(one.matrix * ratio), Lattice(other.matrix / ratio)
        self.ours = np.concatenate([one.sites[z] for z in other.sites])
        self.theirs = np.concatenate(list(other.sites.values()))
        found = [
            cells[np.abs(np.abs(np.linalg.det(steps)) - 1) <= 0.5]
            for cells, steps in mappings(self.lattice, self.target, matcher.ltol, matcher.angle_tol)
        ]
        self.cells = np.concatenate(found) if found else np.empty((0, 3, 3))


@dataclass(frozen=True)
class _Batch:
    """Pairs with the same numbers of atoms of their elements, whatever these are.

    ``ours`` (P, n, 3) Å and ``theirs`` (P, n, 3) fractional; ``lengths``, ``angles`` (P, 3) of the
    target cells; ``blocks``: the atoms of each element, the same in all.
    """

    matcher: Any
    pairs: list[_Laid]
    ours: Array
    theirs: Array
    lengths: Array
    angles: Array
    blocks: list[slice]

    @classmethod
    def of(cls, matcher: Any, pairs: list[_Laid]) -> _Batch:
        ends = np.cumsum([len(where) for where in pairs[0].other.sites.values()]).tolist()
        return cls(
            matcher,
            pairs,
            np.array([(p.one.frac @ p.lattice.matrix)[p.ours] for p in pairs]),
            np.array([p.other.frac[p.theirs] for p in pairs]),
            np.array([p.target.lengths for p in pairs]),
            np.array([p.target.angles for p in pairs]),
            [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)],
        )


def _candidates(
    matcher: Any, pairs: Sequence[Pair], done: Flags
) -> Iterator[tuple[NDArray[np.intp], Array]]:
    """Distances (K, n) of paired atoms over (V/n)^(1/3), and of which pair (K,), some at a time.

    In order within a pair; candidates without a pairing are left out, and the rest of those that
    are ``done`` meanwhile.
    """
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, (_, other) in enumerate(pairs):
        alike[tuple(map(len, other.sites.values()))].append(number)
    for sizes, members in alike.items():
        size = sizes[0] * sum(k * k for k in sizes)
        for start in range(0, len(members), _TOGETHER):
            some = np.array(members[start : start + _TOGETHER])
            batch = _Batch.of(matcher, [_Laid(matcher, *pairs[k]) for k in some])
            first = max(1, _FIRST // size)
            cells = [pair.cells for pair in batch.pairs]
            for parts in ([c[:first] for c in cells], [c[first:] for c in cells]):
                left = [k for k, part in enumerate(parts) if len(part) and not done[some[k]]]
                if not left:
                    continue
                owner = np.repeat(left, [len(parts[k]) for k in left])
                chosen = np.concatenate([parts[k] for k in left])
                most = max(1, _BLOCK // size)
                for cut in range(0, len(owner), most):
                    which, found = _lay(batch, owner[cut : cut + most], chosen[cut : cut + most])
                    yield some[which], found


def _lay(batch: _Batch, owner: NDArray[np.intp], cells: Array) -> tuple[NDArray[np.intp], Array]:
    """Pair (K,) and distances (K, n) of the candidates with these cells (M, 3, 3) of pairs (M,)."""
    n, stol, choices = batch.theirs.shape[1], batch.matcher.stol, batch.blocks[0].stop
    frac = batch.ours[owner] @ np.linalg.inv(cells)
    frac -= np.floor(frac)
    mean = _mean_cells(cells, batch.lengths[owner], batch.angles[owner])
    scale = np.cbrt(n / np.abs(np.linalg.det(mean)))
    shift = (frac[:, :choices] - batch.theirs[owner, :1]).reshape(-1, 3)
    # The axis comes first from here on: operations over three numbers in a row are slow.
    ours, theirs = frac.transpose(2, 0, 1).copy(), batch.theirs.transpose(2, 0, 1)[:, owner]
    index, unsure = _near(batch.blocks, (theirs, ours), shift.T.copy(), _widths(mean, scale, stol))
    which = index // choices
    there, row = np.unique(which, return_inverse=True)
    targets = [batch.pairs[k].target for k in owner[there]]
    means = _reduced_means(mean[there], scale[there], stol, (cells[there], targets))
    moved = theirs[:, which] + shift.T[:, index, None]
    vectors, feasible, doubtful = pair_atoms(batch.blocks, means, row, (moved, ours[:, which]))
    vectors -= vectors.mean(axis=1, keepdims=True)
    found = np.sqrt(np.einsum("kix,kix->ki", vectors, vectors)) * scale[which][:, None]
    found[~feasible] = np.inf
    for k in np.flatnonzero(unsure | doubtful):
        pair, m = batch.pairs[owner[which[k]]], which[k]
        found[k] = _exactly(batch.matcher, pair, cells[m], int(index[k] % choices))
    there = np.isfinite(found[:, 0])
    return owner[which[there]], found[there]


def _near(
    blocks: list[slice], points: tuple[Array, Array], shift: Array, widths: Array
) -> tuple[NDArray[np.intp], Flags]:
    """Candidates for which every atom has one of its kind near, and whether that is in doubt.

    ``points``: theirs and ours, (3, M, n); ``shift`` (3, M starts), ``widths`` (M, 3).
    """
    theirs, ours = points
    starts = blocks[0].stop
    index, unsure = np.arange(shift.shape[1]), np.zeros(shift.shape[1], dtype=bool)
    for block in blocks[starts == 1 :]:
        for k in range(block.start, block.stop, _ROWS):
            which = index // starts
            moved = theirs[:, which, k : min(k + _ROWS, block.stop)] + shift[:, index, None]
            outside = apart(moved, ours[:, which, block], widths[which])[1]
            least = outside.min(axis=2).max(axis=1)
            near = least <= CLOSE
            index, unsure = index[near], (unsure | (least >= -CLOSE))[near]
    return index, unsure


def _exactly(matcher: Any, pair: _Laid, cell: Array, start: int) -> Array:
    """Distances (n,) of one candidate by pymatgen's own functions; infinite for no pairing."""
    from pymatgen.core import Lattice

    n, theirs = len(pair.ours), pair.other.frac
    lattice = Lattice(cell)
    ours = lattice.get_fractional_coords(by_row(pair.one.frac, pair.lattice.matrix))
    ours = ours - np.floor(ours)
    moved = theirs + (ours[pair.ours[start]] - theirs[pair.theirs[0]])
    both = np.array(lattice.parameters) + np.array(pair.target.parameters)
    mean = Lattice.from_parameters(*both / 2)
    scale = (n / mean.volume) ** (1 / 3)
    mask = (pair.other.numbers[:, None] != pair.one.numbers).astype(np.int64)
    widths = np.array(mean.reciprocal_lattice.abc) * matcher.stol / (np.pi * scale)
    if not matcher._cmp_fstruct(ours, moved, widths, mask):
        return np.full(n, np.inf)
    reduced = np.array(mean.get_lll_reduced_lattice().reciprocal_lattice.abc)
    widths = reduced * matcher.stol / (np.pi * scale)
    return np.asarray(matcher._cart_dists(ours, moved, mean, mask, scale, widths)[0])


def _reduced_means(
    means: Array, scale: Array, stol: float, made_of: tuple[Array, list[Any]]
) -> Means:
    """Of the mean cells (M, 3, 3) of cells (M, 3, 3) and M targets."""
    matrix, change = means.copy(), np.broadcast_to(np.eye(3), means.shape).copy()
    ambiguous = []
    for k in np.flatnonzero(~is_lll_reduced(means)):
        steps = lll_steps(means[k].tobytes())
        if steps is None:
            ambiguous.append(k)
        else:
            matrix[k], change[k] = steps[0] @ means[k], steps[1]
    if ambiguous:
        cells, targets = made_of
        parameters = _parameters(cells[ambiguous])
        parameters += [targets[k].parameters for k in ambiguous]
        for k, of in zip(ambiguous, (parameters / 2).tolist(), strict=True):
            matrix[k], change[k] = _by_pymatgen(tuple(of))
    metric = (matrix @ matrix.transpose(0, 2, 1)).transpose(1, 2, 0)
    short = squares(list(_STEPS.T[..., None]), metric[:, :, None]).min(axis=0) / 4
    widths = _widths(matrix, scale, stol)
    reciprocal = (np.linalg.inv(matrix) ** 2).sum(axis=1)
    least = 1 / (4 * reciprocal.max(axis=1))
    return Means(matrix, metric, change, widths, short - TIE, least - TIE)


@lru_cache(maxsize=4096)
def _by_pymatgen(parameters: tuple[float, ...]) -> tuple[Array, Array]:
    """LLL-reduced cell of these lengths and angles; what takes steps there."""
    from pymatgen.core import Lattice

    lattice = Lattice.from_parameters(*parameters)
    return lattice.lll_matrix, lattice.lll_inverse


def _parameters(cells: Array) -> Array:
    """``Lattice(cell).parameters`` of cells (M, 3, 3), bit for bit: (M, 6) Å and degrees."""
    lengths = np.sqrt((cells**2).sum(axis=2))
    pairs = ((1, 2), (2, 0), (0, 1))
    # One by one as pymatgen does: a batched product may be rounded in another way.
    products = np.array([[np.dot(cell[i], cell[j]) for i, j in pairs] for cell in cells])
    sizes = np.stack([lengths[:, i] * lengths[:, j] for i, j in pairs], axis=1)
    angles = np.rad2deg(np.arccos(np.clip(products / sizes, -1, 1)))
    return np.concatenate([lengths, angles], axis=1)


def _mean_cells(cells: Array, other_lengths: Array, other_angles: Array) -> Array:
    """Cells (M, 3, 3) with the mean lengths and angles of ``cells`` and the others' (M, 3)."""
    lengths = np.sqrt((cells**2).sum(axis=2))
    pairs = ((1, 2), (2, 0), (0, 1))
    cosines = [
        (cells[:, i] * cells[:, j]).sum(1) / (lengths[:, i] * lengths[:, j]) for i, j in pairs
    ]
    angles = np.degrees(np.arccos(np.clip(np.stack(cosines, axis=1), -1, 1)))
    a, b, c = ((lengths + other_lengths) / 2).T
    alpha, beta, gamma = np.radians((angles + other_angles) / 2).T
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
