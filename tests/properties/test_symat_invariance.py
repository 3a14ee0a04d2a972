"""SyMat: encoder, targets and score see the crystal, not its description."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from strategies import atom_counts, random_crystals, seeds, tiny_model
from torch import Tensor

from crystalctl.crystal.batch import Crystals, Layout
from crystalctl.diffusion.cartesian import distance_errors, mended, pulls

TOLERANCE = 1e-9
"""Relative to the largest value, in float64."""
UNIMODULAR = torch.tensor([[1, 1, 0], [0, 1, -2], [0, 0, 1]]).double()


def exact(crystals: Crystals) -> Crystals:
    return crystals.replace(lattice=crystals.lattice.double(), frac=crystals.frac.double())


def perovskite() -> Crystals:
    """Many neighbours at one distance: where a choice among equals would show."""
    frac = torch.tensor([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    species = torch.tensor([38, 22, 8, 8, 8])
    return Crystals(Layout(torch.tensor([5])), 3.9 * torch.eye(3)[None], frac, species)


def seen(model, crystals: Crystals, moved: Tensor) -> dict[str, Tensor]:
    """Every learnt piece and every target; ``moved`` (A, 3) is the fractional noise."""
    layout = crystals.layout
    latent = model.config.latent
    with torch.no_grad():
        posterior = model.encode(crystals)
        edges = model.graph(crystals.frac + moved, crystals.lattice, layout)
        t = torch.arange(layout.n_crystals) % model.config.n_levels + 1
        z = torch.ones(layout.n_crystals, latent, dtype=torch.float64)
        out = model.mending(edges, crystals.species, z, t=t, layout=layout)
        errors = distance_errors(edges, moved, crystals.lattice, layout)
        target = pulls(edges, errors, layout.total_atoms)
        solved = mended(edges, target, layout)
        composition = model.composition.losses(z, crystals.species, layout)
    return {
        "mu": posterior.mu[:, : 2 * latent],
        "log var": posterior.log_var[:, : 2 * latent],
        "lattice mu": posterior.mu[:, 2 * latent :],
        "score": out,
        "target": target,
        "mended": solved,
        **composition,
    }


ROWS_OF_ATOMS = {"score", "target", "mended"}


def check(got: dict[str, Tensor], want: dict[str, Tensor], what: str, but: str = "") -> None:
    errors = {
        name: float((got[name] - want[name]).abs().max() / want[name].abs().max().clamp(min=1e-6))
        for name in want
        if name != but
    }
    assert max(errors.values()) < TOLERANCE, f"{what}: largest error per piece {errors}"


def setting(counts: list[int] | None, seed: int):
    crystals = exact(perovskite() if counts is None else random_crystals(counts, seed))
    model = tiny_model("symat", "generate", crystals, seed=seed % 1000).double()
    generator = torch.Generator().manual_seed(seed)
    moved = 0.05 * torch.randn(crystals.frac.shape, generator=generator, dtype=torch.float64)
    return model, crystals, moved * (counts is not None), generator


def rotation(generator: torch.Generator) -> Tensor:
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    return q


@given(counts=atom_counts, seed=seeds)
def test_rotations_and_mirrors_turn_the_score(counts, seed):
    model, crystals, moved, generator = setting(counts, seed)
    before = seen(model, crystals, moved)
    q = rotation(generator)
    after = seen(model, crystals.replace(lattice=crystals.lattice @ q), moved)
    turned = {k: v @ q if k in ROWS_OF_ATOMS else v for k, v in before.items()}
    check(after, turned, "rotation")


@given(counts=atom_counts, seed=seeds)
def test_the_origin_and_the_images_do_not_matter(counts, seed):
    model, crystals, moved, generator = setting(counts, seed)
    before = seen(model, crystals, moved)
    origin = torch.rand(len(crystals), 3, generator=generator, dtype=torch.float64)
    images = torch.randint(-2, 3, crystals.frac.shape, generator=generator)
    shifted = crystals.frac + origin[crystals.layout.crystal_idx] + images
    check(seen(model, crystals.replace(frac=shifted), moved), before, "origin and images")


@given(counts=atom_counts, seed=seeds)
def test_an_equivalent_cell_is_the_same_crystal(counts, seed):
    """All but the latent of the lattice: cell parameters are those of the Niggli cell."""
    model, crystals, moved, _ = setting(counts, seed)
    before = seen(model, crystals, moved)
    back = torch.linalg.inv(UNIMODULAR)
    other = crystals.replace(lattice=UNIMODULAR @ crystals.lattice, frac=crystals.frac @ back)
    check(seen(model, other, moved @ back), before, "equivalent cell", but="lattice mu")


@pytest.mark.parametrize("symmetric", [False, True])
@given(seed=seeds)
def test_permuted_atoms_permute_the_rows(symmetric, seed):
    model, crystals, moved, generator = setting(None if symmetric else [4], seed)
    before = seen(model, crystals, moved)
    order = torch.randperm(len(crystals.frac), generator=generator)
    mixed = crystals.replace(frac=crystals.frac[order], species=crystals.species[order])
    want = {k: v[order] if k in ROWS_OF_ATOMS else v for k, v in before.items()}
    check(seen(model, mixed, moved[order]), want, "permutation")


@given(seed=seeds)
def test_a_symmetric_crystal_looks_the_same_from_any_origin_and_cell(seed):
    model, crystals, moved, generator = setting(None, seed)
    before = seen(model, crystals, moved)
    back = torch.linalg.inv(UNIMODULAR)
    origin = torch.rand(3, generator=generator, dtype=torch.float64)
    other = crystals.replace(
        lattice=UNIMODULAR @ crystals.lattice @ rotation(generator),
        frac=(crystals.frac + origin) @ back,
    )
    after = seen(model, other, moved @ back)
    check(after, before, "symmetric crystal", but="lattice mu")
    # A rotation would turn them, but in a perovskite no atom is pulled anywhere.
    assert max(float(after[name].abs().max()) for name in ("score", "target")) < 1e-9


def test_every_input_matters():
    model, crystals, moved, _ = setting([3, 2], 1)
    before = seen(model, crystals, moved)
    bent = crystals.frac.clone()
    bent[[0, 3]] += 0.1
    for name, other in (
        ("frac", crystals.replace(frac=bent)),
        ("lattice", crystals.replace(lattice=crystals.lattice * 1.2)),
        ("species", crystals.replace(species=crystals.species % 20 + 1)),
    ):
        after = seen(model, other, moved)
        names = ["mu", "log var"] + (["score"] if name != "species" else ["score", "elements"])
        for piece in names:
            assert float((after[piece] - before[piece]).abs().max()) > 1e-6, (name, piece)
