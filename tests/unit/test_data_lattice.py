"""Lattice conventions and conversions against pymatgen and ASE."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from crystalctl.crystal import convert, lattice, periodic
from crystalctl.errors import DataError

CELLS = [
    (3.0, 4.0, 5.0, 90.0, 90.0, 90.0),
    (3.1, 3.1, 3.1, 60.0, 60.0, 60.0),
    (4.2, 4.2, 6.9, 90.0, 90.0, 120.0),
    (3.3, 5.4, 7.2, 81.0, 97.0, 109.0),
]


def test_matrix_is_pymatgens_in_rows_and_orientation() -> None:
    ours = lattice.from_parameters(torch.tensor(CELLS, dtype=torch.float64))
    for matrix, cell in zip(ours, CELLS, strict=True):
        np.testing.assert_allclose(matrix, Lattice.from_parameters(*cell).matrix, atol=1e-12)


@settings(deadline=None, max_examples=50)
@given(
    st.tuples(*[st.floats(1.0, 30.0)] * 3),
    st.tuples(*[st.floats(50.0, 120.0)] * 2),
    st.floats(0.1, 0.9),
)
def test_round_trip(lengths: tuple, angles: tuple, place: float) -> None:
    alpha, beta = angles
    # gamma must lie between |alpha - beta| and the smaller of their sum and its complement.
    low, high = abs(alpha - beta), min(alpha + beta, 360.0 - alpha - beta)
    cell = torch.tensor([*lengths, alpha, beta, low + place * (high - low)], dtype=torch.float64)
    matrix = lattice.from_parameters(cell)
    torch.testing.assert_close(lattice.to_parameters(matrix), cell, rtol=1e-8, atol=1e-6)
    assert torch.linalg.det(matrix) > 0
    assert lattice.volume(matrix).item() == pytest.approx(
        Lattice.from_parameters(*cell.tolist()).volume, rel=1e-9
    )


def test_orientation_is_undone() -> None:
    matrix = lattice.from_parameters(torch.tensor(CELLS, dtype=torch.float64))
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)).double())
    rotation = turn.Q * torch.linalg.det(turn.Q).sign()
    torch.testing.assert_close(lattice.standard_orientation(matrix @ rotation), matrix)


def test_wrap_never_gives_one() -> None:
    wrapped = periodic.wrap(torch.tensor([-1e-9, 1.0, -0.25, 2.5]))
    assert wrapped.tolist() == [0.0, 0.0, 0.75, 0.5]


def test_pymatgen_and_ase_round_trip() -> None:
    first = Structure(
        Lattice.from_parameters(*CELLS[3]), ["Sr", "Ti"], [[0, 0, 0], [0.5, 0.4, 0.3]]
    )
    second = Structure(Lattice.cubic(3.0), ["Po"], [[1.25, -0.25, 0.999999999]])
    crystals = convert.from_structures([first, second])
    assert crystals.layout.counts == [2, 1]
    assert crystals.species.tolist() == [38, 22, 84]
    torch.testing.assert_close(crystals.frac[2], torch.tensor([0.25, 0.75, 0.0]))
    back = convert.to_structures(crystals)
    assert [s.formula for s in back] == ["Sr1 Ti1", "Po1"]
    assert back[0].get_distance(0, 1) == pytest.approx(first.get_distance(0, 1), abs=1e-5)
    again = convert.from_atoms(convert.to_atoms(crystals))
    torch.testing.assert_close(again.lattice, crystals.lattice)
    torch.testing.assert_close(again.frac, crystals.frac)
    assert again.species.tolist() == crystals.species.tolist()


def test_what_cannot_be_converted_is_refused() -> None:
    mixed = Structure(Lattice.cubic(3.0), [{"Fe": 0.5, "Ni": 0.5}], [[0, 0, 0]])
    with pytest.raises(DataError, match="partially occupied"):
        convert.from_structures([mixed])
    with pytest.raises(DataError, match="not periodic"):
        convert.from_atoms([Atoms("H2O", positions=np.eye(3))])
    with pytest.raises(DataError, match="atomic numbers"):
        convert.from_atoms([Atoms("X", cell=[3, 3, 3], pbc=True)])
