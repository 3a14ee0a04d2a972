"""Wyckoff positions in the primitive cell: the atoms of an orbit that it holds."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from crystalctl.crystal.batch import Layout
from crystalctl.crystal.orbits import Orbits
from crystalctl.crystal.sites import Sites
from crystalctl.symmetry.groups import PRIMITIVE_BASIS, primitive_basis
from crystalctl.symmetry.tables import TRANSLATION_DENOMINATOR, tables

CENTRINGS = tuple(PRIMITIVE_BASIS)


@cache
def primitive_bases() -> Tensor:
    """The primitive basis of each of ``CENTRINGS``, rows in the conventional one, (6, 3, 3)."""
    return torch.from_numpy(np.stack([primitive_basis(c) for c in CENTRINGS])).float()


@cache
def centring_index() -> Tensor:
    """Number of the centring among ``CENTRINGS`` for each group, (231,) int64; row 0 is unused."""
    letters = [symbol[0] for symbol in tables().symbols]
    return torch.tensor([0, *(CENTRINGS.index(letter) for letter in letters)])


@cache
def n_lattice_points() -> Tensor:
    """Lattice points in the conventional cell of each group, (231,) int64; row 0 is unused."""
    points = [round(1 / np.linalg.det(primitive_basis(c))) for c in CENTRINGS]
    return torch.tensor(points)[centring_index()]


def sites_of(orbits: Orbits) -> Sites:
    """The primitive cells of a batch of orbits; one gather from the table."""
    table = _table(orbits.position.device)
    rows = orbits.position
    n_images = table["n_images"][rows]
    first = torch.cumsum(n_images, 0) - n_images
    total = int(n_images.sum())
    shift = torch.repeat_interleave(table["first"][rows] - first, n_images, output_size=total)
    operation = torch.arange(total, device=rows.device) + shift
    return Sites(
        Layout(orbits.n_orbits),
        n_images,
        table["rotation"][operation],
        table["translation"][operation],
        table["read"][rows],
        table["free"][rows],
        table["back"][operation],
    )


@cache
def _table(device: torch.device) -> dict[str, Tensor]:
    """Rows by position: the operations whose images differ by more than a lattice vector."""
    table = tables()
    n_operations = np.diff(table.first_operation)
    position = np.repeat(np.arange(len(table.group)), n_operations)
    basis = np.stack([primitive_basis(letter) for letter in CENTRINGS])
    basis = basis[centring_index().numpy()[table.group]]
    into = np.linalg.inv(basis.transpose(0, 2, 1))
    shift = (into[position] @ table.translation[..., None])[..., 0]
    whole = np.rint(shift * TRANSLATION_DENOMINATOR) % TRANSLATION_DENOMINATOR
    key = np.concatenate([position[:, None], table.rotation.reshape(-1, 9), whole], 1)
    kept = np.sort(np.unique(key, axis=0, return_index=True)[1])
    position = position[kept]
    rotation = into[position] @ table.rotation[kept]
    leading = table.rotation[table.first_operation[:-1]]
    used = (leading != 0).any(1)[position]
    back = used[..., None] * (table.pull[kept] @ basis[position].transpose(0, 2, 1))
    n_images = torch.from_numpy(np.bincount(position))
    first = torch.cumsum(n_images, 0) - n_images
    found = {
        "n_images": n_images,
        "first": first,
        "rotation": torch.from_numpy(rotation).float(),
        "translation": torch.from_numpy(shift[kept]).float(),
        "read": torch.from_numpy(np.linalg.pinv(rotation[first.numpy()])).float(),
        "back": torch.from_numpy(back).float(),
        "free": torch.from_numpy((leading != 0).any(1)),
    }
    return {name: tensor.to(device) for name, tensor in found.items()}
