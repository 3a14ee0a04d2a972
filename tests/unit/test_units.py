"""How many formula units are drawn, and how samples are shared out among them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalctl.crystal.elements import parse_formula
from crystalctl.data.statistics import Statistics
from crystalctl.errors import InputError
from crystalctl.units import choose_units, spread, unit_prior, unit_weights, voted_units

STATISTICS = Statistics(
    max_atoms=40,
    elements=tuple(range(1, 90)),
    formula_units={
        "3:5": {1: 60, 2: 30, 4: 9},
        "2:5": {1: 3},
        "*:5": {2: 50},
        "*:*": {1: 100},
    },
)


def units(text: str, **options) -> list[int]:
    return choose_units(parse_formula(text), STATISTICS, **options)


def test_automatic_units() -> None:
    assert units("NaCl") == [1, 2, 3, 4]
    assert units("SrTiO3") == [1, 2, 3, 4]
    assert units("Ca3(PO4)2") == [1]
    assert units("CaSO4·2H2O") == [1]
    assert units("Al2(SO4)3·H2O") == [1]
    assert units("Sr2Ti2O6") == [1, 2, 3, 4]
    assert units("Si8") == [1, 2, 3, 4, 8]
    assert units("KAl3Si3O12H2") == [1]  # 21 atoms: above 20, but known
    with pytest.raises(InputError, match="47 atoms, the weights know up to 40"):
        units("K4Fe(CN)6(H2O)10")
    with pytest.raises(InputError, match="1000 x C has 1000 atoms") as caught:
        units("C1000")
    assert caught.value.hint == "use --z 40 or less"
    assert units("C1000", units=[4]) == [4]


def test_given_units() -> None:
    assert units("SrTiO3", units=[2, 8]) == [2, 8]
    with pytest.raises(InputError, match="45 atoms") as caught:
        units("SrTiO3", units=[9])
    assert caught.value.hint == "use --z 8 or less"
    assert units("SrTiO3", num_atoms=10) == [2]
    for wrong, near in ((7, "5 or 10"), (1, "5 or 10"), (39, "35 or 40"), (43, "40")):
        with pytest.raises(InputError, match=f"has {wrong} atoms") as caught:
            units("SrTiO3", num_atoms=wrong)
        assert caught.value.hint == f"nearest possible: {near}"
    with pytest.raises(InputError, match="never seen Pa"):
        units("PaO2")


def test_prior_backs_off() -> None:
    assert unit_prior(parse_formula("SrTiO3"), STATISTICS) == {1: 60, 2: 30, 4: 9}
    assert unit_prior(parse_formula("Al2O3"), STATISTICS) == {2: 50}  # only 3 of its own kind
    assert unit_prior(parse_formula("NaCl"), STATISTICS) == {1: 100}


def test_spread_by_hand() -> None:
    assert spread(10, {1: 9, 2: 1}) == [9, 1]
    assert spread(20, {1: 61, 2: 31, 3: 1, 4: 10}) == [11, 6, 1, 2]
    assert spread(2, {1: 1, 2: 91, 3: 1}) == [0, 2, 0]


@given(
    st.integers(1, 200),
    st.dictionaries(st.integers(1, 9), st.floats(1e-9, 10_000), min_size=1, max_size=5),
)
def test_spread(n: int, weights: dict[int, float]) -> None:
    shares = spread(n, weights)
    assert sum(shares) == n
    assert min(shares) >= (1 if n >= len(weights) else 0)


def test_without_votes_the_histogram_decides() -> None:
    weights = unit_weights(parse_formula("SrTiO3"), STATISTICS, [1, 2, 3, 4])
    assert weights == pytest.approx({1: 61 / 103, 2: 31 / 103, 3: 1 / 103, 4: 10 / 103})
    found = voted("SrTiO3", {}, [1, 2, 3, 4])
    # Of the larger cells none is common enough in the histogram.
    assert list(found) == [1, 2, 3, 4]
    ratio = found[1] / found[2], found[4] / found[2]
    assert ratio == pytest.approx((61 / 31, 10 / 31))


def voted(text: str, votes: dict[int, float], chosen: list[int], more: bool = True):
    formula = parse_formula(text)

    def evidence(composition):
        return votes.get(sum(composition.values()) // formula.unit_atoms, 0.0)

    return voted_units(formula, STATISTICS, chosen, evidence, more=more)


def test_votes_outweigh_the_histogram_and_reach_larger_cells() -> None:
    found = voted("SrTiO3", {4: 3.0, 6: 1.0, 8: 0.1, 9: 50.0}, [1, 2, 3, 4])
    # 8 has too few votes, and 9 more atoms than the weights know.
    assert list(found) == [1, 2, 3, 4, 6]
    assert found[4] == pytest.approx(3 * found[6], rel=0.01)
    assert found[4] > 0.7
    assert spread(20, found)[3] >= 11
    # Asked for, a number of units stays whatever the votes, and no other joins.
    assert list(voted("SrTiO3", {4: 3.0, 6: 1.0}, [1, 2], more=False)) == [1, 2]
    assert voted("SrTiO3", {}, [6], more=False) == {6: 1.0}


def test_a_formula_of_many_atoms_gets_its_larger_cells() -> None:
    # 13 atoms a unit: 1 alone has at most 20.
    assert units("Ca3(PO4)2") == [1]
    assert list(voted("Ca3(PO4)2", {2: 0.5, 3: 2.0}, [1])) == [1, 2, 3]
