"""Structures as bare numbers, and drawn crystals made when they are asked for."""

from __future__ import annotations

import numpy as np
import torch
from prototypes import diamond, perovskite, rock_salt
from strategies import random_crystals, symmetric_crystals

from crystalctl.analysis.packed import Packed
from crystalctl.drawn import Drawn, tensors_of
from crystalctl.planning import Sample


def test_a_structure_comes_back_to_the_bit() -> None:
    for structure in (rock_salt(), perovskite(), diamond()):
        packed = Packed.of(structure)
        again = packed.structure
        assert len(packed) == len(structure)
        assert np.array_equal(again.lattice.matrix, structure.lattice.matrix)
        assert np.array_equal(again.frac_coords, structure.frac_coords)
        assert again.atomic_numbers == structure.atomic_numbers
        assert packed.cell[2] == list(structure.atomic_numbers)


def tile_of(numbers: list[int], seed: int) -> tuple[list[Sample], dict[str, torch.Tensor]]:
    sizes = tuple(1 + number % 3 for number in numbers)
    tile = [Sample(n, "any", "x", size, n) for n, size in zip(numbers, sizes, strict=True)]
    return tile, tensors_of(random_crystals(sizes, seed), tile)


def test_drawn_crystals_keep_their_orbits() -> None:
    crystals = symmetric_crystals()
    numbers = list(range(1, len(crystals) + 1))
    sizes = crystals.layout.counts
    tile = [Sample(n, "any", "x", size, n) for n, size in zip(numbers, sizes, strict=True)]
    drawn = Drawn()
    drawn.add(tensors_of(crystals, tile))
    for number, one in zip(numbers, crystals.split(), strict=True):
        again, orbits = drawn[number].layout, one.layout.orbits
        assert again.orbits is not None
        assert orbits is not None
        assert torch.equal(again.space_group, one.layout.space_group)
        for name in ("n_orbits", "multiplicity", "rotation", "translation", "pull_back"):
            assert torch.equal(getattr(again.orbits, name), getattr(orbits, name)), name
        assert torch.equal(drawn[number].frac, one.frac)


def test_drawn_crystals_are_those_added_last() -> None:
    first, second, again = tile_of([4, 2, 9], 0)[1], tile_of([1, 3], 1)[1], tile_of([2], 2)[1]
    drawn, other = Drawn(), Drawn()
    drawn.add(first)
    other.add(second)
    other.add(again)
    drawn.update(other)
    assert sorted(drawn) == [1, 2, 3, 4, 9]
    assert len(drawn) == 5
    assert torch.equal(drawn[4].frac, first["frac"][:2])
    assert torch.equal(drawn[9].frac, first["frac"][5:])
    assert torch.equal(drawn[2].lattice, again["lattice"])
    assert torch.equal(drawn[3].species, second["species"][2:])
    assert all(drawn[n].layout.counts == [1 + n % 3] for n in drawn)
