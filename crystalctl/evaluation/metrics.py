"""Numbers over many structures: match rate, RMSE and the composition gate.

Failure policy: an invalid or missing prediction is a prediction that does not match; it stays in
the denominator. RMSE averages over matched pairs only and is None when nothing matched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from crystalctl.analysis.charges import smact_valid
from crystalctl.errors import InputError

__all__ = ["MatchResult", "match_rate", "match_table", "passes_gate", "smact_valid"]

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
