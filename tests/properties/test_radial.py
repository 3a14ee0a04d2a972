"""Pairs in real space: every image counted, and what the heads do under rotation and symmetry."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from strategies import atom_counts, random_crystals, seeds, symmetric_crystals, tiny_model

from crystalctl.diffusion.lattice_coords import family_basis, from_family6
from crystalctl.models.diffcsp_pp import unit_of
from crystalctl.networks.radial import CUTOFF, PairHead, PeriodicShells
from crystalctl.symmetry.groups import group
from crystalctl.symmetry.primitive import primitive_basis, sites_of
from crystalctl.symmetry.tables import tables
from crystalctl.symmetry.wyckoff import orbits_of, positions


def stirred(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter drawn anew: those that start at zero would test nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    return module


def radius_of(cell: torch.Tensor) -> torch.Tensor:
    """3/2 of the smallest plane spacing, or the cutoff; the spacing from the reciprocal lattice."""
    spacing = 1 / torch.linalg.vector_norm(torch.linalg.inv(cell), dim=0)
    return torch.minimum(1.5 * spacing.min(), torch.tensor(CUTOFF, dtype=cell.dtype))


@given(seed=seeds)
def test_every_image_within_the_radius_is_counted_once(seed):
    """Against a plain sum over 9 x 9 x 9 images, cells skewed as much as they come."""
    generator = torch.Generator().manual_seed(seed)
    cell = 4 * torch.eye(3).double() + 1.5 * torch.randn(3, 3, generator=generator).double()
    delta = 3 * torch.randn(5, 3, generator=generator, dtype=torch.float64)
    shells = PeriodicShells(6)
    got = shells(delta, cell[None], torch.zeros(5, dtype=torch.int64))
    radius, steps = radius_of(cell), torch.arange(-4, 5).double()
    images = torch.cartesian_prod(steps, steps, steps)
    frac = (delta - delta.floor())[:, None] + images
    cart = frac @ cell
    distance = cart.norm(dim=2)
    fade = (1 - (distance / radius) ** 2).clamp(min=0) ** 2
    bumps = torch.exp(-0.5 * ((distance[..., None] - shells.centres) / shells.width) ** 2)
    weight = bumps * fade[..., None]
    assert torch.allclose(got.count, torch.log1p(4 * weight.sum(1)), atol=1e-9)
    assert torch.allclose(got.vector, torch.einsum("enk,eni->eki", weight, frac), atol=1e-9)
    unit = cart / distance[..., None].clamp(min=1e-6)
    strain = torch.einsum("eni,bij,enj->enb", unit, family_basis(), unit)
    assert torch.allclose(got.strain, torch.einsum("enk,enb->ekb", weight, strain), atol=1e-9)


@pytest.mark.parametrize("number", range(1, 231))
def test_displacements_stay_in_the_position(number):
    """What neighbours do to an anchor is along its free directions, by symmetry alone."""
    generator = torch.Generator().manual_seed(number)
    there = positions(number)
    picked = {int(torch.randint(len(there), (1,), generator=generator)) for _ in range(2)}
    rows = [there[i].row for i in sorted(picked | {len(there) - 1})]
    sites = sites_of(orbits_of(torch.tensor(rows), torch.tensor([len(rows)])))
    anchors = torch.rand(len(rows), 3, generator=generator, dtype=torch.float64)
    free = torch.tensor(tables().lattice_free)[number - 1]
    k = torch.tensor(tables().lattice_fixed, dtype=torch.float64)[number - 1]
    k = torch.where(free, 0.1 * torch.randn(6, generator=generator, dtype=torch.float64), k)
    k[5] += 3
    cell = torch.from_numpy(primitive_basis(group(number).symbol[0])) @ from_family6(k[None])
    receiver, atom = sites.edges
    points = sites.place(anchors)
    delta = points[atom] - points[sites.anchor][receiver]
    shells = PeriodicShells(5).double()(delta, cell, torch.zeros(len(delta), dtype=torch.int64))
    head = stirred(PairHead(8, 5), number).double()
    h = torch.randn(len(rows), 8, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        pull, _ = head(h, receiver, sites.orbit_idx[atom], shells)
    along = sites.rotation[sites.anchor].double() @ sites.read.double()
    assert torch.allclose(torch.einsum("oij,oj->oi", along, pull), pull, atol=1e-4)


@given(counts=atom_counts, seed=seeds)
def test_equivariance(counts, seed):
    """Rotations change nothing; moving all atoms, or an atom by a period, neither."""
    crystals = random_crystals(counts, seed)
    layout, frac = crystals.layout, crystals.frac.double()
    cell = crystals.lattice.double()
    receiver, sender = layout.edges
    generator = torch.Generator().manual_seed(seed)
    head, shells = stirred(PairHead(8, 5)).double(), PeriodicShells(5)
    h = torch.randn(layout.total_atoms, 8, generator=generator, dtype=torch.float64)
    crystal_idx = layout.crystal_idx[receiver]

    def run(points: torch.Tensor, axes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = shells(points[sender] - points[receiver], axes, crystal_idx)
        out: tuple[torch.Tensor, torch.Tensor] = head(h, receiver, sender, found)
        return out

    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    pull, strain = run(frac, cell)
    turned, strain_turned = run(frac, cell @ turn)
    assert torch.allclose(pull, turned, atol=1e-8)
    # The trace part is a number, the rest turns with the axes.
    assert torch.allclose(strain[:, 5], strain_turned[:, 5], atol=1e-8)
    shift = torch.rand(3, generator=generator, dtype=torch.float64)
    whole = torch.randint(-2, 3, frac.shape, generator=generator)
    moved, strain_moved = run(frac + shift + whole, cell)
    assert torch.allclose(pull, moved, atol=1e-8)
    assert torch.allclose(strain, strain_moved, atol=1e-8)


def test_with_and_without_are_the_same_function_at_first():
    """Weights trained without can be continued with; after a step they differ."""
    crystals = symmetric_crystals()
    orbits = crystals.layout.orbits
    plain = tiny_model("diffcsp_pp", "predict", crystals)
    more = tiny_model("diffcsp_pp", "predict", crystals, n_radial=4)
    state = {**more.state_dict(), **plain.state_dict()}
    more.load_state_dict(state)
    unit = unit_of(orbits.position, orbits.n_orbits, crystals.layout.space_group)
    generator = torch.Generator().manual_seed(1)
    noised = {
        "lattice": torch.randn(4, 6, generator=generator),
        "frac": torch.rand(orbits.total_orbits, 3, generator=generator),
        "species": orbits.at_anchors(crystals.species),
    }
    t = torch.tensor([1, 5, 10, 20])
    with torch.no_grad():
        first, second = plain.denoise(noised, t, unit), more.denoise(noised, t, unit)
        assert all(torch.equal(first[name], second[name]) for name in first)
        stirred(more.network.pair_head)
        third = more.denoise(noised, t, unit)
    assert not torch.allclose(first["lattice"], third["lattice"])
    assert not torch.allclose(first["frac"], third["frac"])
