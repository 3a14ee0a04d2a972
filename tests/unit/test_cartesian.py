"""Distance scores: the oracle finds the crystal, and the noise has the right size."""

from __future__ import annotations

import math

import pytest
import torch
from strategies import noise_for, random_crystals

from crystalctl.crystal.batch import Layout
from crystalctl.crystal.lattice import inverse
from crystalctl.crystal.periodic import nearest_image, neighbours
from crystalctl.diffusion.cartesian import (
    CartesianLevels,
    descend,
    distance_errors,
    mended,
    pulls,
    to_frac,
)

N_ROWS = 4000
ATOMS = Layout(torch.ones(N_ROWS, dtype=torch.int64))


def levels(n: int = 50, temperature: float = 0.01) -> CartesianLevels:
    return CartesianLevels(n, 0.01, 10.0, step=1e-4, temperature=temperature)


def test_levels_are_the_published_ones():
    sigma = levels().sigma
    assert float(sigma[1]) == pytest.approx(0.01)
    assert float(sigma[50]) == pytest.approx(10.0)
    ratio = sigma[2:] / sigma[1:-1]
    assert torch.allclose(ratio, ratio[:1].expand_as(ratio), rtol=1e-5)


@pytest.mark.parametrize(
    ("steps", "langevin"), [(100, False), (50, False), (30, False), (250, True)]
)
def test_an_oracle_leads_to_its_crystal(steps, langevin):
    """It knows the clean crystal; what comes out is that crystal, wherever its origin."""
    clean = random_crystals([5, 4, 2], 3)
    layout, lattice = clean.layout, clean.lattice

    calls = []

    def score(frac, t):
        calls.append(t)
        edges = neighbours(frac, lattice, layout, 5.0)
        errors = distance_errors(edges, frac - clean.frac, lattice, layout)
        return edges, pulls(edges, errors, layout.total_atoms) / levels().norm[t]

    frac = descend(score, levels(), lattice, layout, noise_for(3), steps=steps, langevin=langevin)
    assert len(calls) == steps
    receiver, sender = layout.edges
    difference = (frac - clean.frac)[sender] - (frac - clean.frac)[receiver]
    off = nearest_image(difference, lattice[layout.crystal_idx[receiver]])
    assert float(torch.linalg.vector_norm(off, dim=1).max()) < 0.05


def test_small_displacements_are_mended_in_one_step():
    clean = random_crystals([5, 3], 1)
    layout, lattice = clean.layout, clean.lattice.double()
    shift = 1e-3 * noise_for(2).normal(layout, 3, per_atom=True).double()
    moved = to_frac(shift, lattice, layout)
    edges = neighbours(clean.frac + moved, lattice, layout, 5.0)
    target = pulls(edges, distance_errors(edges, moved, lattice, layout), layout.total_atoms)
    found = mended(edges, target, layout, ridge=1e-9)
    for c in range(2):
        rows = layout.crystal_idx == c
        want = shift[rows] - shift[rows].mean(0)
        got = found[rows] - found[rows].mean(0)
        assert float((got - want).norm() / want.norm()) < 0.02


def test_the_error_of_a_distance_is_as_large_as_the_norm_says():
    """sqrt(2) sigma while the noise is small against the cell."""
    counts = torch.full((400,), 2)
    layout = Layout(counts)
    lattice = (8 * torch.eye(3)).expand(400, 3, 3)
    frac = torch.tensor([[0.1, 0.1, 0.1], [0.35, 0.1, 0.1]]).repeat(400, 1)
    chosen = levels()
    for t in (1, 15, 25):
        at = torch.full((400,), t)
        noised, moved = chosen.corrupt(frac, lattice, at, layout, noise_for(400))
        edges = neighbours(noised, lattice, layout, 4.0)
        errors = distance_errors(edges, moved, lattice, layout)
        rms = float(errors.square().mean().sqrt())
        assert rms == pytest.approx(float(chosen.norm[t]), rel=0.15)


def test_noise_of_a_langevin_step():
    chosen = levels(temperature=0.5)
    still = torch.zeros(N_ROWS, 3)
    for t in (1, 30):
        shift = chosen.langevin(still, t, ATOMS, noise_for(N_ROWS))
        size = 1e-4 * float(chosen.sigma[t] / chosen.sigma[1]) ** 2
        want = math.sqrt(2 * 0.5 * size)
        assert float(shift.std()) == pytest.approx(want, rel=5 / math.sqrt(2 * shift.numel()))
    pull = chosen.langevin(still + 1, 1, ATOMS, noise_for(N_ROWS))
    drift = (pull - chosen.langevin(still, 1, ATOMS, noise_for(N_ROWS))).mean()
    assert float(drift) == pytest.approx(1e-4 / float(chosen.norm[1]) ** 2, rel=1e-3)


def test_noising_anew_keeps_the_law_of_the_level_and_nothing_of_the_noise():
    """Data on one point: its error known, what follows is independent of what was."""
    chosen = levels()
    noise = noise_for(N_ROWS)
    x = chosen.sigma[20] * noise.normal(ATOMS, 3, per_atom=True)
    y = x + chosen.renoise(x, 20, ATOMS, noise)
    want, n = float(chosen.sigma[20]), x.numel()
    assert float(y.std()) == pytest.approx(want, rel=5 / math.sqrt(2 * n))
    assert float((x * y).mean()) == pytest.approx(0, abs=5 * want**2 / math.sqrt(n))


@pytest.mark.parametrize(("t", "s"), [(50, 49), (40, 20), (10, 1)])
def test_the_predictor_keeps_the_law_of_the_level(t, s):
    """Data on one point: noise of sigma_t, its error known, becomes noise of sigma_s."""
    chosen = levels()
    noise = noise_for(N_ROWS)
    x = chosen.sigma[t] * noise.normal(ATOMS, 3, per_atom=True)
    x = x + chosen.ancestral(x, t, s, ATOMS, noise)
    want = float(chosen.sigma[s])
    assert float(x.std()) == pytest.approx(want, rel=5 / math.sqrt(2 * x.numel()))
    end = x + chosen.ancestral(x, s, 0, ATOMS, noise)
    assert float(end.abs().max()) < 1e-5 * want + 1e-9


def test_shifts_in_fractional_coordinates():
    crystals = random_crystals([2, 3], 4)
    shift = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    frac = to_frac(shift, crystals.lattice, crystals.layout)
    back = (frac[:, None] @ crystals.lattice[crystals.layout.crystal_idx])[:, 0]
    assert torch.allclose(back, shift, atol=1e-5)
    assert torch.allclose(inverse(crystals.lattice), torch.linalg.inv(crystals.lattice), atol=1e-5)
    assert float(inverse(torch.zeros(1, 3, 3)).abs().max()) == 0
