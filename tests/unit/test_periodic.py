"""Neighbours and nearest images in skewed cells, against brute force and pymatgen."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from pymatgen.core import Lattice, Structure
from strategies import seeds

from crystalctl.crystal.batch import Layout
from crystalctl.crystal.lattice import inverse
from crystalctl.crystal.periodic import nearest_image, neighbours, plane_spacings

COUNTS = [1, 3, 2, 4]


def skewed(seed: int, counts: list[int] = COUNTS):
    """Cells of 1.5 to 5 Å, sheared by whole lattice vectors: far from reduced."""
    generator = torch.Generator().manual_seed(seed)
    n = len(counts)
    edge = 1.5 + 3.5 * torch.rand(n, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, 3, 3, generator=generator, dtype=torch.float64)
    lattice = torch.diag_embed(edge) + 0.3 * noise
    for row in range(n):
        for _ in range(row % 4):
            i, j = torch.randperm(3, generator=generator)[:2].tolist()
            lattice[row, i] += (
                int(torch.randint(-2, 3, (1,), generator=generator)) * lattice[row, j]
            )
    frac = torch.rand(sum(counts), 3, generator=generator, dtype=torch.float64)
    return frac, lattice, Layout(torch.tensor(counts))


def listed(found, rows: range) -> set[tuple[int, ...]]:
    keep = [k for k, i in enumerate(found.receiver.tolist()) if i in rows]
    return {(int(found.receiver[k]), int(found.sender[k]), *found.image[k].tolist()) for k in keep}


@given(seed=seeds)
def test_neighbours_are_those_of_pymatgen(seed):
    frac, lattice, layout = skewed(seed)
    found = neighbours(frac, lattice, layout, 4.0)
    start = 0
    for row, n in enumerate(layout.counts):
        rows = range(start, start + n)
        cell = Structure(Lattice(lattice[row].numpy()), ["H"] * n, frac[start : start + n].numpy())
        i, j, image, distance = cell.get_neighbor_list(4.0)
        pairs = zip(i + start, j + start, image, strict=True)
        want = {(int(a), int(b), *map(int, c)) for a, b, c in pairs}
        assert listed(found, rows) == want
        keep = (found.receiver >= start) & (found.receiver < start + n)
        got = sorted(found.distance[keep].tolist())
        assert got == pytest.approx(sorted(distance.tolist()), abs=1e-9)
        start += n


@given(seed=seeds)
def test_neighbours_are_those_of_brute_force(seed):
    frac, lattice, layout = skewed(seed, [1, 2])
    cutoff, reach = 3.0, 14
    found = neighbours(frac, lattice, layout, cutoff)
    shifts = torch.cartesian_prod(*[torch.arange(-reach, reach + 1)] * 3)
    want = set()
    for i, c in enumerate(layout.crystal_idx.tolist()):
        for j in (layout.crystal_idx == c).nonzero()[:, 0].tolist():
            vector = (frac[j] - frac[i] + shifts) @ lattice[c]
            length = torch.linalg.vector_norm(vector, dim=1)
            near = (length <= cutoff) & ~((i == j) & (shifts == 0).all(1))
            want |= {(i, j, *shift) for shift in shifts[near].tolist()}
    assert listed(found, range(layout.total_atoms)) == want
    where = (frac[found.sender] + found.image - frac[found.receiver])[:, None]
    exact = (where @ lattice[layout.crystal_idx[found.receiver]])[:, 0]
    assert torch.allclose(exact, found.vector, atol=1e-12)


def test_a_sheared_cell_needs_more_than_27_images():
    lattice = torch.eye(3, dtype=torch.float64)[None] * 3
    plain = neighbours(torch.zeros(1, 3).double(), lattice, Layout(torch.tensor([1])), 3.1)
    lattice = lattice.clone()
    lattice[0, 0] += 4 * lattice[0, 1]
    sheared = neighbours(torch.zeros(1, 3).double(), lattice, Layout(torch.tensor([1])), 3.1)
    assert len(plain.distance) == len(sheared.distance) == 6
    assert int(sheared.image.abs().max()) == 4


@given(seed=seeds)
def test_nearest_image_is_the_shortest_of_many(seed):
    _, lattice, _ = skewed(seed)
    generator = torch.Generator().manual_seed(seed)
    delta = 3 * torch.randn(len(lattice), 3, generator=generator, dtype=torch.float64)
    got = nearest_image(delta, lattice)
    shifts = torch.cartesian_prod(*[torch.arange(-14, 15)] * 3).double()
    centred = delta - delta.round()
    all_images = (centred[:, None] + shifts) @ lattice
    best = torch.linalg.vector_norm(all_images, dim=2).amin(1)
    assert torch.allclose(torch.linalg.vector_norm(got, dim=1), best)
    turns = (got[:, None] @ inverse(lattice))[:, 0] - delta
    assert torch.allclose(turns, turns.round(), atol=1e-9)


def test_nearest_ones_keep_their_ties():
    """The octahedron of a perovskite is six atoms, whichever of them come first."""
    frac = torch.tensor([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    lattice = 4 * torch.eye(3)[None]
    found = neighbours(frac, lattice, Layout(torch.tensor([5])), 4.0, nearest=5)
    degree = torch.bincount(found.receiver)
    assert degree.tolist() == [12, 6, 14, 14, 14]
    few = neighbours(frac, lattice, Layout(torch.tensor([5])), 4.0, nearest=2)
    assert torch.bincount(few.receiver).tolist() == [12, 6, 2, 2, 2]


def test_cells_without_volume_have_no_neighbours_and_a_batch_is_its_parts():
    frac, lattice, layout = skewed(3)
    flat = lattice.clone()
    flat[1, 2] = flat[1, 0]
    flat[2] = 0
    found = neighbours(frac, flat, layout, 4.0)
    crystals = layout.crystal_idx[found.receiver]
    assert set(crystals.tolist()) == {0, 3}
    whole = neighbours(frac, lattice, layout, 4.0)
    assert torch.equal(
        found.vector, whole.vector[torch.isin(layout.crystal_idx[whole.receiver], crystals)]
    )


def test_plane_spacings_are_the_inverse_reciprocal_lengths():
    _, lattice, _ = skewed(5)
    reciprocal = torch.linalg.inv(lattice).transpose(1, 2)
    assert torch.allclose(plane_spacings(lattice), 1 / torch.linalg.vector_norm(reciprocal, dim=2))
