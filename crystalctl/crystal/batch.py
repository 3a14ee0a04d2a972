"""Crystals as packed rows: all atoms of all crystals one after the other, no padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from crystalctl.crystal.goal import Goal
    from crystalctl.crystal.orbits import Orbits

MAX_Z = 100
"""Highest atomic number; one-hot species use index ``Z - 1`` of 100."""


@dataclass(frozen=True)
class Template:
    """A space group and which of its Wyckoff positions are occupied, by which element.

    ``positions`` are rows of the table of all positions, one for each orbit, ascending;
    ``species`` the atomic number on each, None when the model decides. ``cell``: a, b, c in Å and
    the angles in degrees of the conventional cell, for families that draw it before the positions.
    ``start``: a structure near which to look, six logarithms of its conventional cell
    (``to_family6``), then the three coordinates of each anchor.
    """

    space_group: int
    positions: tuple[int, ...]
    species: tuple[int, ...] | None = None
    cell: tuple[float, ...] | None = None
    start: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Target:
    """One structure asked for; ``None`` leaves the choice to the model.

    ``composition`` maps atomic number to the number of atoms in the cell, ``n_atoms`` is the number
    of atoms in the cell (the primitive one where there is a ``template``), ``elements`` the atomic
    numbers a generated crystal may contain, ``goal`` a property it should have.
    """

    composition: Mapping[int, int] | None = None
    n_atoms: int | None = None
    template: Template | None = None
    elements: frozenset[int] | None = None
    goal: Goal | None = None

    def species(self) -> list[int]:
        """Atomic numbers of the atoms of ``composition``, grouped by element in the order given."""
        return [z for z, count in (self.composition or {}).items() for _ in range(count)]


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """``tensor`` on another device; the host waits only for what comes back to it."""
    return tensor.to(device, non_blocking=torch.device(device).type != "cpu")


@dataclass(frozen=True)
class Layout:
    """How many atoms each crystal has and, where known, its symmetry: fixed along a trajectory.

    ``n_atoms`` and ``space_group`` are (C,) int64. With ``orbits`` the atoms lie orbit by orbit in
    conventional standard cells. ``edges`` is built once and shared by all layers and steps.
    """

    n_atoms: Tensor
    space_group: Tensor | None = None
    orbits: Orbits | None = None

    @cached_property
    def counts(self) -> list[int]:
        """Number of atoms of each crystal as Python integers."""
        return [int(n) for n in self.n_atoms.tolist()]

    @property
    def n_crystals(self) -> int:
        return int(self.n_atoms.shape[0])

    @cached_property
    def total_atoms(self) -> int:
        return sum(self.counts)

    @cached_property
    def total_edges(self) -> int:
        return sum(n * n for n in self.counts)

    @property
    def device(self) -> torch.device:
        return self.n_atoms.device

    @cached_property
    def offsets(self) -> Tensor:
        """First atom row of each crystal, (C,) int64."""
        return torch.cumsum(self.n_atoms, 0) - self.n_atoms

    @cached_property
    def crystal_idx(self) -> Tensor:
        """Crystal of each atom row, (A,) int64."""
        index = torch.arange(self.n_crystals, device=self.device)
        return torch.repeat_interleave(index, self.n_atoms, output_size=self.total_atoms)

    @cached_property
    def atom_idx(self) -> Tensor:
        """Number of each atom within its crystal, from 0, (A,) int64."""
        return torch.arange(self.total_atoms, device=self.device) - self.offsets[self.crystal_idx]

    @cached_property
    def degree(self) -> Tensor:
        """Number of pairs each atom receives, (A,) int64."""
        return self.n_atoms[self.crystal_idx]

    @cached_property
    def common_degree(self) -> int | None:
        """The degree of all atoms where it is one number."""
        return self.counts[0] if len(set(self.counts)) == 1 else None

    @cached_property
    def pair_counts(self) -> Tensor:
        """What a network pays for each crystal, (C,) int64: pairs, at most, of receiver, sender."""
        receivers = self.n_atoms if self.orbits is None else self.orbits.n_orbits
        return receivers * self.n_atoms

    @cached_property
    def edges(self) -> tuple[Tensor, Tensor]:
        """Receiver and sender rows of all ordered pairs, self included, each (E,) int64.

        Pairs are sorted by receiver, so those of one atom are ``n`` consecutive rows.
        """
        degree = self.degree
        rows = torch.arange(self.total_atoms, device=self.device)
        receiver = torch.repeat_interleave(rows, degree, output_size=self.total_edges)
        first = torch.cumsum(degree, 0) - degree
        position = torch.arange(self.total_edges, device=self.device) - first[receiver]
        return receiver, self.offsets[self.crystal_idx][receiver] + position

    def to(self, device: torch.device | str) -> Layout:
        """On another device; the counts come along, so no one has to ask the device for them."""
        moved = Layout(
            sent(self.n_atoms, device),
            None if self.space_group is None else sent(self.space_group, device),
            None if self.orbits is None else self.orbits.to(device),
        )
        moved.__dict__["counts"] = self.counts
        return moved

    def renewed(self) -> Layout:
        """The same, without symmetry, in tensors of its own: those of inference mode take no part
        in gradients."""
        copy = Layout(self.n_atoms.clone())
        copy.__dict__["counts"] = self.counts
        return copy

    def index(self, which: Tensor) -> Layout:
        """Crystals number ``which`` (K,) int64, in that order."""
        return Layout(
            self.n_atoms[which],
            None if self.space_group is None else self.space_group[which],
            None if self.orbits is None else self.orbits.index(which),
        )

    @staticmethod
    def cat(parts: Sequence[Layout]) -> Layout:
        """Put several one after the other; the symmetry is kept where all parts have one."""
        groups = [p.space_group for p in parts if p.space_group is not None]
        orbits = [p.orbits for p in parts if p.orbits is not None]
        return Layout(
            torch.cat([p.n_atoms for p in parts]),
            torch.cat(groups) if len(groups) == len(parts) else None,
            type(orbits[0]).cat(orbits) if len(orbits) == len(parts) else None,
        )


@dataclass(frozen=True)
class Crystals:
    """Physical crystals, packed.

    ``lattice`` (C, 3, 3) in Å with rows a, b, c, so Cartesian = frac @ lattice; ``frac`` (A, 3)
    fractional coordinates in [0, 1); ``species`` (A,) int64 atomic numbers. ``labels`` (C,): a
    property that a model learns, NaN where unknown; None where there is nothing to learn.
    """

    layout: Layout
    lattice: Tensor
    frac: Tensor
    species: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return self.layout.n_crystals

    @staticmethod
    def cat(parts: Sequence[Crystals]) -> Crystals:
        """Put several batches one after the other; labels are kept where all parts have them."""
        labels = [p.labels for p in parts if p.labels is not None]
        return Crystals(
            Layout.cat([p.layout for p in parts]),
            torch.cat([p.lattice for p in parts]),
            torch.cat([p.frac for p in parts]),
            torch.cat([p.species for p in parts]),
            torch.cat(labels) if len(labels) == len(parts) else None,
        )

    def index(self, which: Tensor) -> Crystals:
        """Crystals number ``which`` (K,) int64, in that order."""
        atoms = atom_rows(self.layout, which)
        return Crystals(
            self.layout.index(which),
            self.lattice[which],
            self.frac[atoms],
            self.species[atoms],
            None if self.labels is None else self.labels[which],
        )

    def split(self) -> list[Crystals]:
        """One batch of a single crystal for each crystal, without labels."""
        return [
            Crystals(layout, lattice, frac, species)
            for layout, lattice, frac, species in zip(
                [self.layout.index(row) for row in torch.arange(len(self)).split(1)],
                self.lattice.split(1),
                self.frac.split(self.layout.counts),
                self.species.split(self.layout.counts),
                strict=True,
            )
        ]

    def to(self, device: torch.device | str) -> Crystals:
        return Crystals(
            self.layout.to(device),
            sent(self.lattice, device),
            sent(self.frac, device),
            sent(self.species, device),
            None if self.labels is None else sent(self.labels, device),
        )

    def replace(self, **fields: Tensor) -> Crystals:
        """A copy with some fields exchanged."""
        return replace(self, **fields)  # type: ignore[arg-type]


def atom_rows(layout: Layout, which: Tensor) -> Tensor:
    """Packed atom rows of crystals ``which`` (K,), in that order."""
    count = layout.n_atoms[which]
    first = torch.cumsum(count, 0) - count
    shift = layout.offsets[which] - first
    rows = torch.arange(int(count.sum()), device=count.device)
    return rows + torch.repeat_interleave(shift, count)
