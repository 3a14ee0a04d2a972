"""Structures with a known group go through spglib, other bases and CIF, and come back to it."""

from __future__ import annotations

import io
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalctl.symmetry.groups import group, operations
from crystalctl.symmetry.standard import Standard, standardise
from crystalctl.symmetry.tables import N_GROUPS, tables
from crystalctl.symmetry.wyckoff import positions

SODIUM, CHLORINE = 11, 17
TIGHT = (1e-4,)
"""Å; a wider tolerance finds accidental symmetry in some of 1731 random structures."""


def random_structure(rows, species, rng):
    """Lattice (3, 3), frac (A, 3), Z (A,) of anchors at random, no two atoms within 0.3 Å."""
    table = tables()
    count = table.multiplicity[rows]
    numbers = np.repeat(species, count)
    lattice = random_lattice(int(table.group[rows[0]]), rng, 12.0 * len(numbers))
    while True:
        parts = []
        for row in rows:
            mine = slice(int(table.first_operation[row]), int(table.first_operation[row + 1]))
            parts.append(table.rotation[mine] @ rng.random(3) + table.translation[mine])
        frac = np.concatenate(parts) % 1.0
        apart = frac[:, None] - frac[None]
        distance = np.linalg.norm((apart - np.round(apart)) @ lattice, axis=-1)
        np.fill_diagonal(distance, np.inf)
        if distance.min() > 0.3:
            return lattice, frac, numbers


def random_lattice(number, rng, volume):
    """Built from edges and angles, not from the coefficients k, so that each checks the other."""
    a, b, c = rng.uniform(0.8, 1.25, 3)
    alpha, beta, gamma = rng.uniform(75, 105, 3)
    family = group(number).family
    if family != "triclinic":
        alpha = gamma = 90.0
    if family not in ("triclinic", "monoclinic"):
        beta = 90.0
    if family in ("tetragonal", "hexagonal", "cubic"):
        b = a
    if family == "hexagonal":
        gamma = 120.0
    if family == "cubic":
        c = a
    ca, cb, cg = (math.cos(math.radians(x)) for x in (alpha, beta, gamma))
    gram = np.array([[a * a, a * b * cg, a * c * cb], [0, b * b, b * c * ca], [0, 0, c * c]])
    lattice = np.linalg.cholesky(np.triu(gram, 1).T + np.triu(gram))
    return lattice * (volume / np.linalg.det(lattice)) ** (1 / 3)


def occupied(found: Standard):
    """Species, multiplicity and freedom of each orbit, sorted."""
    table = tables()
    rows = found.positions
    columns = (found.species, table.multiplicity[rows], table.freedom[rows])
    return sorted(zip(*(c.tolist() for c in columns), strict=True))


def test_every_position_is_found_again_by_spglib():
    """All 1731: a general orbit of one species, and the position occupied by another."""
    table = tables()
    rng = np.random.default_rng(5)
    for row in range(len(table.group)):
        number = int(table.group[row])
        general = int(table.first_position[number]) - 1
        structure = random_structure([general, row], [SODIUM, CHLORINE], rng)
        found = standardise(*structure, TIGHT)
        assert found.number == number, (number, row)
        expected = [
            (z, int(table.multiplicity[r]), int(table.freedom[r]))
            for z, r in ((SODIUM, general), (CHLORINE, row))
        ]
        assert occupied(found) == expected
        assert found.placed_error < 1e-6
        assert found.moved < 1e-6


@given(number=st.integers(1, N_GROUPS), seed=st.integers(0, 2**31 - 1))
def test_another_basis_and_origin_change_nothing(number, seed):
    """A primitive or skewed cell, turned in space, with any origin, is the same crystal."""
    rng = np.random.default_rng(seed)
    there = positions(number)
    rows = [there[-1].row, there[rng.integers(len(there))].row]
    lattice, frac, numbers = random_structure(rows, [SODIUM, CHLORINE], rng)
    basis = np.eye(3, dtype=int)
    for _ in range(3):
        i, j = rng.permutation(3)[:2]
        basis[i] += rng.integers(-1, 2) * basis[j]
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    moved = (frac + rng.random(3)) @ np.linalg.inv(basis)
    shuffled = rng.permutation(len(numbers))
    given_cell = (basis @ lattice @ turn, moved[shuffled], numbers[shuffled])
    found = standardise(*given_cell, TIGHT)
    assert found.number == number
    assert occupied(found) == occupied(standardise(lattice, frac, numbers, TIGHT))
    assert found.moved < 1e-5


def test_anchors_lie_on_the_first_operation():
    rng = np.random.default_rng(3)
    table = tables()
    for number in range(1, N_GROUPS + 1, 3):
        rows = [p.row for p in positions(number) if p.freedom][-3:]
        rows = rows or [positions(number)[-1].row]
        structure = random_structure(rows, [SODIUM, CHLORINE, SODIUM][: len(rows)], rng)
        found = standardise(*structure, TIGHT)
        leading = table.first_operation[found.positions]
        again = np.einsum("oij,oj->oi", table.rotation[leading], found.anchors)
        again += table.translation[leading] - found.anchors
        assert np.abs(again - np.round(again)).max() < 1e-12


# Groups of at most 48 operations: a few hundred atoms would take PyXtal and the CIF parser seconds.
SMALL = [n for n in range(1, N_GROUPS + 1) if len(operations(n)[0]) <= 48]


@settings(max_examples=12)
@given(number=st.sampled_from(SMALL), seed=st.integers(0, 2**31 - 1))
def test_random_structures_of_pyxtal_through_cif(number, seed):
    """PyXtal's random crystal, written as CIF and read by pymatgen, has the group it was made for.

    Two general orbits of different species leave no room for a supergroup.
    """
    from pymatgen.io.cif import CifParser
    from pyxtal import pyxtal

    general = len(operations(number)[0])
    crystal = pyxtal()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        crystal.from_random(
            3,
            number,
            ["Na", "Cl"],
            [general, general],
            factor=3.0,
            sites=[[positions(number)[-1].label], [positions(number)[-1].label]],
            random_state=seed,
        )
        assert crystal.valid
        structure = CifParser(io.StringIO(crystal.to_file())).parse_structures(primitive=False)[0]
    numbers = np.array([site.specie.Z for site in structure])
    found = standardise(structure.lattice.matrix, structure.frac_coords, numbers, (0.01,))
    assert found.number == number
    assert found.moved < 0.02
    assert len(found.positions) == 2


def test_a_supergroup_is_reported_as_such():
    """Rock salt described in P1 is Fm-3m."""
    rng = np.random.default_rng(0)
    lattice, frac, numbers = random_structure(
        [positions(225)[0].row, positions(225)[1].row], [11, 17], rng
    )
    found = standardise(lattice, frac, numbers)
    assert found.number == 225
    assert found.symprec == pytest.approx(0.1)
