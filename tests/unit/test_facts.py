"""Validity of strange cells, symmetry of noisy ones, ranking, and files that read back."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from crystalctl.analysis.facts import sample_facts, with_symmetry
from crystalctl.analysis.symmetrise import reproduces, symmetrise
from crystalctl.analysis.validity import invalid_reason, lengths_angles, min_distance
from crystalctl.io.structures import cif_text, extxyz_text, parse_formats, read_extxyz, write_atomic

CUBE = np.eye(3) * 4.0


def salt() -> Structure:
    return Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    )


def test_reasons() -> None:
    points = np.array([[0.0, 0, 0], [0.5, 0.5, 0.5]])
    assert invalid_reason(CUBE, points) == ""
    assert invalid_reason(CUBE * np.nan, points) == "not finite"
    assert invalid_reason(CUBE, np.full((2, 3), np.inf)) == "not finite"
    assert "length below" in invalid_reason(np.diag([4.0, 0.0, 4.0]), points)
    assert "length above" in invalid_reason(np.diag([4.0, 4.0, 900.0]), points)
    assert "without volume" in invalid_reason([[4, 0, 0], [4, 1e-9, 0], [0, 0, 4]], points)
    assert "atoms closer" in invalid_reason(CUBE, [[0, 0, 0.99], [0, 0, 0.01]])
    assert "volume per atom above" in invalid_reason(np.eye(3) * 50, points)
    crowd = np.random.default_rng(0).random((30, 3))
    assert "volume per atom below" in invalid_reason(np.eye(3), crowd)
    # One atom whose image is near although all lengths are long: 4 and 4 with 3 degrees between.
    angle = np.radians(3.0)
    flat = np.array([[4, 0, 0], [4 * np.cos(angle), 4 * np.sin(angle), 0], [0, 0, 9.0]])
    assert "atoms closer" in invalid_reason(flat, [[0, 0, 0]])


def test_the_limit_itself() -> None:
    for gap, valid in ((0.499, False), (0.501, True)):
        reason = invalid_reason(CUBE, [[0, 0, 0], [0, 0, gap / 4]])
        assert (reason == "") is valid


def brute_force(cell: np.ndarray, points: np.ndarray, reach: int) -> float:
    best = np.inf
    shifts = np.array(list(itertools.product(range(-reach, reach + 1), repeat=3)), dtype=float)
    for i, j in itertools.combinations_with_replacement(range(len(points)), 2):
        vectors = (points[i] - points[j] + shifts) @ cell
        lengths = np.linalg.norm(vectors, axis=1)
        best = min(best, lengths[lengths > 1e-9].min() if i == j else lengths.min())
    return float(best)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_min_distance_is_exact_in_skewed_cells(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    cell = rng.normal(size=(3, 3)) * 3 + np.eye(3) * 3
    # In a flatter cell the shortest vector may lie beyond the brute force's reach.
    if abs(np.linalg.det(cell)) < 0.2 * np.linalg.norm(cell, axis=1).prod():
        cell = np.eye(3) * 3.0
    skew = np.eye(3)
    skew[0, 1], skew[2, 0] = rng.integers(-3, 4, 2)
    points = rng.random((n, 3))
    # The skewed basis describes the same lattice: points change, distances do not.
    skewed, changed = skew @ cell, points @ np.linalg.inv(skew)
    expected = brute_force(cell, points, 6)
    assert min_distance(cell, points) == pytest.approx(expected, abs=1e-9)
    assert min_distance(skewed, changed) == pytest.approx(expected, abs=1e-9)


def test_lengths_angles() -> None:
    lattice = Lattice.from_parameters(3, 4, 5, 80, 95, 110)
    assert lengths_angles(lattice.matrix) == pytest.approx((3, 4, 5, 80, 95, 110))
    assert np.isnan(lengths_angles(np.zeros((3, 3)))[3])


@pytest.mark.parametrize(("noise", "group"), [(0.0, 225), (0.02, 225), (0.5, 1)])
def test_symmetry_of_a_noisy_sample(noise: float, group: int) -> None:
    clean = salt().get_primitive_structure()
    rng = np.random.default_rng(1)
    clean.make_supercell([2, 1, 1])
    shifted = clean.cart_coords + rng.normal(size=(4, 3)) * noise
    noisy = Structure(clean.lattice, clean.species, shifted, coords_are_cartesian=True)
    found = symmetrise(noisy)
    assert found.number == group
    if group == 1:
        assert found.symprec is None
        assert found.structure == noisy
    else:
        assert len(found.structure) == 8
        assert reproduces(noisy, found.structure, within_ang=0.2)


def test_symmetrised_cell_must_reproduce_the_sample() -> None:
    swollen = salt()
    swollen.scale_lattice(swollen.volume * 1.3)
    assert not reproduces(salt(), swollen, within_ang=0.2)
    assert not reproduces(salt(), salt(), within_ang=-1.0)


def test_facts() -> None:
    cell = salt()
    facts = with_symmetry(
        sample_facts(cell.lattice.matrix, cell.frac_coords, [s.specie.Z for s in cell])
    )
    assert facts.valid
    assert facts.formula == "NaCl"
    assert facts.symmetric is not None
    assert facts.symmetric.symbol == "Fm-3m"
    assert facts.symmetric.structure.density == pytest.approx(2.16, abs=0.02)
    assert sample_facts(CUBE * 0, [[0, 0, 0]], [11]).reason


@pytest.mark.parametrize("group", ["P-1", "C2/m", "Pnma", "I4/mmm", "R-3m", "P6_3/mmc", "Fd-3m"])
def test_cif_reads_back(group: str) -> None:
    rng = np.random.default_rng(7)
    length = {"R": "hexagonal", "P6": "hexagonal", "F": "cubic", "I": "tetragonal"}
    family = next((f for key, f in length.items() if group.startswith(key)), "")
    lattice = {
        "hexagonal": Lattice.hexagonal(6, 10),
        "cubic": Lattice.cubic(9),
        "tetragonal": Lattice.tetragonal(6, 9),
    }.get(family) or Lattice.from_parameters(7, 8, 9, 90, 100 if group == "C2/m" else 90, 90)
    spots = [[0, 0, 0], [0.5, 0.5, 0.5] if family == "cubic" else rng.random(3)]
    cell = Structure.from_spacegroup(group, lattice, ["Si", "O"], spots)
    found = symmetrise(cell, ladder=(0.01,))
    text = cif_text(found.structure, found.number)
    assert f"_symmetry_Int_Tables_number   {found.number}\n" in text
    back = Structure.from_str(text, fmt="cif")
    assert len(back) == len(found.structure)
    assert back.matches(cell, scale=False)


@pytest.mark.parametrize("symbols", [["Cl"], ["O", "O", "O"], ["Na"], ["Na", "Cl"]])
def test_formula_units_of_a_cif_are_whole_or_not_told(symbols: list[str]) -> None:
    spots = [[k / 4, k / 4, k / 4] for k in range(len(symbols))]
    text = cif_text(Structure(Lattice.cubic(5), symbols, spots))
    told = [line.split()[1] for line in text.splitlines() if "units_Z" in line]
    assert told == ([] if symbols[0] in {"Cl", "O"} else ["1"])
    assert len(Structure.from_str(text, fmt="cif")) == len(symbols)


def test_impossible_cells_survive_extxyz(tmp_path: Path) -> None:
    info = {"sample": 1, "valid": False, "reason": "not finite", "formula": "C", "rank": 0}
    write_atomic(tmp_path / "x.extxyz", extxyz_text([(CUBE * np.nan, [[0, 0, 0]], [6], info)]))
    [(atoms, back)] = read_extxyz(tmp_path / "x.extxyz")
    assert len(atoms) == 1
    assert (back["valid"], back["reason"]) == (False, "not finite")
    assert extxyz_text([]) == ""


def test_formats() -> None:
    assert parse_formats("CIF, poscar,cif") == ["cif", "poscar"]
    for text in ("", "pdf", "cif,pdf"):
        with pytest.raises(Exception, match="--format"):
            parse_formats(text)
