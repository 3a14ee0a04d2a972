"""A CIF with its symmetry, read by other programs: all 230 groups."""

from __future__ import annotations

import io
import random
import re
import warnings

import ase.io
import numpy as np
import pytest
import spglib
import torch
from pymatgen.core.operations import SymmOp
from pymatgen.io.cif import CifParser

from crystalctl.analysis.validity import lengths_angles
from crystalctl.diffusion.lattice_coords import from_family6
from crystalctl.io.cif import orbit_cif
from crystalctl.symmetry.build import as_set, database_operations
from crystalctl.symmetry.tables import tables
from crystalctl.symmetry.wyckoff import orbits_of
from crystalctl.templating import draw_positions


def structure_of(number: int, seed: int):
    """Random orbits of a group: cell (6,), rows, anchors, species, and all atoms."""
    draw = random.Random(seed)
    rows = draw_positions(number, [2, 3, 4, 6, 8, 12, 16, 24, 48], draw)[:4]
    free = torch.tensor(tables().lattice_free)[number - 1]
    fixed = torch.tensor(tables().lattice_fixed)[number - 1]
    k = torch.where(free, torch.tensor([draw.gauss(0, 0.15) for _ in range(6)]), fixed)
    k[5] += 4.2
    lattice = from_family6(k[None])[0].numpy()
    orbits = orbits_of(torch.tensor(rows), torch.tensor([len(rows)]))
    while True:
        anchors = torch.tensor([[draw.random() for _ in range(3)] for _ in rows]).double()
        frac = orbits.place(anchors)
        if spacing(frac.numpy(), lattice) > 0.1:  # readers merge atoms nearer than they believe
            break
    species = [11 + i for i in range(len(rows))]
    every = orbits.spread(torch.tensor(species)).numpy()
    return lattice, rows, frac[orbits.anchor].numpy(), species, (frac.numpy(), every)


def spacing(frac, lattice) -> float:
    apart = frac[:, None] - frac[None]
    length = np.linalg.norm((apart - np.round(apart)) @ lattice, axis=2)
    return float((length + 9 * np.eye(len(frac))).min())


def same_atoms(frac, numbers, other, other_numbers) -> bool:
    """Each atom has one of its element at its place, within 1e-6 of the cell."""
    apart = frac[:, None] - np.asarray(other)[None]
    near = np.abs(apart - np.round(apart)).max(2) < 1e-6
    near &= numbers[:, None] == np.asarray(other_numbers)[None]
    return near.shape[0] == near.shape[1] and bool((near.sum(0) == 1).all())


@pytest.mark.parametrize("number", range(1, 231))
def test_other_programs_read_the_same_structure(number):
    lattice, rows, anchors, species, (frac, every) = structure_of(number, number)
    cell = lengths_angles(lattice)
    text = orbit_cif(number, cell, rows, anchors=anchors, species=species, name="x")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (read,) = CifParser(io.StringIO(text)).parse_structures(primitive=False)
        atoms = ase.io.read(io.StringIO(text), format="cif")
    assert same_atoms(frac, every, read.frac_coords, [s.specie.Z for s in read])
    assert same_atoms(frac, every, atoms.get_scaled_positions(), atoms.numbers)
    assert np.allclose(read.lattice.parameters, cell, atol=1e-6)
    assert np.allclose(atoms.cell.cellpar(), cell, atol=1e-6)


@pytest.fixture(scope="module")
def by_hall_symbol():
    """spglib's 530 settings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        types = {hall: spglib.get_spacegroup_type(hall) for hall in range(1, 531)}
    return {kind.hall_symbol: (hall, kind) for hall, kind in types.items()}


@pytest.mark.parametrize("number", range(1, 231))
def test_the_symbols_are_those_of_the_operations(number, by_hall_symbol):
    text = orbit_cif(number, [1] * 6, [], anchors=np.zeros((0, 3)), species=[], name="x")
    (symbol,) = re.findall(r"_space_group_name_H-M_alt '(.*)'", text)
    hall, kind = by_hall_symbol[re.findall(r"_space_group_name_Hall '(.*)'", text)[0]]
    assert kind.number == number
    assert symbol.split() == kind.international.replace("_", "").split("= ")[-1].split()
    assert len(symbol.split()) > 1
    listed = re.findall(r"^\d+ '(.*)'$", text, re.MULTILINE)
    rotations, shifts = zip(*(xyz(line) for line in listed), strict=True)
    steps = np.round(np.array(shifts) * 24).astype(int) % 24
    assert as_set((np.array(rotations), steps)) == as_set(database_operations(hall))


def xyz(text: str):
    read = SymmOp.from_xyz_str(text)
    return np.round(read.rotation_matrix).astype(int), read.translation_vector
