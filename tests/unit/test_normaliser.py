"""Equivalent descriptions of one template, against PyXtal's tables and by real transformations."""

from __future__ import annotations

import numpy as np
import pytest
from pyxtal.symmetry import Group

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
