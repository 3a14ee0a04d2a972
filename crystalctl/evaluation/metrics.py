"""Numbers over many structures: match rate, RMSE and the composition gate.

Failure policy: an invalid or missing prediction is a prediction that does not match; it stays in
the denominator. RMSE averages over matched pairs only and is None when nothing matched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from typing import Any, Literal

from crystalctl.errors import InputError

Gate = Literal["none", "both", "prediction"]
GATES: tuple[Gate, ...] = ("none", "both", "prediction")


@dataclass(frozen=True)
class MatchResult:
    """Match rate (fraction of references), RMSE in (V/n)^(1/3) over matches, and how many."""

    match_rate: float
    rmse: float | None
    n_matched: int
    n_total: int


def match_rate(
    rms: Sequence[Sequence[float | None]],
    *,
    k: int = 1,
    gate: Gate = "none",
    prediction_valid: Sequence[Sequence[bool]] | None = None,
    reference_valid: Sequence[bool] | None = None,
) -> MatchResult:
    """Match rate and RMSE of the first ``k`` predictions for each reference.

    ``rms[i][j]``: distance of prediction j to reference i, None = no match. Of several matches the
    closest counts. ``gate``: "none"; "both" = prediction and reference must be valid (published
    k=1 numbers); "prediction" = only the prediction (published k=20 numbers). Raises
    ``InputError`` when a gate lacks its validity table or ``k`` is not positive.
    Ref: Sec. 5.1, arXiv:2309.04475.
    """
    if k < 1:
        raise InputError(
            f"k is {k}", "k is the number of predictions for each reference, 1 or more"
        )
    if gate not in GATES:
        raise InputError(f"unknown gate '{gate}'", f"allowed: {', '.join(GATES)}")
    if gate != "none" and prediction_valid is None:
        raise InputError(f"gate '{gate}' needs the validity of each prediction")
    if gate == "both" and reference_valid is None:
        raise InputError("gate 'both' needs the validity of each reference")
    best: list[float] = []
    for i, row in enumerate(rms):
        if gate == "both" and reference_valid is not None and not reference_valid[i]:
            continue
        kept = [
            value
            for j, value in enumerate(row[:k])
            if value is not None
            and (gate == "none" or prediction_valid is None or prediction_valid[i][j])
        ]
        if kept:
            best.append(min(kept))
    rmse = sum(best) / len(best) if best else None
    return MatchResult(len(best) / len(rms) if rms else 0.0, rmse, len(best), len(rms))


def match_table(
    predictions: Sequence[Sequence[Any]],
    references: Sequence[Any],
    *,
    on_step: Callable[[int, int], None] | None = None,
) -> list[list[float | None]]:
    """Distances of all predictions to their reference (pymatgen structures; None = no match).

    A prediction of None (an impossible cell) does not match. Tolerances of the benchmark.
    """
    from crystalctl.analysis.matching import rms_distance

    if len(predictions) != len(references):
        raise InputError(f"{len(predictions)} sets of predictions for {len(references)} references")
    table: list[list[float | None]] = []
    for guesses, truth in zip(predictions, references, strict=True):
        table.append([None if g is None else rms_distance(g, truth) for g in guesses])
        if on_step is not None:
            on_step(len(table), len(references))
    return table


def passes_gate(structure: Any) -> bool:
    """The benchmark's validity gate for a pymatgen structure: geometry and SMACT composition."""
    from crystalctl.analysis.validity import invalid_reason

    if invalid_reason(structure.lattice.matrix, structure.frac_coords):
        return False
    amounts = structure.composition.get_el_amt_dict()
    return smact_valid({symbol: int(amount) for symbol, amount in amounts.items()})


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
