"""Numbers over predictions and the structures they should match, from a table of distances.

``distances[i]`` is the distance of a prediction and its reference in (V/n)^(1/3), from
StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10); None = no match.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crystalctl.analysis.matching import BENCHMARK


@dataclass(frozen=True)
class Metre:
    """METRe (fraction of references that anything matched), cRMSE, RMSE over matches, counts."""

    metre: float
    crmse: float
    rmse: float | None
    n_matched: int
    n_total: int


def metre(best: Sequence[float | None], *, stol: float = BENCHMARK["stol"]) -> Metre:
    """Match-everyone-to-reference rate and corrected RMSE.

    ``best[j]``: smallest distance of reference j to any prediction of its reduced formula, None =
    nothing matches. METRe: share of references with one. cRMSE: mean over all references, a missing
    match counting ``stol``. Failure policy: a prediction that is broken matches nothing; without
    references METRe is 0 and cRMSE is ``stol``. Ref: arXiv:2509.12178.
    """
    found = [value for value in best if value is not None]
    total = len(best)
    corrected = sum(found) + stol * (total - len(found))
    return Metre(
        len(found) / total if total else 0.0,
        corrected / total if total else stol,
        sum(found) / len(found) if found else None,
        len(found),
        total,
    )


def corrected_rmse(
    distances: Sequence[Sequence[float | None]], k: int, *, stol: float = BENCHMARK["stol"]
) -> float:
    """cRMSE of the best of the first ``k`` predictions: no match counts ``stol``.

    Failure policy: as ``metre``. Ref: arXiv:2509.12178.
    """
    best = [min((d for d in row[:k] if d is not None), default=None) for row in distances]
    return metre(best, stol=stol).crmse
