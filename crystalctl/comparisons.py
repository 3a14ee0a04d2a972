"""All comparisons of a run: each structure reduced once, the work cut into tasks for workers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from crystalctl.analysis.comparing import (
    Compared,
    Numbered,
    Task,
    compare,
    may_match,
    possible,
    prepare_all,
)
from crystalctl.analysis.matching import BENCHMARK
from crystalctl.analysis.reduction import Cell
from crystalctl.evaluation.pairing import Pairing
from crystalctl.gathering import Set, Workers

T = TypeVar("T")
Cells = dict[str, list[tuple[int, Cell]]]
"""Reduced formula -> (row, structure)."""
Content = tuple[tuple[int, int], ...]
"""(Z, atoms) of a primitive cell."""
MAX_PAIRS = 1_000_000
"""All predictions of a formula are compared with all its references up to this many pairs."""
_PAIRS = 250
"""Pairs of a task, at most."""
_HEAVY = 300
"""Pairs or structures that are worth starting processes for."""
_ROUND = 128
"""Structures sorted into groups of equal ones at a time."""
_LEAST = 16
"""Structures of a task: each is sent all it is compared with."""
_TOGETHER = 16
"""Structures reduced in a task."""


def match_all(ours: Set, theirs: Set, pairing: Pairing, workers: Workers) -> tuple[Compared, bool]:
    """Distances of predictions and references; whether of all of one formula, as METRe needs.

    Of more than ``MAX_PAIRS`` of one formula only those that belong together are compared.
    """
    mine, other = ours.cells(), theirs.cells()
    formulas = mine.keys() & other.keys()
    left = _reduced(mine, formulas, workers, ours.name)
    right = _reduced(other, formulas, workers, theirs.name)
    complete = all(len(mine[f]) * len(other[f]) <= MAX_PAIRS for f in formulas)
    ours_at = {row: one for group in left.values() for row, one in group}
    theirs_at = {row: one for group in right.values() for row, one in group}
    if complete:
        alike = [(left[content], right[content]) for content in left.keys() & right.keys()]
        pairs = [pair for group in alike for pair in _possible(*group)]
    else:
        belong = [(i, j) for j, rows in enumerate(pairing.drawn) for i in rows]
        ltol = BENCHMARK["ltol"]
        pairs = [p for p in belong if may_match(ours_at.get(p[0]), theirs_at.get(p[1]), ltol)]
    # Pairs with as many atoms of each element are searched together, whatever the elements.
    pairs.sort(key=lambda pair: sorted(n for _, n in ours_at[pair[0]].content))
    tasks = []
    size = min(_PAIRS, max(_LEAST, len(pairs) // (8 * workers.at_once)))
    for part in _parts(pairs, size):
        some, others = sorted({i for i, _ in part}), sorted({j for _, j in part})
        structures = [(i, ours_at[i]) for i in some]
        tasks.append(Task("distances", structures, [(j, theirs_at[j]) for j in others], part))
    found = Compared({}, {}, {})
    for answer in _answers(tasks, workers, f"comparing {ours.name}"):
        found.distances.update(answer)
    return found, complete


def _possible(ours: Sequence[Numbered], theirs: Sequence[Numbered]) -> Iterator[tuple[int, int]]:
    """Pairs of rows that the bound does not exclude."""
    may = possible([one for _, one in ours], [one for _, one in theirs], BENCHMARK["ltol"])
    for i, j in np.argwhere(may).tolist():
        yield ours[i][0], theirs[j][0]


def sort_out(ours: Set, known: Set | None, workers: Workers) -> Compared:
    """Which valid structures equal an earlier one, and which equal one of ``known``."""
    mine: Cells = {}
    for formula, cells in ours.cells().items():
        valid = [(row, cell) for row, cell in cells if ours.described[row].valid]
        if valid:
            mine[formula] = valid
    old = {} if known is None else known.cells()
    found = Compared({}, {row: row for cells in mine.values() for row, _ in cells}, {})
    twice = {formula for formula, cells in mine.items() if len(cells) > 1}
    left = _reduced(mine, twice | (mine.keys() & old.keys()), workers, ours.name)
    if known is not None:
        right = _reduced(old, mine.keys() & old.keys(), workers, known.name)
        tasks = []
        for content in left.keys() & right.keys():
            size = max(_LEAST, _PAIRS // len(right[content]))
            parts = _parts(left[content], size)
            tasks += [Task("known", part, right[content]) for part in parts]
        for answer in _answers(tasks, workers, f"novelty of {ours.name}"):
            found.known.update(answer)
    several = [group for group in left.values() if len(group) > 1]
    tasks = [Task("distinct", group) for group in several if len(group) <= 2 * _ROUND]
    for answer in _answers(tasks, workers, f"uniqueness of {ours.name}"):
        found.first.update(answer)
    for many in several:
        if len(many) > 2 * _ROUND:
            found.first.update(_distinct(many, workers, f"uniqueness of {ours.name}"))
    return found


def _distinct(cells: Sequence[Numbered], workers: Workers, stage: str) -> dict[int, int]:
    """First equal structure of each of many that hold the same atoms.

    Some at a time: they are compared with the distinct ones so far, in parallel; those that equal
    none are sorted out among themselves. The answer is that of going through them one by one.
    """
    first: dict[int, int] = {}
    leaders: list[Numbered] = []
    for start in range(0, len(cells), _ROUND):
        part = cells[start : start + _ROUND]
        if leaders:
            size = max(1, _ROUND // (4 * workers.at_once))
            tasks = [Task("met", some, leaders) for some in _parts(part, size)]
            for answer in workers.map(compare, tasks, "", least=2):
                first.update(answer)
        new = [(row, one) for row, one in part if row not in first]
        first.update(compare(Task("distinct", new)))
        leaders += [(row, one) for row, one in new if first[row] == row]
        if workers.report is not None:
            workers.report(stage, start + len(part), len(cells))
    return first


def _reduced(
    cells: Cells, formulas: set[str], workers: Workers, name: str
) -> dict[Content, list[Numbered]]:
    """Structures of these formulas that can be reduced, in order, by the atoms they hold.

    Rows that hold exactly the same numbers share one object.
    """
    chosen = sorted((row, cell) for f in formulas for row, cell in cells[f])
    places: dict[bytes, int] = {}
    different: list[Cell] = []
    where = []
    for _, (lattice, frac, numbers) in chosen:
        key = np.asarray(lattice).tobytes() + np.asarray(frac).tobytes() + bytes(numbers)
        if places.setdefault(key, len(different)) == len(different):
            different.append((lattice, frac, numbers))
        where.append(places[key])
    parts = _parts(different, _TOGETHER)
    least = 2 if len(different) > _HEAVY else len(parts) + 1
    answers = workers.map(prepare_all, parts, f"reducing {name}", least=least)
    made = [one for part in answers for one in part]
    found: dict[Content, list[Numbered]] = defaultdict(list)
    for (row, _), place in zip(chosen, where, strict=True):
        one = made[place]
        if one is not None:
            found[one.content].append((row, one))
    return found


def _answers(tasks: list[Task], workers: Workers, stage: str) -> Iterator[Any]:
    """Answers to the tasks, the largest first, so that none is left over at the end."""
    sizes = [len(t.pairs) or len(t.structures) * len(t.others or t.structures) for t in tasks]
    order = sorted(range(len(tasks)), key=lambda k: -sizes[k])
    least = 2 if sum(sizes) > _HEAVY else len(tasks) + 1
    yield from workers.map(compare, [tasks[k] for k in order], stage, least=least)


def _parts(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[k : k + size] for k in range(0, len(items), size)]
