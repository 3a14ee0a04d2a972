"""The score: energy alone at no weight, votes alone at a large one, Boltzmann in between."""

from __future__ import annotations

import math

import pytest

from crystalctl.analysis.scoring import check_order, scores
from crystalctl.errors import InputError

ENERGIES = [-3.00, -3.02, -2.50]
SHARES = [0.60, 0.10, 0.30]


def order(temperature: float) -> list[int]:
    values = scores(ENERGIES, SHARES, temperature)
    return sorted(range(3), key=lambda i: values[i])


def test_the_weight_goes_from_energy_to_votes() -> None:
    assert order(0.0) == [1, 0, 2]
    # 0.02 eV lower is worth ln 6 = 1.79 times less likely at 0.0112 eV.
    assert order(0.011) == [1, 0, 2]
    assert order(0.012) == [0, 1, 2]
    assert order(100.0) == [0, 2, 1]


def test_it_is_the_boltzmann_factor_with_the_share_as_prior() -> None:
    found = scores(ENERGIES, SHARES, 0.03)
    product = [p * math.exp(-e / 0.03) for e, p in zip(ENERGIES, SHARES, strict=True)]
    for i in range(3):
        for j in range(3):
            ratio = math.exp((found[j] - found[i]) / 0.03)
            assert ratio == pytest.approx(product[i] / product[j])
    # The most likely one keeps its energy, and none falls below its own.
    assert found[0] == ENERGIES[0]
    assert all(s >= e for s, e in zip(found, ENERGIES, strict=True))


def test_no_votes_at_all_and_nothing_to_score() -> None:
    assert scores([-1.0, -2.0], [0.0, 0.0]) == [-1.0, -2.0]
    assert scores([-1.0, -2.0], [0.5, 0.0])[1] == -2.0  # as unlikely as the least likely
    assert scores([], []) == []


def test_what_nothing_is_ranked_by() -> None:
    check_order("energy")
    with pytest.raises(InputError, match="beauty") as refused:
        check_order("beauty")
    assert "score or energy" in refused.value.hint
