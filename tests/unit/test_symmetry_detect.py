"""Known crystals to their group, standard cell and orbits; failures counted with a reason."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crystalctl.crystal.batch import Crystals, Layout
from crystalctl.crystal.lattice import from_parameters, to_parameters
from crystalctl.symmetry import detect as module
from crystalctl.symmetry.detect import detect
from crystalctl.symmetry.standard import NoSymmetry, standardise
from crystalctl.symmetry.wyckoff import position

A = 4.0
HALF = A / 2
FCC = [[0, HALF, HALF], [HALF, 0, HALF], [HALF, HALF, 0]]
HEXAGONAL = from_parameters(
    torch.tensor([3.2, 3.2, 5.2, 90, 90, 120.0], dtype=torch.float64)
).numpy()
THIRD = [1 / 3, 2 / 3, 0.0]
KNOWN = {
    "rock salt": (FCC, [[0, 0, 0], [0.5, 0.5, 0.5]], [11, 17], 225, "4a4b"),
    "diamond": (FCC, [[0.3, 0.3, 0.3], [0.55, 0.55, 0.55]], [6, 6], 227, "8a"),
    "zinc blende": (FCC, [[0, 0, 0], [0.25, 0.25, 0.25]], [30, 16], 216, None),
    "fluorite": (FCC, [[0, 0, 0], [0.25] * 3, [0.75] * 3], [20, 9, 9], 225, "4a8c"),
    "perovskite": (
        np.eye(3) * 3.9,
        [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]],
        [38, 22, 8, 8, 8],
        221,
        None,
    ),
    "wurtzite": (
        HEXAGONAL,
        [THIRD, [2 / 3, 1 / 3, 0.5], [1 / 3, 2 / 3, 0.38], [2 / 3, 1 / 3, 0.88]],
        [30, 30, 8, 8],
        186,
        "2b2b",
    ),
    "hcp": (HEXAGONAL, [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]], [12, 12], 194, None),
}


def batch(*cells, dtype=torch.float64):
    lattice = torch.stack([torch.as_tensor(np.array(c[0]), dtype=dtype) for c in cells])
    frac = torch.cat([torch.tensor(c[1], dtype=dtype) for c in cells])
    species = torch.tensor([z for c in cells for z in c[2]])
    return Crystals(Layout(torch.tensor([len(c[2]) for c in cells])), lattice, frac, species)


@pytest.mark.parametrize("name", KNOWN)
def test_known_crystals(name):
    cell = KNOWN[name]
    found = detect(batch(cell))
    assert found.failures == []
    assert found.space_group.tolist() == [cell[3]]
    orbits = found.orbits
    labels = "".join(position(row).label for row in orbits.position.tolist())
    if cell[4]:
        assert labels == cell[4]
    crystals = found.crystals
    density = torch.linalg.det(torch.tensor(np.array(cell[0]))).abs() / len(cell[2])
    per_atom = torch.linalg.det(crystals.lattice).abs() / crystals.layout.total_atoms
    assert torch.allclose(per_atom[0], density, rtol=1e-6)
    counts = np.bincount(crystals.species.numpy()) / crystals.layout.total_atoms
    assert np.allclose(counts, np.bincount(cell[2]) / len(cell[2]))
    placed = orbits.place(orbits.at_anchors(crystals.frac))
    assert torch.equal(placed, crystals.frac)


def test_the_symmetric_cell_is_the_input_for_pymatgen():
    """An independent judge: StructureMatcher, with tight tolerances."""
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Structure

    matcher = StructureMatcher(ltol=1e-3, stol=1e-3, angle_tol=0.01, scale=False)
    for lattice, frac, species, *_ in KNOWN.values():
        before = Structure(np.array(lattice), species, frac)
        c = detect(batch((lattice, frac, species))).crystals
        after = Structure(c.lattice[0].numpy(), c.species.tolist(), c.frac.numpy())
        assert matcher.fit(before, after)


def test_diamond_stands_at_the_second_origin():
    found = detect(batch(KNOWN["diamond"]))
    eighths = (found.crystals.frac * 8).round().long() % 8
    assert {tuple(x) for x in eighths.tolist()} >= {(1, 1, 1), (7, 7, 7)}
    assert torch.allclose(found.crystals.lattice[0], A * torch.eye(3).double(), atol=1e-9)


def test_hexagonal_axes_for_a_rhombohedral_cell():
    """Bismuth: two atoms in the primitive cell, six in the standard one."""
    lattice = from_parameters(
        torch.tensor([4.7, 4.7, 4.7, 57.0, 57.0, 57.0], dtype=torch.float64)
    ).numpy()
    found = detect(batch((lattice, [[0.23] * 3, [0.77] * 3], [83, 83])))
    assert found.space_group.tolist() == [166]
    assert found.crystals.layout.counts == [6]
    parameters = to_parameters(found.crystals.lattice[0])
    assert torch.allclose(parameters[3:], torch.tensor([90.0, 90, 120]).double())
    assert parameters[0] == pytest.approx(float(parameters[1]), abs=1e-9)


def test_small_noise_is_removed_and_reported():
    rng = np.random.default_rng(0)
    lattice, frac, species = KNOWN["perovskite"][:3]
    noisy = np.array(frac) + 0.01 * rng.normal(size=(5, 3)) / 3.9
    found = detect(batch((lattice, noisy.tolist(), species)))
    assert found.space_group.tolist() == [221]
    assert 1e-3 < float(found.moved) < 0.1
    assert found.orbits.total_orbits == 3
    # A ladder that starts at a finer tolerance sees the noise.
    fine = detect(batch((lattice, noisy.tolist(), species)), ladder=(1e-3,))
    assert fine.space_group.tolist() == [1]
    assert fine.orbits.total_orbits == 5


def test_orbits_are_sorted_by_letter_then_element():
    cell = (np.eye(3) * 5, [[0.5, 0.5, 0.5], [0, 0, 0.0], [0.5, 0.5, 0]], [8, 30, 8])
    found = detect(batch((np.diag([5.0, 6.0, 7.0]), *cell[1:])))
    assert found.space_group.tolist() == [47]
    rows = found.orbits.position.tolist()
    assert rows == sorted(rows)
    assert found.orbits.at_anchors(found.crystals.species).tolist().count(8) == 2


def test_failures_are_counted_and_the_others_kept_in_order():
    flat = (np.diag([4.0, 4.0, 0.0]), [[0, 0, 0.0]], [11])
    twice = (np.eye(3) * 4, [[0, 0, 0.0], [0, 0, 1e-4]], [11, 11])
    good = KNOWN["rock salt"][:3]
    found = detect(batch(flat, good, twice, good))
    assert [row for row, _ in found.failures] == [0, 2]
    assert found.source.tolist() == [1, 3]
    assert found.reasons == {"spglib finds no group": 2}
    assert found.crystals.layout.counts == [8, 8]
    only_bad = detect(batch(flat))
    assert len(only_bad.crystals) == 0
    assert only_bad.orbits.total_atoms == 0
    with pytest.raises(NoSymmetry, match="no group"):
        standardise(flat[0], np.array(flat[1]), np.array(flat[2]))


def test_a_standard_cell_that_is_not_the_input_is_refused():
    """Each check behind the ladder sees what it is there for."""
    from crystalctl.symmetry import standard

    cell = np.eye(3) * 4
    one = (np.array([[0.0, 0, 0]]), np.array([11]))
    with pytest.raises(NoSymmetry, match="not the input"):
        standard._check_same(one, (np.array([[0.1, 0, 0]]), one[1]), cell, np.eye(3), 0.1)
    with pytest.raises(NoSymmetry, match="not the input"):
        standard._check_same(one, (one[0], np.array([17])), cell, np.eye(3), 0.1)
    with pytest.raises(NoSymmetry, match="deformed"):
        standard._check_strain(cell, np.diag([4.0, 4.0, 4.4]), np.eye(3))
    with pytest.raises(NoSymmetry, match="mirror"):
        standard._check_strain(cell, np.diag([4.0, 4.0, -4.0]), np.eye(3))
    owner, members = np.array([0]), [np.array([0])]
    with pytest.raises(NoSymmetry, match="placed"):
        standard._check_placed(one[0], owner, cell, one[0] + 1e-3, members)


def test_worker_processes_give_the_same(monkeypatch):
    cells = [c[:3] for c in KNOWN.values()]
    steps = []
    one = detect(batch(*cells, dtype=torch.float32), jobs=1)
    monkeypatch.setattr(module, "SERIAL_BELOW", 1)
    monkeypatch.setattr(module, "CHUNK", 3)
    two = detect(
        batch(*cells, dtype=torch.float32), jobs=2, progress=lambda *done: steps.append(done)
    )
    assert steps == [(3, 7), (6, 7), (7, 7)]
    assert torch.equal(one.crystals.frac, two.crystals.frac)
    assert torch.equal(one.crystals.lattice, two.crystals.lattice)
    assert torch.equal(one.orbits.position, two.orbits.position)
    assert one.crystals.frac.dtype == torch.float32
