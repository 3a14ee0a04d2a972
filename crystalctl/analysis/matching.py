"""Do two structures match? pymatgen's StructureMatcher, with its preparation done once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from math import gcd
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crystalctl.analysis.reduction import Cell

BENCHMARK = {"ltol": 0.3, "stol": 0.5, "angle_tol": 10.0}
"""Tolerances of the published match rates."""
DUPLICATES = {"ltol": 0.2, "stol": 0.3, "angle_tol": 5.0}
"""pymatgen's defaults, used to merge duplicates."""


@lru_cache(maxsize=8)
def _matcher(ltol: float, stol: float, angle_tol: float) -> Any:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher(ltol=ltol, stol=stol, angle_tol=angle_tol)


def rms_distance(
    one: Any, other: Any, *, tolerances: dict[str, float] | None = None
) -> float | None:
    """Root mean square displacement of two pymatgen structures, or None where they do not match.

    In units of (V/n)^(1/3). ``tolerances``: ``BENCHMARK`` unless given.
    """
    found = _matcher(**(tolerances or BENCHMARK)).get_rms_dist(one, other)
    return None if found is None else float(found[0])


def matches(one: Any, other: Any, *, tolerances: dict[str, float] | None = None) -> bool:
    """Whether two pymatgen structures are the same within ``tolerances`` (``DUPLICATES``)."""
    return bool(_matcher(**(tolerances or DUPLICATES)).fit(one, other))


def group_duplicates(
    structures: Sequence[Any],
    *,
    tolerances: dict[str, float] | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """``group_cells`` of pymatgen structures."""
    cells = [
        (one.lattice.matrix, one.frac_coords, [site.specie.Z for site in one]) for one in structures
    ]
    return group_cells(cells, tolerances=tolerances, on_step=on_step)


def group_cells(
    cells: Sequence[Cell],
    *,
    tolerances: dict[str, float] | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """Groups of indices of equal structures; the first index of a group was met first.

    A structure joins the first group whose first member it matches (default tolerances
    ``DUPLICATES``). Only structures with the same atoms in the primitive cell are compared: the
    matcher refuses the others anyway. One that cannot be reduced is a group of its own.
    """
    from crystalctl.analysis.comparing import fits, prepare

    chosen = tolerances or DUPLICATES
    # One composition after the other: reduced cells are large, and those of others are not needed.
    alike: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for index, (_, _, numbers) in enumerate(cells):
        counts = Counter(numbers)
        unit = gcd(*counts.values())
        alike.setdefault(tuple(sorted((z, n // unit) for z, n in counts.items())), []).append(index)
    found, done = [], 0
    for some in alike.values():
        groups: dict[tuple[tuple[int, int], ...] | int, list[tuple[Any, list[int]]]] = {}
        for index in some:
            one = prepare(cells[index])
            # What cannot be reduced equals nothing.
            same = groups.setdefault(-1 - index if one is None else one.content, [])
            for first, members in same:
                if fits(first, one, chosen):
                    members.append(index)
                    break
            else:
                same.append((one, [index]))
            done += 1
            if on_step is not None:
                on_step(done, len(cells))
        found += [members for same in groups.values() for _, members in same]
    return sorted(found)
