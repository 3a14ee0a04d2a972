"""Equivalent descriptions of one template, against PyXtal's tables and by real transformations."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from pymatgen.core import Element, Lattice, Structure
from pyxtal.symmetry import Group

from crystalctl.crystal.batch import Crystals, Layout
from crystalctl.data.standard import Standard
from crystalctl.retrieval import Memory
from crystalctl.symmetry.detect import detect
from crystalctl.symmetry.normaliser import (
    canonical_orbits,
    equivalent_orbits,
    relabellings,
)
from crystalctl.symmetry.tables import LETTERS, tables
from crystalctl.symmetry.wyckoff import position_row


@pytest.mark.parametrize("number", range(1, 231))
def test_relabellings_are_a_group_that_holds_pyxtals_wyckoff_sets(number: int) -> None:
    table = tables()
    first = int(table.first_position[number - 1])
    found = relabellings(number) - first
    known = {tuple(row) for row in found.tolist()}
    assert tuple(range(found.shape[1])) in known
    for a in found[:12]:
        assert tuple(np.argsort(a).tolist()) in known
        for b in found[-12:]:
            assert tuple(a[b].tolist()) in known
    sizes = table.multiplicity[first : first + found.shape[1]]
    assert (sizes[found] == sizes).all()
    for text in Group(number).get_alternatives()["Transformed WP"]:
        letters = [LETTERS.index(letter) for letter in text.split()]
        assert tuple(letters) in known or tuple(np.argsort(letters).tolist()) in known


@pytest.mark.parametrize(
    ("number", "one", "other"),
    [
        (225, [("a", 11), ("b", 17)], [("a", 17), ("b", 11)]),
        (221, [("a", 38), ("b", 22), ("c", 8)], [("b", 38), ("a", 22), ("d", 8)]),
        (216, [("a", 30), ("c", 16)], [("b", 30), ("d", 16)]),
        (62, [("a", 38), ("c", 22)], [("b", 38), ("c", 22)]),
        (2, [("a", 3), ("i", 8)], [("h", 3), ("i", 8)]),
    ],
)
def test_another_origin_is_the_same_template(number, one, other) -> None:
    def orbits(pairs):
        return tuple(sorted((position_row(number, letter), z) for letter, z in pairs))

    assert canonical_orbits(orbits(one)) == canonical_orbits(orbits(other))
    assert orbits(other) in equivalent_orbits(orbits(one))


def test_other_coordination_is_another_template() -> None:
    def orbits(*pairs):
        return [(position_row(225, letter), z) for letter, z in pairs]

    assert canonical_orbits(orbits(("a", 30), ("b", 16))) != canonical_orbits(
        orbits(("a", 30), ("c", 16))
    )


def of_group(symbol, cell, **sites):
    """A structure from one point for each element."""
    return Structure.from_spacegroup(symbol, cell, list(sites), list(sites.values()))


HALVES = [np.array(half) / 2 for half in np.ndindex(2, 2, 2)]
SETTINGS = {
    "rock salt": (of_group("Fm-3m", Lattice.cubic(5.6), Na=[0, 0, 0], Cl=[0.5] * 3), HALVES),
    "zinc blende": (
        of_group("F-43m", Lattice.cubic(5.4), Zn=[0, 0, 0], S=[0.25] * 3),
        [[0, 0, 0], [0.25] * 3, [0.5] * 3, [0.75] * 3],
    ),
    "rutile": (
        of_group("P4_2/mnm", Lattice.tetragonal(4.6, 3.0), Ti=[0, 0, 0], O=[0.305, 0.305, 0]),
        HALVES,
    ),
    "perovskite": (
        of_group("Pm-3m", Lattice.cubic(3.9), Sr=[0, 0, 0], Ti=[0.5] * 3, O=[0.5, 0.5, 0]),
        [[0, 0, 0], [0.5] * 3, [0.1, 0.2, 0.3]],
    ),
    "wurtzite": (
        of_group(
            "P6_3mc", Lattice.hexagonal(3.2, 5.2), Zn=[1 / 3, 2 / 3, 0], O=[1 / 3, 2 / 3, 0.4]
        ),
        [[0, 0, 0], [0, 0, 0.1], [1 / 3, 1 / 3, 0.2]],
    ),
    "spinel": (
        of_group("Fd-3m", Lattice.cubic(8.1), Mg=[0, 0, 0], Al=[0.625] * 3, O=[0.3875] * 3),
        [[0, 0, 0], [0.125] * 3, [0.5] * 3, [0.625] * 3],
    ),
    # Two of the eight inversion centres of P-1 are occupied.
    "P-1": (
        of_group(
            "P-1",
            Lattice.from_parameters(5.1, 6.2, 7.3, 82, 95, 103),
            Na=[0, 0, 0],
            K=[0.5, 0, 0],
            O=[0.21, 0.34, 0.13],
        ),
        HALVES,
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_shifted_or_turned_crystal_is_one_template(name: str) -> None:
    """From structures, through detection, to the votes: all for one template."""
    structure, shifts = SETTINGS[name]
    turns = [np.eye(3), np.roll(np.eye(3), 1, 0), np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1]])]
    cells = [turn @ structure.lattice.matrix for turn in turns for _ in shifts]
    frac = [
        (structure.frac_coords + shift) @ np.linalg.inv(turn) % 1.0
        for turn in turns
        for shift in shifts
    ]
    crystals = Crystals(
        Layout(torch.full((len(cells),), len(structure))),
        torch.tensor(np.stack(cells)),
        torch.tensor(np.concatenate(frac)),
        torch.tensor(structure.atomic_numbers * len(cells)),
    )
    found = detect(crystals)
    assert not found.failures
    composition = structure.get_primitive_structure().composition.get_el_amt_dict()
    ((template, votes),) = Memory.of(Standard(found.crystals, found.source)).propose(
        {Element(symbol).Z: int(n) for symbol, n in composition.items()}, 10
    )
    assert template.group == int(found.space_group[0])
    assert votes == len(cells)


def test_inversion_centres_of_p_1() -> None:
    """Its normaliser acts on the eight centres as all affine maps of the cube of bits: 1344.

    So any three are like any other three, but four lie in a plane or do not.
    """
    assert len(relabellings(2)) == 1344
    rows = [position_row(2, letter) for letter in "abcdefgh"]
    kinds = [
        len({canonical_orbits((row, 11) for row in some) for some in combinations(rows, n)})
        for n in range(1, 9)
    ]
    assert kinds == [1, 1, 1, 2, 1, 1, 1, 1]
