"""Orbits as packed data: against a plain loop, trivial orbits, index, cat."""

from __future__ import annotations

import pytest
import torch

from crystalctl.crystal.batch import Layout
from crystalctl.crystal.orbits import Orbits
from crystalctl.symmetry.tables import tables
from crystalctl.symmetry.wyckoff import orbits_of, parse_wyckoff

REQUESTS = [(225, "4a,4b"), (194, "2c 6h 4f"), (1, "a,a,a"), (14, "4e,2a,4e"), (227, "8a 96g")]


@pytest.fixture(params=[torch.float32, torch.float64])
def dtype(request):
    return request.param


@pytest.fixture
def orbits():
    rows = [parse_wyckoff(number, text) for number, text in REQUESTS]
    flat = torch.tensor([row for part in rows for row in part])
    return orbits_of(flat, torch.tensor([len(part) for part in rows]))


def numbers(shape, dtype, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_against_a_plain_loop(orbits, dtype):
    table = tables()
    anchors = numbers((orbits.total_orbits, 3), dtype)
    vectors = numbers((orbits.total_atoms, 3), dtype, seed=1)
    placed, pushed, pulled = [], [], []
    for orbit, row in enumerate(orbits.position.tolist()):
        back = []
        for op in range(int(table.first_operation[row]), int(table.first_operation[row + 1])):
            rotation = torch.tensor(table.rotation[op]).to(dtype)
            here = rotation @ anchors[orbit]
            pushed.append(here)
            placed.append((here + torch.tensor(table.translation[op]).to(dtype)) % 1.0)
            back.append(torch.tensor(table.pull[op]).to(dtype) @ vectors[len(placed) - 1])
        pulled.append(torch.stack(back).mean(0))
    difference = orbits.place(anchors) - torch.stack(placed)
    assert (difference - difference.round()).abs().max() < 1e-6
    assert torch.allclose(orbits.push(anchors), torch.stack(pushed), atol=1e-6)
    assert torch.allclose(orbits.pull(vectors), torch.stack(pulled), atol=1e-6)
    assert orbits.place(anchors).dtype == orbits.pull(vectors).dtype == dtype


def test_bookkeeping(orbits):
    assert orbits.layout.counts == [8, 12, 3, 10, 104]
    assert orbits.multiplicity.tolist() == [4, 4, 2, 6, 4, 1, 1, 1, 4, 2, 4, 8, 96]
    assert orbits.orbit_crystal.tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4]
    assert orbits.anchor.tolist()[:4] == [0, 4, 8, 10]
    species = torch.arange(orbits.total_orbits)
    assert torch.equal(orbits.at_anchors(orbits.spread(species)), species)
    rows = orbits.spread(numbers((orbits.total_orbits, 100), torch.float32))
    assert torch.allclose(orbits.spread(orbits.mean(rows)), rows, atol=1e-6)


def test_rock_salt_and_the_hexagonal_sites(orbits):
    frac = orbits.place(torch.zeros(orbits.total_orbits, 3, dtype=torch.float64))
    halves = {tuple(x) for x in (2 * frac[:8]).round().long().tolist()}
    assert halves == {(i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1)}
    expected = torch.tensor([[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]], dtype=torch.float64)
    assert torch.allclose(frac[8:10], expected)


def test_trivial_orbits_are_the_identity(dtype):
    layout = Layout(torch.tensor([3, 1, 5]))
    orbits = Orbits.trivial(layout)
    x = numbers((9, 3), dtype)
    for same in (orbits.place, orbits.push, orbits.pull, orbits.back, orbits.project, orbits.mean):
        assert torch.equal(same(x), x)
    assert orbits.layout.counts == layout.counts


def test_index_and_cat(orbits):
    anchors = numbers((orbits.total_orbits, 3), torch.float64)
    frac = orbits.place(anchors)
    parts = [orbits.index(torch.tensor([i])) for i in range(orbits.n_crystals)]
    again = Orbits.cat(parts)
    assert torch.equal(again.place(anchors), frac)
    picked = orbits.index(torch.tensor([3, 0]))
    rows = torch.cat([torch.arange(8, 11), torch.arange(0, 2)])
    expected = torch.cat([frac[23:33], frac[:8]])
    assert torch.equal(picked.place(anchors[rows]), expected)
    assert torch.equal(picked.position, orbits.position[rows])
    moved = orbits.to("cpu")
    assert torch.equal(moved.place(anchors), frac)


def test_gradients_flow(orbits):
    anchors = numbers((orbits.total_orbits, 3), torch.float64).requires_grad_()
    weights = numbers((orbits.total_atoms, 3), torch.float64, seed=2)
    (orbits.place(anchors) * weights).sum().backward()
    expected = torch.zeros_like(anchors.detach()).index_add_(
        0, orbits.orbit_idx, torch.einsum("aij,ai->aj", orbits.rotation, weights)
    )
    assert torch.allclose(anchors.grad, expected)
