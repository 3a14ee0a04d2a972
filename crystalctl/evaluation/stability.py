"""Stable, unique and novel: pure functions of one entry for each generated structure.

Failure policy: a structure whose energy above the hull is None (not relaxed, no reference) or NaN
is not stable; it stays in the denominator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from crystalctl.errors import InputError

STABLE_EV = 0.0
METASTABLE_EV = 0.1
"""Energies above the hull, eV/atom, up to which a structure is called stable or metastable."""


def stable_mask(e_above_hull: Sequence[float | None], within_ev: float = STABLE_EV) -> list[bool]:
    """Which structures lie at most ``within_ev`` eV/atom above the hull."""
    return [e is not None and math.isfinite(e) and e <= within_ev for e in e_above_hull]


def stable_rate(e_above_hull: Sequence[float | None], within_ev: float = STABLE_EV) -> float:
    """Share of all structures at most ``within_ev`` above the hull; 0 without structures.

    Ref: Sec. 5.2, arXiv:2406.04713 (stable: 0); arXiv:2312.03687 (metastable: 0.1 eV/atom).
    """
    mask = stable_mask(e_above_hull, within_ev)
    return sum(mask) / len(mask) if mask else 0.0


def sun_rate(
    e_above_hull: Sequence[float | None],
    unique: Sequence[bool],
    novel: Sequence[bool],
    *,
    within_ev: float = STABLE_EV,
) -> float:
    """S.U.N.: share of all structures that are stable, unique and novel.

    ``unique``: the first of its group of equal structures; ``novel``: matches nothing known. With
    ``within_ev`` = ``METASTABLE_EV`` metastable S.U.N. (stable ones included). Raises
    ``InputError`` for lists of different lengths. Ref: arXiv:2312.03687.
    """
    if not len(e_above_hull) == len(unique) == len(novel):
        raise InputError(
            f"S.U.N. of {len(e_above_hull)} energies, {len(unique)} unique and {len(novel)} novel"
        )
    mask = stable_mask(e_above_hull, within_ev)
    good = [a and b and c for a, b, c in zip(mask, unique, novel, strict=True)]
    return sum(good) / len(good) if good else 0.0
