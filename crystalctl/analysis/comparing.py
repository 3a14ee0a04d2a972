"""Many comparisons of structures, as fast as they can be with the matcher's own answers.

Structures are reduced once. Those whose primitive cells do not hold the same atoms are refused by
pymatgen's StructureMatcher, and so never compared; then a bound on the lattices, then its search
(``strict``). Structures travel to worker processes as plain arrays.

The bound. The matcher scales both primitive cells, ``L1`` of the first structure and ``L2`` of the
second, to one volume and looks for three independent vectors of ``L1`` of which the i-th is
shorter than (1 + ltol) times the i-th basis vector of ``L2``; without them there is no match.
Sort the lengths of the basis of ``L2``: d1 <= d2 <= d3. By definition the successive minima m1, m2,
m3 of ``L1`` are the smallest numbers such that i independent vectors of ``L1`` are no longer than
mi; the i vectors found for d1 .. di are independent and no longer than (1 + ltol) di. So a match
needs mi < (1 + ltol) di for i = 1, 2, 3. In three dimensions the minima are the lengths of a
Minkowski-reduced basis. Nothing else is excluded: volumes say nothing, as both are scaled.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from crystalctl.analysis.matching import BENCHMARK, DUPLICATES, _matcher
from crystalctl.analysis.reduction import Cell, Reduced, reduce_cell
from crystalctl.analysis.strict import Pair, best_rms
from crystalctl.analysis.strict import fits as same

Numbered = tuple[int, Reduced]
"""Row and structure."""
_TOGETHER = 32
"""Structures that one is compared with at once."""
T = TypeVar("T")
_ROUNDING = 1e-6
"""Slack of the bound for rounding in the reductions."""


def prepare(cell: Cell | None) -> Reduced | None:
    """The cell the matcher compares; None for a structure that it cannot reduce."""
    if cell is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return reduce_cell(cell)
    except Exception:  # the reduction raises various errors for cells it cannot reduce
        return None


def prepare_all(cells: Sequence[Cell]) -> list[Reduced | None]:
    """``prepare`` of each. Runs in worker processes."""
    return [prepare(cell) for cell in cells]


def possible(ours: Sequence[Reduced], theirs: Sequence[Reduced], ltol: float) -> NDArray[np.bool_]:
    """(n, m): False only where the matcher cannot match ours with theirs (proof above).

    All of them hold the same atoms.
    """
    lengths = np.array([one.lengths for one in theirs]).reshape(-1, 3)
    minima = np.array([one.minima for one in ours]).reshape(-1, 3)
    longest = (1 + ltol) * lengths * (1 + _ROUNDING)
    return np.asarray((minima[:, None] <= longest).all(axis=2))


def may_match(one: Reduced | None, other: Reduced | None, ltol: float) -> bool:
    """False only where the matcher cannot match ``one`` with ``other``."""
    if one is None or other is None or one.content != other.content:
        return False
    return bool(possible([one], [other], ltol)[0, 0])


def rms(
    one: Reduced | None, other: Reduced | None, tolerances: dict[str, float] = BENCHMARK
) -> float | None:
    """What ``StructureMatcher.get_rms_dist`` gives for the two, None = no match."""
    if one is None or other is None or not may_match(one, other, tolerances["ltol"]):
        return None
    return _all(best_rms, [(one, other)], tolerances, None)[0]


def fits(
    one: Reduced | None, other: Reduced | None, tolerances: dict[str, float] = DUPLICATES
) -> bool:
    """What ``StructureMatcher.fit`` gives for the two."""
    if one is None or other is None or not may_match(one, other, tolerances["ltol"]):
        return False
    return _all(same, [(one, other)], tolerances, False)[0]


def _all(
    search: Callable[[Any, Sequence[Pair]], list[T]],
    pairs: Sequence[Pair],
    tolerances: dict[str, float],
    otherwise: T,
) -> list[T]:
    """Answers of a search; as in the published evaluation, an error is no match."""
    try:
        return search(_matcher(**tolerances), pairs)
    except Exception:
        if len(pairs) == 1:
            return [otherwise]
        return [_all(search, [pair], tolerances, otherwise)[0] for pair in pairs]


@dataclass(frozen=True)
class Task:
    """What to compare of structures that hold the same atoms.

    ``what``: "distances" of ``pairs``, (row of ``structures``, row of ``others``), which need not
    hold the same atoms as other pairs; "known": for each of ``structures`` the first of ``others``
    that it fits, "met": the first that fits it, which is not always the same; "distinct": the first
    of ``structures`` that fits it and is distinct from those before, itself if there is none.
    """

    what: Literal["distances", "known", "met", "distinct"]
    structures: Sequence[Numbered]
    others: Sequence[Numbered] = ()
    pairs: Sequence[tuple[int, int]] = ()


@dataclass
class Compared:
    """Distances by (row, reference row), first equal row, rows not new; those that match only."""

    distances: dict[tuple[int, int], float]
    first: dict[int, int]
    known: dict[int, int]


def compare(task: Task) -> dict[tuple[int, int], float] | dict[int, int]:
    """Answers to one task. Runs in worker processes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if task.what == "distances":
            return _distances(task)
        return _distinct(task) if task.what == "distinct" else _first_equal(task)


def _distances(task: Task) -> dict[tuple[int, int], float]:
    ours, theirs = dict(task.structures), dict(task.others)
    pairs = [(ours[i], theirs[j]) for i, j in task.pairs]
    answers = zip(task.pairs, _all(best_rms, pairs, BENCHMARK, None), strict=True)
    return {pair: distance for pair, distance in answers if distance is not None}


def _first_equal(task: Task) -> dict[int, int]:
    """Rows of ``structures`` that equal one of ``others``, and the row of the first."""
    met, ltol = task.what == "met", DUPLICATES["ltol"]
    ways = (task.others, task.structures) if met else (task.structures, task.others)
    may = _possible(*ways, ltol)
    found = {}
    for (row, one), near in zip(task.structures, may.T if met else may, strict=True):
        others = [task.others[int(j)] for j in np.flatnonzero(near)]
        twin = _first(one, others, met)
        if twin is not None:
            found[row] = twin
    return found


def _distinct(task: Task) -> dict[int, int]:
    may = _possible(task.structures, task.structures, DUPLICATES["ltol"])
    first: dict[int, int] = {}
    leaders: list[int] = []
    for i, (row, one) in enumerate(task.structures):
        twin = _first(one, [task.structures[lead] for lead in leaders if may[lead, i]], True)
        first[row] = row if twin is None else twin
        if twin is None:
            leaders.append(i)
    return first


def _first(one: Reduced, others: Sequence[Numbered], met: bool) -> int | None:
    """Row of the first of ``others`` that ``one`` fits; with ``met``, that fits ``one``."""
    for start in range(0, len(others), _TOGETHER):
        some = others[start : start + _TOGETHER]
        pairs = [(other, one) if met else (one, other) for _, other in some]
        equal = np.flatnonzero(_all(same, pairs, DUPLICATES, False))
        if len(equal):
            return some[int(equal[0])][0]
    return None


def _possible(
    structures: Sequence[Numbered], others: Sequence[Numbered], ltol: float
) -> NDArray[np.bool_]:
    return possible([one for _, one in structures], [one for _, one in others], ltol)
