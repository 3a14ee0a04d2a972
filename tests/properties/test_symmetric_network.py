"""One receiver per orbit over the primitive cell: exactly the network over the whole cell."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from strategies import atom_counts, random_crystals, seeds, symmetric_crystals, tiny_model
from torch import Tensor

from crystalctl.crystal.orbits import Orbits
from crystalctl.diffusion.lattice_coords import family_basis, from_family6, to_family6
from crystalctl.models.diffcsp_pp import unit_of
from crystalctl.networks.cspnet import CSPNet
from crystalctl.symmetry.groups import group, operations
from crystalctl.symmetry.primitive import n_lattice_points, primitive_basis, sites_of
from crystalctl.symmetry.tables import tables
from crystalctl.symmetry.wyckoff import orbits_of, positions

GROUPS = range(1, 231)


def one_crystal(number: int, seed: int) -> tuple[Orbits, Tensor]:
    """Up to three orbits of a group, the general position among them, and their anchors."""
    generator = torch.Generator().manual_seed(seed)
    there = positions(number)
    picked = {int(torch.randint(len(there), (1,), generator=generator)) for _ in range(2)}
    rows = [there[i].row for i in sorted(picked | {len(there) - 1})]
    orbits = orbits_of(torch.tensor(rows), torch.tensor([len(rows)]))
    return orbits, torch.rand(len(rows), 3, generator=generator, dtype=torch.float64)


def to_primitive(number: int) -> Tensor:
    """Conventional columns -> primitive columns, (3, 3) float64."""
    basis = primitive_basis(group(number).symbol[0])
    return torch.linalg.inv(torch.from_numpy(basis).T.contiguous())


def waves(points: Tensor) -> Tensor:
    """Features of period 1 that tell points apart, (N, F)."""
    k = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 2, 3], [-2, 1, 4]]).double()
    angle = 2 * math.pi * points @ k.T
    return torch.cat([angle.sin(), angle.cos()], 1)


@pytest.mark.parametrize("number", GROUPS)
def test_primitive_atoms_and_centring_give_the_conventional_cell(number):
    orbits, anchors = one_crystal(number, number)
    sites = sites_of(orbits)
    into = to_primitive(number)
    whole = orbits.place(anchors) @ into.T
    kept = sites.place(anchors)
    points = int(n_lattice_points()[number])
    assert (sites.n_images * points).tolist() == orbits.multiplicity.tolist()
    for orbit in range(orbits.total_orbits):
        a = kept[sites.orbit_idx == orbit]
        b = whole[orbits.orbit_idx == orbit]
        apart = a[:, None] - b[None]
        near = (apart - apart.round()).abs().amax(2) < 1e-6
        assert near.sum(1).tolist() == [points] * len(a)
        assert near.sum(0).tolist() == [1] * len(b)


@pytest.mark.parametrize("number", GROUPS)
def test_every_atom_of_an_orbit_would_receive_the_same_messages(number):
    """Pair vectors seen from atom g.anchor, turned back by g, are those of the anchor.

    So with h equal over orbits the sum over all senders is equal too, in every layer, and the
    anchors alone give the answer of the whole cell.
    """
    orbits, anchors = one_crystal(number, 1000 + number)
    atoms, into = orbits.place(anchors), to_primitive(number)
    back = torch.linalg.inv(into)
    generator = torch.Generator().manual_seed(number)
    state = torch.randn(orbits.total_orbits, generator=generator, dtype=torch.float64)
    weight = orbits.spread(state)[:, None]
    rotations, shifts = (torch.tensor(part).double() for part in operations(number))
    sites = sites_of(orbits)
    placed = sites.place(anchors)
    for orbit in range(orbits.total_orbits):
        anchor = atoms[orbits.anchor[orbit]]
        images = rotations @ anchor + shifts
        want = None
        picked = torch.randint(len(images), (4,), generator=generator).tolist()
        for op in [0, *picked]:
            turned = torch.linalg.inv(rotations[op]) @ (atoms - images[op]).T
            got = (weight * waves((into @ turned).T)).mean(0)
            want = got if want is None else want
            assert torch.allclose(got, want, atol=1e-9)
        cheap = waves(placed - placed[sites.anchor[orbit]])
        senders = state[sites.orbit_idx][:, None]
        assert torch.allclose((senders * cheap).mean(0), want, atol=1e-5)
    assert torch.allclose(back @ into, torch.eye(3).double())


@given(counts=atom_counts, seed=seeds)
def test_without_symmetry_it_is_the_plain_network(counts, seed):
    crystals = random_crystals(counts, seed)
    layout = crystals.layout
    torch.manual_seed(seed % 1000)
    network = CSPNet(hidden=8, n_layers=2, n_frequencies=4, time_width=8).double()
    row = positions(1)[0].row
    sites = sites_of(orbits_of(torch.full((layout.total_atoms,), row), layout.n_atoms))
    g = torch.randn(len(counts), 9, dtype=torch.float64)
    t = torch.ones(len(counts))
    arguments = (crystals.species, crystals.frac.double(), g, t, layout)
    plain, orbitwise = network(*arguments), network(*arguments, sites=sites)
    assert torch.allclose(plain.frac, orbitwise.frac, atol=1e-9)
    assert torch.allclose(plain.lattice, orbitwise.lattice, atol=1e-6)


def test_displacements_are_read_along_the_free_directions():
    """``read`` undoes what moving the anchor does to its primitive coordinates."""
    rows = torch.arange(len(tables().group))
    sites = sites_of(orbits_of(rows, torch.ones_like(rows)))
    moved = sites.rotation[sites.anchor]
    identity = torch.einsum("oij,ojk->oik", sites.read, moved)
    assert torch.allclose(identity, torch.diag_embed(sites.free.float()), atol=1e-5)
    assert sites.free.sum(1).tolist() == tables().freedom.tolist()


@given(seed=seeds)
def test_lattices_and_their_coefficients(seed):
    generator = torch.Generator().manual_seed(seed)
    k = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    assert torch.allclose(to_family6(from_family6(k)), k, atol=1e-8)
    product = torch.einsum("aij,bij->ab", family_basis(), family_basis())
    assert torch.allclose(product, torch.eye(6).double())
    q = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    assert torch.allclose(to_family6(from_family6(k) @ q), k, atol=1e-8)


def test_what_the_position_does_not_use_is_never_read():
    crystals = symmetric_crystals()
    model = tiny_model("diffcsp_pp", "predict", crystals)
    orbits = crystals.layout.orbits
    unit = unit_of(orbits.position, orbits.n_orbits, crystals.layout.space_group)
    generator = torch.Generator().manual_seed(1)
    frac = torch.rand(orbits.total_orbits, 3, generator=generator)
    state = {
        "lattice": torch.randn(4, 6, generator=generator),
        "frac": frac,
        "species": orbits.at_anchors(crystals.species),
    }
    t = torch.tensor([1, 5, 10, 20])
    with torch.no_grad():
        before = model.denoise(state, t, unit)
        other = torch.rand(frac.shape, generator=generator)
        noised = {**state, "frac": torch.where(unit.sites.free, frac, other)}
        after = model.denoise(noised, t, unit)
    assert torch.allclose(before["frac"], after["frac"], atol=1e-5)
    assert torch.allclose(before["lattice"], after["lattice"], atol=1e-5)
    assert float(before["frac"][~unit.sites.free].abs().max()) == 0
