"""Can a composition be charge-neutral? The test of the published composition validity."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import gcd
from typing import Any

from crystalctl.errors import InputError

_SMACT_22_ELECTRONEGATIVITY = {"Zr": 0.33}
"""Where smact 2.2, which the published numbers come from, has another value than later ones."""


def smact_valid(counts: Mapping[str, int]) -> bool:
    """Can the composition be charge-neutral with anions more electronegative than cations?

    ``counts``: symbol -> number of atoms. The behaviour of smact 2.2 as used in the benchmark:
    its 14-set of oxidation states, single elements and all-metal compositions pass, pairs
    with an unknown electronegativity pass. Raises ``InputError`` without the extra ``evaluate``.
    """
    divisor = gcd(*counts.values())
    return _smact_valid(tuple((s, n // divisor) for s, n in sorted(counts.items())))


@lru_cache(maxsize=65536)
def _smact_valid(counts: tuple[tuple[str, int], ...]) -> bool:
    smact = _import_smact()
    if len(counts) == 1 or all(symbol in smact.metals for symbol, _ in counts):
        return True
    choices: list[tuple[int, float | None, list[int]]] = []
    for symbol, n in counts:
        states, electronegativity = _element_facts(symbol)
        if not states:
            return False
        choices.append((n, electronegativity, states))
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


def _pauling(one: Ion, other: Ion) -> bool:
    """A cation must be less electronegative than an anion; unknown values pass."""
    (state_1, x_1), (state_2, x_2) = one, other
    if x_1 is None or x_2 is None or state_1 * state_2 >= 0:
        return True
    return x_1 < x_2 if state_1 > 0 else x_1 > x_2


@lru_cache(maxsize=256)
def _element_facts(symbol: str) -> tuple[list[int], float | None]:
    element = _import_smact().Element(symbol)
    # smact 4 renamed its first set of oxidation states, which was the only one in 2.2.
    states = getattr(element, "oxidation_states_smact14", None) or []
    value = _SMACT_22_ELECTRONEGATIVITY.get(symbol, element.pauling_eneg)
    return list(states), None if value is None else float(value)


def _import_smact() -> Any:
    try:
        import smact
    except ImportError as error:
        raise InputError(
            "the composition gate needs smact, which is not installed",
            'pip install "crystalctl[evaluate]"',
        ) from error
    return smact
