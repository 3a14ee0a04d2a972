"""Do two structures match? pymatgen's StructureMatcher, with its preparation done once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

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
    """Groups of indices of equal structures; the first index of a group was met first.

    A structure joins the first group whose first member it matches (default tolerances
    ``DUPLICATES``). Only structures of one reduced formula and with the same number of atoms in
    the primitive cell are compared: the matcher refuses the others anyway.
    """
    matcher = _matcher(**(tolerances or DUPLICATES))
    groups: dict[tuple[str, int], list[tuple[Any, list[int]]]] = {}
    for index, structure in enumerate(structures):
        primitive = primitive_niggli(structure)
        key = (structure.composition.reduced_formula, len(primitive))
        same = groups.setdefault(key, [])
        for first, members in same:
            if matcher.fit(first, primitive, skip_structure_reduction=True):
                members.append(index)
                break
        else:
            same.append((primitive, [index]))
        if on_step is not None:
            on_step(index + 1, len(structures))
    found = [members for same in groups.values() for _, members in same]
    return sorted(found)


def primitive_niggli(structure: Any) -> Any:
    """The Niggli-reduced primitive cell, as the matcher itself prepares it."""
    return structure.get_reduced_structure(reduction_algo="niggli").get_primitive_structure()
