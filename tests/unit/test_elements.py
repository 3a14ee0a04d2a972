"""Formulas as people write them, and refusals that say what to write instead."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalctl.crystal.elements import (
    ATOMIC_NUMBER,
    SYMBOLS,
    name_of,
    parse_elements,
    parse_formula,
    recase,
    reduced_key,
    symbol_of,
)
from crystalctl.errors import InputError

READ = {
    "SrTiO3": {"Sr": 1, "Ti": 1, "O": 3},
    "Ca3(PO4)2": {"Ca": 3, "P": 2, "O": 8},
    "K4[Fe(CN)6]·3H2O": {"K": 4, "Fe": 1, "C": 6, "N": 6, "H": 6, "O": 3},
    "MgSiO3·H2O": {"Mg": 1, "Si": 1, "O": 4, "H": 2},
    "CuSO4*5H2O": {"Cu": 1, "S": 1, "O": 9, "H": 10},
    "CaSO4.2H2O": {"Ca": 1, "S": 1, "O": 6, "H": 4},
    "Na2CO3.H2O": {"Na": 2, "C": 1, "O": 4, "H": 2},
    "Sr₂ Ti₂ O₆": {"Sr": 2, "Ti": 2, "O": 6},
    "2{NaCl}3": {"Na": 6, "Cl": 6},
    "CH3CH3": {"C": 2, "H": 6},
    "CO": {"C": 1, "O": 1},
    "Na1.0Cl1.00": {"Na": 1, "Cl": 1},
    "Co": {"Co": 1},
}


@pytest.mark.parametrize("text", READ)
def test_read(text: str) -> None:
    counts = parse_formula(text).counts
    assert {symbol_of(z): n for z, n in counts.items()} == READ[text]
    assert [symbol_of(z) for z in counts] == list(READ[text])


REFUSED = {
    "": "empty",
    "   ": "empty",
    "Fe0.5Ni0.5": "disordered structures are not supported",
    "Fe.5Ni": "disordered structures are not supported",
    "CaSO4·0.5H2O": "disordered structures are not supported",
    "NaCl1.": "disordered structures are not supported",
    "La1.85Sr0.15CuO4": "disordered structures are not supported",
    "O0": "amount 0",
    "Si123456789012": "amount 123456789012",
    "XxO2": "unknown element 'Xx'",
    "srtio3": "unknown element 's'",
    "D2O": "unknown element 'D'",
    "Fe3+": "charge",
    "SO4^2-": "charge",
    "Fe³⁺": "charge",
    "YBa2Cu3O7-x": "charge",
    "()": "empty brackets",
    "Ca(OH": "lacks a closing",
    "Ca)OH": "nothing opened",
    "Ca(OH]": "nothing opened",
    "NaCl·": "a dot with nothing",
    "12": "names no element",
    "Na,Cl": "unexpected ','",
}


@pytest.mark.parametrize("text", REFUSED)
def test_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_formula(text)
    assert REFUSED[text] in caught.value.what
    assert caught.value.hint


def test_hints() -> None:
    with pytest.raises(InputError) as caught:
        parse_formula("Fe0.5Ni0.5")
    assert "FeNi" in caught.value.hint
    assert recase("srtio3") == "SrTiO3"
    assert recase("NACL") == "NaCl"
    assert recase("ca3(po4)2") == "Ca3(Po4)2"
    assert recase("xq") is None


def test_reduced() -> None:
    formula = parse_formula("Sr2Ti2O6")
    assert (formula.factor, formula.reduced, formula.unit_atoms) == (2, "SrTiO3", 5)
    assert reduced_key(formula.counts) == reduced_key(parse_formula("O3TiSr").counts)


def test_table() -> None:
    assert (len(SYMBOLS), SYMBOLS[0], SYMBOLS[25], SYMBOLS[117]) == (118, "H", "Fe", "Og")
    assert len(ATOMIC_NUMBER) == 118
    from ase.data import atomic_numbers

    assert all(atomic_numbers[symbol] == z for symbol, z in ATOMIC_NUMBER.items())
    with pytest.raises(InputError, match="119"):
        symbol_of(119)


def test_element_lists() -> None:
    assert parse_elements("Sr, Ti O") == {38, 22, 8}
    assert parse_elements("Sr-Ti") == parse_elements(["Sr", "Ti"])
    with pytest.raises(InputError, match="unknown element 'fe'") as caught:
        parse_elements("fe")
    assert caught.value.hint == "did you mean Fe?"
    with pytest.raises(InputError, match="empty"):
        parse_elements(" , ")


amounts = st.dictionaries(st.integers(1, 118), st.integers(1, 30), min_size=1, max_size=6)


@given(amounts)
def test_round_trip(counts: dict[int, int]) -> None:
    assert dict(parse_formula(name_of(counts)).counts) == counts


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(InputError):
        assert parse_formula(text).counts


def test_a_formula_of_thousands_of_brackets_is_refused() -> None:
    with pytest.raises(InputError, match="has 3000 characters"):
        parse_formula("(" * 3000)
