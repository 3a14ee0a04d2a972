"""One number from two judges: the calculator's energy, and how likely the proposal was."""

from __future__ import annotations

import math
from collections.abc import Sequence

from crystalctl.errors import InputError

RANK_BY = ("score", "energy")
"""What structures are ranked by: ``scores``, or the energy alone."""
TEMPERATURE_EV = 0.05
"""eV/atom that a proposal e times less likely must be lower in energy to count as equal.

On 272 entries of MP-20 validation the likeliest is 0.052 (0.042 to 0.065): see docs/guide/rank.md.
"""


def check_order(by: str) -> None:
    """Raise ``InputError`` for what nothing can be ranked by."""
    if by not in RANK_BY:
        raise InputError(f"--rank-by is '{by}'", f"allowed: {' or '.join(RANK_BY)}")


def scores(
    energies: Sequence[float], shares: Sequence[float], temperature: float = TEMPERATURE_EV
) -> list[float]:
    """Energies (eV/atom) of structures of one formula, each raised by how unlikely it was.

    s_i = E_i + T ln(max_j p_j / p_i), p the share of the votes (or of the samples): to sort by s is
    to sort by p exp(-E / T), the Boltzmann factor with the share as its prior. The most likely
    structure's score is its energy. A share of zero counts as the smallest that is not.
    """
    least = min((p for p in shares if p > 0), default=1.0)
    most = max(max(shares, default=1.0), least)
    return [
        energy + temperature * math.log(most / max(share, least))
        for energy, share in zip(energies, shares, strict=True)
    ]
