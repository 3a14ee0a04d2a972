"""Can a composition be charge-neutral? The test of the published composition validity."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import combinations, product
from math import gcd
from typing import Any

from crystalctl.errors import InputError

_SMACT_22_ELECTRONEGATIVITY = {"Zr": 0.33}
_SMACT_22_STATES = {"Ir": [-2, -1, 1, 2, 3, 4, 5, 6, 7, 8]}
"""Where smact 2.2, which the published numbers come from, has other values than later ones."""


def smact_valid(counts: Mapping[str, int]) -> bool:
    """Can the composition be charge-neutral with anions more electronegative than cations?

    ``counts``: symbol -> number of atoms. The behaviour of smact 2.2 as used in the benchmark:
    its 14-set of oxidation states, single elements and all-metal compositions pass; see
    ``_pauling_in_order`` for unknown electronegativities. Raises ``InputError`` without the extra
    ``evaluate``.
    """
    divisor = gcd(*counts.values())
    return _smact_valid(tuple((s, n // divisor) for s, n in sorted(counts.items())))


@lru_cache(maxsize=65536)
def _smact_valid(counts: tuple[tuple[str, int], ...]) -> bool:
    smact = _import_smact()
    if len(counts) == 1 or all(symbol in smact.metals for symbol, _ in counts):
        return True
    choices: list[tuple[int, float | None, list[int]]] = []
    for symbol, n in sorted(counts, key=lambda item: _number(item[0])):
        states, electronegativity = _element_facts(symbol)
        if not states:
            return False
        choices.append((n, electronegativity, states))
    if any(electronegativity is None for _, electronegativity, _ in choices):
        return _any_in_order(choices)
    # Fewest choices first, so that the search below is cut early.
    choices.sort(key=lambda choice: len(choice[2]))
    return _neutral(choices, 0, ())


Ion = tuple[int, float | None]


def _neutral(
    choices: list[tuple[int, float | None, list[int]]], charge: int, ions: tuple[Ion, ...]
) -> bool:
    """Whether oxidation states for the remaining elements exist that make the cell neutral."""
    if not choices:
        return charge == 0
    low = charge + sum(n * min(states) for n, _, states in choices)
    high = charge + sum(n * max(states) for n, _, states in choices)
    if low > 0 or high < 0:
        return False
    n, electronegativity, states = choices[0]
    return any(
        _neutral(choices[1:], charge + n * state, (*ions, (state, electronegativity)))
        for state in states
        if all(_pauling((state, electronegativity), ion) for ion in ions)
    )


def _any_in_order(choices: list[tuple[int, float | None, list[int]]]) -> bool:
    """The same by all combinations; ``choices`` by atomic number."""
    for states in product(*(states for _, _, states in choices)):
        if sum(n * state for (n, _, _), state in zip(choices, states, strict=True)) == 0:
            ions = [(state, x) for state, (_, x, _) in zip(states, choices, strict=True)]
            if _pauling_in_order(ions):
                return True
    return False


def _pauling_in_order(ions: list[Ion]) -> bool:
    """smact 2.2's test where an electronegativity is unknown: pair by pair, the first one decides.

    A cation and an anion one of which is unknown pass the composition (there it is an error, which
    the benchmark counts as passed); two ions of one sign do not.
    """
    for one, other in combinations(ions, 2):
        unknown = one[1] is None or other[1] is None
        if unknown:
            return one[0] * other[0] < 0
        if not _pauling(one, other):
            return False
    return True


def _pauling(one: Ion, other: Ion) -> bool:
    """A cation must be less electronegative than an anion."""
    (state_1, x_1), (state_2, x_2) = one, other
    if x_1 is None or x_2 is None or state_1 * state_2 >= 0:
        return True
    return x_1 < x_2 if state_1 > 0 else x_1 > x_2


@lru_cache(maxsize=256)
def _element_facts(symbol: str) -> tuple[list[int], float | None]:
    element = _import_smact().Element(symbol)
    # smact 4 renamed its first set of oxidation states, which was the only one in 2.2.
    states = getattr(element, "oxidation_states_smact14", None) or []
    states = _SMACT_22_STATES.get(symbol, states)
    value = _SMACT_22_ELECTRONEGATIVITY.get(symbol, element.pauling_eneg)
    return list(states), None if value is None else float(value)


@lru_cache(maxsize=256)
def _number(symbol: str) -> int:
    return int(_import_smact().Element(symbol).number)


def _import_smact() -> Any:
    try:
        import smact
    except ImportError as error:
        raise InputError(
            "the composition gate needs smact, which is not installed",
            'pip install "crystalctl[evaluate]"',
        ) from error
    return smact
