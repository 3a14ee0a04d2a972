"""The mean over the group: one pass of the network and a gather, against a pass for each."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from strategies import tiny_model
from torch import Tensor

from crystalctl.crystal.batch import Crystals
from crystalctl.data.standard import from_anchors
from crystalctl.diffusion.lattice_coords import from_family6
from crystalctl.models.diffcsp_pp import cell_features, unit_of
from crystalctl.symmetry.groups import operations, primitive_basis
from crystalctl.symmetry.stabilisers import action, embedding
from crystalctl.symmetry.tables import tables
from crystalctl.symmetry.wyckoff import positions


def crystal_on(rows: list[int], seed: int = 0) -> Crystals:
    """One crystal of one group with orbits on ``rows``."""
    generator = torch.Generator().manual_seed(seed)
    group = int(tables().group[rows[0]])
    k = torch.tensor(tables().lattice_fixed)[group - 1]
    free = torch.tensor(tables().lattice_free)[group - 1]
    k = torch.where(free, 0.15 * torch.randn(6, generator=generator), k)
    k[5] += 2.5
    return from_anchors(
        torch.tensor(rows),
        torch.tensor([len(rows)]),
        space_group=torch.tensor([group]),
        lattice=from_family6(k[None]),
        anchors=torch.rand(len(rows), 3, generator=generator, dtype=torch.float64),
        species=torch.arange(len(rows)) + 3,
    )


@cache
def model() -> Any:
    made = tiny_model("sgequidiff", "generate", crystal_on([positions(2)[-1].row]), n_radial=6)
    torch.manual_seed(1)
    for parameter in made.network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.double()


class Setting:
    """A crystal with what the network needs of it."""

    def __init__(self, rows: list[int]) -> None:
        self.crystals = crystal_on(rows)
        layout = self.crystals.layout
        assert layout.orbits is not None
        assert layout.space_group is not None
        self.orbits, self.group = layout.orbits, int(layout.space_group)
        self.unit = unit_of(self.orbits.position, self.orbits.n_orbits, layout.space_group)
        self.g, self.cell = cell_features(self.crystals.lattice, self.unit)
        self.g, self.cell = self.g.double(), self.cell.double()
        self.species = self.orbits.at_anchors(self.crystals.species)
        self.u = self.orbits.at_anchors(self.crystals.frac)
        self.u = self.u.masked_fill(~self.unit.sites.free, 0.0)
        self.t = torch.tensor([5])

    def averaged(self, u: Tensor) -> Tensor:
        with torch.no_grad():
            return (
                model()
                .denoise(u, self.species, self.t, self.unit, g=self.g, cell=self.cell)
                .double()
            )

    def plain(self, points: Tensor) -> Tensor:
        """The network on all atoms at ``points`` (P, 3) primitive, in conventional coordinates."""
        sites = self.unit.sites
        with torch.no_grad():
            out = model().network(
                self.species[sites.orbit_idx], points, self.g, self.t, sites.atoms, cell=self.cell
            )
        return out.frac @ self.basis

    @property
    def basis(self) -> Tensor:
        return torch.tensor(primitive_basis(tables().symbols[self.group - 1][0]))

    def by_passes(self) -> Tensor:
        """mean of R^-1 f(g x) at the anchors, a pass for each operation, (O, 3) conventional."""
        into = torch.linalg.inv(self.basis.T)
        points = self.unit.sites.place(self.u) @ self.basis
        total = torch.zeros(len(self.u), 3, dtype=torch.float64)
        rotations, shifts = operations(self.group)
        for r, shift in zip(rotations, shifts, strict=True):
            turn = torch.tensor(r).double()
            moved = (points @ turn.T + torch.tensor(shift)) @ into.T
            at_anchors = self.plain(moved)[self.unit.sites.anchor]
            total += at_anchors @ torch.linalg.inv(turn).T
        return total / len(rotations)


CASES = [
    [p.row for p in positions(group) if p.letter in letters]
    for group, letters in (
        (225, "ae"), (194, "bfk"), (166, "ch"), (14, "ae"), (186, "bc"), (62, "cd"), (152, "ac"),
        (82, "aeg"), (198, "ab"), (122, "ad"), (43, "ab"), (148, "cf"),
    )
]  # fmt: skip


@pytest.mark.parametrize("rows", CASES, ids=lambda rows: str(tables().group[rows[0]]))
def test_one_pass_and_a_gather_is_as_many_passes_as_operations(rows: list[int]) -> None:
    here = Setting(rows)
    expected = here.by_passes()
    found = here.averaged(here.u)
    for row, velocity, mean in zip(rows, found, expected, strict=True):
        rotation, _, _ = embedding(row)
        scale = 1 + float(mean.abs().max())
        assert np.abs(rotation @ velocity.numpy() - mean.numpy()).max() < 1e-5 * scale


@pytest.mark.parametrize("number", range(1, 231))
def test_velocities_turn_with_the_anchor(number: int) -> None:
    """Which image is called the anchor changes nothing: every group, every free position."""
    rows = [p.row for p in positions(number) if p.freedom][-3:]
    here = Setting(rows)
    before = here.averaged(here.u)
    draw = np.random.default_rng(number)
    for orbit, row in enumerate(rows):
        one = action(row)
        k = int(draw.integers(len(one.matrix)))
        turn, shift = torch.tensor(one.matrix[k]).double(), torch.tensor(one.shift[k])
        moved = here.u.clone()
        moved[orbit] = turn @ here.u[orbit] + shift
        after = here.averaged(moved)
        expected = before.clone()
        expected[orbit] = turn @ before[orbit]
        scale = 1 + float(before.abs().max())
        assert float((after - expected).abs().max()) < 1e-5 * scale
