"""The conventional cells of a dataset, described by orbits: what symmetric models train on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from crystalctl.crystal.batch import Crystals, Layout
from crystalctl.symmetry.wyckoff import orbits_of

_PREFIX = "standard."


@dataclass(frozen=True)
class Standard:
    """Conventional standard cells of those of N crystals whose orbits were found.

    ``crystals``: S cells, their layout carrying group and orbits. ``source`` (S,) int64: the row of
    the dataset each belongs to, ascending.
    """

    crystals: Crystals
    source: Tensor

    def select(self, which: Tensor, n_rows: int) -> Standard:
        """Those of dataset rows ``which`` (K,) int64 out of ``n_rows``, numbered anew."""
        place = torch.full((n_rows,), -1, dtype=torch.int64)
        place[self.source] = torch.arange(len(self.source))
        found = place[which]
        return Standard(self.crystals.index(found[found >= 0]), (found >= 0).nonzero().flatten())

    def tensors(self) -> dict[str, Tensor]:
        """What a file keeps: positions and anchors; atoms and operations follow from them."""
        layout = self.crystals.layout
        if layout.orbits is None or layout.space_group is None:
            raise ValueError("standard cells without orbits")
        orbits = layout.orbits
        found = {
            "source": self.source.to(torch.int32),
            "space_group": layout.space_group.to(torch.uint8),
            "n_orbits": orbits.n_orbits.to(torch.int16),
            "position": orbits.position.to(torch.int16),
            "anchor": orbits.at_anchors(self.crystals.frac).float(),
            "species": orbits.at_anchors(self.crystals.species).to(torch.uint8),
            "lattice": self.crystals.lattice.float(),
        }
        return {_PREFIX + name: tensor for name, tensor in found.items()}

    @staticmethod
    def from_tensors(stored: Mapping[str, Tensor]) -> Standard | None:
        """The inverse of ``tensors``; None where a file has none of them."""
        if f"{_PREFIX}source" not in stored:
            return None
        raw = {k[len(_PREFIX) :]: v for k, v in stored.items() if k.startswith(_PREFIX)}
        crystals = from_anchors(
            raw["position"].long(),
            raw["n_orbits"].long(),
            space_group=raw["space_group"].long(),
            lattice=raw["lattice"],
            anchors=raw["anchor"],
            species=raw["species"].long(),
        )
        return Standard(crystals, raw["source"].long())


def from_anchors(
    position: Tensor,
    n_orbits: Tensor,
    *,
    space_group: Tensor,
    lattice: Tensor,
    anchors: Tensor,
    species: Tensor,
) -> Crystals:
    """Conventional cells from ``position``, ``anchors``, ``species`` of all orbits (O, ...).

    ``n_orbits`` and ``space_group`` (C,) int64, ``lattice`` (C, 3, 3) Å.
    """
    orbits = orbits_of(position, n_orbits)
    layout = Layout(orbits.layout.n_atoms, space_group, orbits)
    return Crystals(layout, lattice, orbits.place(anchors), orbits.spread(species))
