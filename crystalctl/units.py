"""How many formula units a cell has: what a request allows, and how samples are shared out.

No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from crystalctl.crystal.elements import Formula, symbol_of
from crystalctl.errors import InputError

if TYPE_CHECKING:
    from crystalctl.data.statistics import Statistics

AUTO_UNITS = 4
AUTO_ATOMS = 20
MORE_UNITS = 12
"""Formula units of the largest cell that is looked at where the training data have such."""
_ENOUGH = 10
"""Training structures a histogram of formula units must hold before it is believed."""
_PRIOR_VOTES = 0.1
"""Votes that the training histogram counts for beside those of structures of like elements."""
_RARE = 0.05
"""Part below which a number of units beyond the automatic ones is left out: one sample of 20."""


def choose_units(
    formula: Formula,
    statistics: Statistics,
    *,
    units: Sequence[int] | None = None,
    num_atoms: int | None = None,
) -> list[int]:
    """Numbers of reduced formula units to sample.

    ``units`` None enumerates 1..4 while the cell has at most 20 atoms (and what the weights know),
    to which ``voted_units`` may add;
    the multiple in which the formula was written (2 for ``Sr2Ti2O6``) is always among them.
    ``num_atoms`` picks the one with that many atoms. Raises ``InputError`` for cells
    larger than the weights know and numbers of atoms the formula cannot give.
    """
    per_unit, most = formula.unit_atoms, statistics.max_atoms
    unknown = [symbol_of(z) for z in formula.unit if z not in statistics.elements]
    if unknown:
        raise InputError(
            f"the weights have never seen {', '.join(unknown)} (in {formula.text})",
            "`crystalctl models` lists other weights",
        )
    if num_atoms is not None:
        return [_units_for(formula, num_atoms, most)]
    if units is None:
        if per_unit > most:
            raise _too_large(formula, 1, most)
        limit = min(AUTO_ATOMS, most)
        chosen = [z for z in range(1, AUTO_UNITS + 1) if z * per_unit <= limit] or [1]
        as_written = formula.factor
        if as_written * per_unit > most:
            raise _too_large(formula, as_written, most)
        return sorted({*chosen, as_written})
    for z in units:
        if z * per_unit > most:
            raise _too_large(formula, z, most)
    return list(units)


def _units_for(formula: Formula, num_atoms: int, most: int) -> int:
    per_unit = formula.unit_atoms
    if num_atoms < 1 or num_atoms % per_unit:
        below = max(1, num_atoms // per_unit) * per_unit
        near = [n for n in dict.fromkeys((below, below + per_unit)) if n <= most]
        hint = f"nearest possible: {' or '.join(str(n) for n in near)}" if near else ""
        raise InputError(
            f"no cell of {formula.reduced} ({per_unit} atoms per formula unit) has "
            f"{num_atoms} atoms",
            hint,
        )
    if num_atoms > most:
        raise _too_large(formula, num_atoms // per_unit, most)
    return num_atoms // per_unit


def _too_large(formula: Formula, z: int, most: int) -> InputError:
    fits = most // formula.unit_atoms
    hint = f"use --z {fits} or less" if fits else "`crystalctl models` shows the limits of others"
    return InputError(
        f"{z} x {formula.reduced} has {z * formula.unit_atoms} atoms, "
        f"the weights know up to {most}",
        hint,
    )


def unit_prior(formula: Formula, statistics: Statistics) -> Mapping[int, int]:
    """Histogram of formula units among compounds of the formula's kind, or of a coarser one."""
    kinds = (f"{len(formula.unit)}:{formula.unit_atoms}", f"*:{formula.unit_atoms}", "*:*")
    for kind in kinds:
        histogram = statistics.formula_units.get(kind, {})
        if sum(histogram.values()) >= _ENOUGH:
            return histogram
    return {}


def unit_weights(
    formula: Formula, statistics: Statistics, units: Sequence[int]
) -> dict[int, float]:
    """The part of each number of units by the training histogram (``unit_prior``), add-one."""
    prior = unit_prior(formula, statistics)
    counts = {z: prior.get(z, 0) + 1 for z in units}
    total = sum(counts.values())
    return {z: count / total for z, count in counts.items()}


def voted_units(
    formula: Formula,
    statistics: Statistics,
    chosen: Sequence[int],
    evidence: Callable[[Mapping[int, int]], float],
    *,
    more: bool,
) -> dict[int, float]:
    """The part of each number of units by the votes of known structures (``evidence``).

    Those of like elements tell the number of units better than the histogram of the kind, which
    decides where there are no votes: it counts as ``_PRIOR_VOTES``. ``more``: larger cells than
    the ``chosen`` ones are among them where they have at least ``_RARE`` of the whole.
    """
    largest = min(MORE_UNITS, statistics.max_atoms // formula.unit_atoms) if more else 0
    units = [*chosen, *(z for z in range(1, largest + 1) if z not in chosen)]
    if len(units) == 1:
        return {units[0]: 1.0}
    prior = unit_weights(formula, statistics, units)
    votes = {z: evidence({e: z * count for e, count in formula.unit.items()}) for z in units}
    total = sum(votes.values()) + _PRIOR_VOTES
    parts = {z: (votes[z] + _PRIOR_VOTES * prior[z]) / total for z in units}
    return {z: parts[z] for z in sorted(units) if z in chosen or parts[z] >= _RARE}


def spread(n: int, weights: Mapping[int, float]) -> list[int]:
    """Share ``n`` samples over numbers of units by their weights, largest remainder.

    Each gets at least one while ``n`` allows.
    """
    units = list(weights)
    exact = [n * w / sum(weights.values()) for w in weights.values()]
    shares = [math.floor(e) for e in exact]
    order = sorted(range(len(units)), key=lambda i: (shares[i] - exact[i], units[i]))
    for i in order[: n - sum(shares)]:
        shares[i] += 1
    if n >= len(units):
        for i, share in enumerate(shares):
            if share == 0:
                shares[shares.index(max(shares))] -= 1
                shares[i] = 1
    return shares
