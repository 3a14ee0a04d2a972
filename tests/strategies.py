"""Small crystals, models and datasets for tests, seeded; and hypothesis strategies for them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from crystalctl.crystal.batch import Crystals, Layout, Template
from crystalctl.data.datasets import Dataset
from crystalctl.data.standard import from_anchors
from crystalctl.data.statistics import Statistics
from crystalctl.diffusion.lattice_coords import from_family6
from crystalctl.diffusion.noise import NoiseSource
from crystalctl.models import FAMILIES
from crystalctl.symmetry.tables import tables
from crystalctl.symmetry.wyckoff import position_row

SIZES = (3, 1, 4, 2)
TINY: dict[str, Any] = {
    "hidden": 16,
    "n_layers": 2,
    "n_frequencies": 4,
    "time_width": 8,
    "n_steps": 20,
    "sample_steps": 5,
}
"""Settings under which a family's network takes milliseconds."""
TINY_SYMAT: dict[str, Any] = {
    **TINY,
    "n_levels": 5,
    "n_spherical": 3,
    "channels": 4,
    "latent": 8,
    "hidden_decoder": 16,
}
"""And what only SyMat's has."""

TINY_SGEQUIDIFF: dict[str, Any] = {
    "hidden_occupation": 16,
    "n_layers_occupation": 2,
    "hidden_lattice": 16,
}
"""And what only SGEquiDiff's has."""

FAMILY_TASKS = [(family, task) for family, row in FAMILIES.items() for task in row.tasks]

seeds = st.integers(0, 2**31 - 1)
atom_counts = st.lists(st.integers(1, 5), min_size=1, max_size=4)


def random_crystals(counts: list[int] | tuple[int, ...] = SIZES, seed: int = 0) -> Crystals:
    """Cells of 2 to 6 Å, not orthogonal, with elements up to calcium."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(counts)
    noise = torch.randn(len(counts), 3, 3, generator=generator)
    lattice = 4 * torch.eye(3) + 0.4 * noise
    frac = torch.rand(total, 3, generator=generator)
    species = torch.randint(1, 21, (total,), generator=generator)
    return Crystals(Layout(torch.tensor(counts)), lattice, frac, species)


TEMPLATES = (
    (225, "ab", (11, 17)),
    (221, "abc", (38, 22, 8)),
    (186, "bbac", (30, 16, 3, 8)),
    (14, "aee", (12, 14, 8)),
)
"""Group, Wyckoff letters, species: fixed points, lines and general positions, P and F cells."""


def templates() -> list[Template]:
    """One template for each row of ``TEMPLATES``."""
    found = []
    for group, letters, species in TEMPLATES:
        pairs = sorted(
            (position_row(group, letter), z) for letter, z in zip(letters, species, strict=True)
        )
        found.append(Template(group, *zip(*pairs, strict=True)))
    return found


def symmetric_crystals(seed: int = 0) -> Crystals:
    """Conventional cells of ``TEMPLATES`` with their orbits, free numbers drawn."""
    generator = torch.Generator().manual_seed(seed)
    wanted = templates()
    position = torch.tensor([row for t in wanted for row in t.positions])
    groups = torch.tensor([t.space_group for t in wanted])
    free = torch.tensor(tables().lattice_free)[groups - 1]
    k = torch.tensor(tables().lattice_fixed)[groups - 1]
    k = torch.where(free, 0.1 * torch.randn(k.shape, generator=generator), k)
    k[:, 5] += 3
    return from_anchors(
        position,
        torch.tensor([len(t.positions) for t in wanted]),
        space_group=groups,
        lattice=from_family6(k).float(),
        anchors=torch.rand(len(position), 3, generator=generator),
        species=torch.tensor([z for t in wanted for z in t.species or ()]),
    )


def crystals_for(family: str, seed: int = 0) -> Crystals:
    """Four crystals in the form the family trains on."""
    return symmetric_crystals(seed) if FAMILIES[family].symmetric else random_crystals(SIZES, seed)


def tiny_model(family: str, task: str, crystals: Crystals, *, seed: int = 0, **config: Any) -> Any:
    """An untrained small model, evaluation mode."""
    model_class = FAMILIES[family].load()
    torch.manual_seed(seed)
    known = {field.name for field in fields(model_class.Config)}
    every = TINY_SYMAT | TINY_SGEQUIDIFF
    tiny = {name: value for name, value in every.items() if name in known}
    settings = model_class.Config(**{**tiny, "task": task, **config})
    return model_class(settings, Statistics.of(crystals, crystals.layout)).eval()


def noise_for(n_crystals: int, seed: int = 0) -> NoiseSource:
    """A source with streams 0 .. n_crystals - 1."""
    return NoiseSource(seed, torch.arange(n_crystals))


def dataset_of(crystals: Crystals, split: list[int] | None = None) -> Dataset:
    """A prepared dataset around ``crystals``, without symmetry."""
    n, atoms = len(crystals), crystals.layout.total_atoms
    return Dataset(
        crystals,
        [f"id-{i}-Å" for i in range(n)],
        torch.tensor(split or [1] * n, dtype=torch.uint8),
        torch.ones(n, dtype=torch.uint8),
        torch.zeros(atoms, dtype=torch.uint8),
        crystals.layout.atom_idx.to(torch.int16),
        {"energy": torch.linspace(-1, 1, n)},
        {"source": "test"},
    )


def write_dataset(path: Path, n: int = 10, seed: int = 0, *, n_val: int = 0) -> Path:
    """A dataset file with ``n`` training crystals of 1 to 4 atoms and ``n_val`` to validate on."""
    counts = [1 + i % 4 for i in range(n + n_val)]
    dataset_of(random_crystals(counts, seed), [1] * n + [2] * n_val).save(path)
    return path
