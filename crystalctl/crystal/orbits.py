"""Symmetry as data: which atoms of a batch are images of one anchor, and by which operation.

Atom i of an orbit stands at ``R_i f + t_i`` where f is the anchor, the first atom of the orbit. A
vector v at the anchor appears there as ``R_i v``; ``P_i`` leads back. With trivial orbits (every
atom its own, identity) everything here is the identity.

Everything is in fractional coordinates, as columns. Special positions have projections for R_i, so
P_i is not R_i^-1 but (projector on the tangent space) · g_i^-1, where g_i is the group operation
from anchor to atom: for every vector field with the symmetry of the crystal, the mean of P_i v_i is
its value at the anchor. The projector is orthogonal in every metric that the group leaves alone, so
no metric enters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from crystalctl.crystal.batch import Layout, atom_rows, sent
from crystalctl.crystal.periodic import wrap


@dataclass(frozen=True)
class Orbits:
    """The orbits of a packed batch of C crystals, A atoms, O orbits; atoms lie orbit by orbit.

    ``n_orbits`` (C,) int64 orbits of each crystal, ``multiplicity`` (O,) int64 atoms of each orbit.
    Per atom, float64: ``rotation`` R (A, 3, 3), ``translation`` t (A, 3), ``pull_back`` P (A, 3,
    3). ``position`` (O,) int64 row of the table of Wyckoff positions, -1 where there is none.
    """

    n_orbits: Tensor
    multiplicity: Tensor
    rotation: Tensor
    translation: Tensor
    pull_back: Tensor
    position: Tensor

    @staticmethod
    def trivial(layout: Layout) -> Orbits:
        """Every atom its own orbit under the identity."""
        device, atoms = layout.device, layout.total_atoms
        identity = torch.eye(3, dtype=torch.float64, device=device).expand(atoms, 3, 3)
        return Orbits(
            layout.n_atoms,
            torch.ones(atoms, dtype=torch.int64, device=device),
            identity,
            torch.zeros(atoms, 3, dtype=torch.float64, device=device),
            identity,
            torch.full((atoms,), -1, dtype=torch.int64, device=device),
        )

    @property
    def n_crystals(self) -> int:
        return int(self.n_orbits.shape[0])

    @property
    def total_orbits(self) -> int:
        return int(self.multiplicity.shape[0])

    @property
    def total_atoms(self) -> int:
        return int(self.translation.shape[0])

    @cached_property
    def anchor(self) -> Tensor:
        """Atom row of the anchor of each orbit, (O,) int64."""
        return torch.cumsum(self.multiplicity, 0) - self.multiplicity

    @cached_property
    def orbit_idx(self) -> Tensor:
        """Orbit of each atom row, (A,) int64."""
        rows = torch.arange(self.total_orbits, device=self.multiplicity.device)
        return torch.repeat_interleave(rows, self.multiplicity, output_size=self.total_atoms)

    @cached_property
    def orbit_crystal(self) -> Tensor:
        """Crystal of each orbit, (O,) int64."""
        rows = torch.arange(self.n_crystals, device=self.n_orbits.device)
        return torch.repeat_interleave(rows, self.n_orbits, output_size=self.total_orbits)

    @cached_property
    def layout(self) -> Layout:
        """The layout of all atoms."""
        atoms = torch.zeros_like(self.n_orbits)
        return Layout(atoms.index_add_(0, self.orbit_crystal, self.multiplicity))

    @cached_property
    def _casts(self) -> dict[torch.dtype, tuple[Tensor, Tensor, Tensor, Tensor]]:
        return {}

    def _as(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """R, t, P and 1/multiplicity per orbit in the dtype of the data, kept for the next call."""
        if dtype not in self._casts:
            parts = (self.rotation, self.translation, self.pull_back)
            rotation, translation, back = (part.to(dtype) for part in parts)
            self._casts[dtype] = rotation, translation, back, 1.0 / self.multiplicity.to(dtype)
        return self._casts[dtype]

    def place(self, anchors: Tensor) -> Tensor:
        """All atoms (A, 3) in [0, 1) from the anchors (O, 3); an anchor itself is placed anew.

        An anchor off its position is set on it, so placing after every step keeps the symmetry
        exact. R is whole numbers: whole cells added to an anchor change nothing.
        """
        rotation, translation, _, _ = self._as(anchors.dtype)
        atoms = torch.einsum("aij,aj->ai", rotation, anchors[self.orbit_idx])
        return wrap(atoms + translation)

    def push(self, vectors: Tensor) -> Tensor:
        """Vectors at the anchors (O, 3) -> R_i v at every atom (A, 3)."""
        rotation = self._as(vectors.dtype)[0]
        return torch.einsum("aij,aj->ai", rotation, vectors[self.orbit_idx])

    def back(self, vectors: Tensor) -> Tensor:
        """Vectors at the atoms (A, 3) -> each seen from its anchor, P_i v_i (A, 3), no mean."""
        return torch.einsum("aij,aj->ai", self._as(vectors.dtype)[2], vectors)

    def pull(self, vectors: Tensor) -> Tensor:
        """Vectors at the atoms (A, 3) -> the mean over each orbit seen from its anchor (O, 3)."""
        return self.mean(self.back(vectors))

    def project(self, vectors: Tensor) -> Tensor:
        """Vectors at the anchors (O, 3) -> their part along the free directions of the position."""
        back = self._as(vectors.dtype)[2]
        return torch.einsum("oij,oj->oi", back[self.anchor], vectors)

    def mean(self, rows: Tensor) -> Tensor:
        """Mean over the atoms of each orbit: (A, ...) -> (O, ...)."""
        out = rows.new_zeros(self.total_orbits, *rows.shape[1:])
        out = out.index_add(0, self.orbit_idx, rows)
        weight = self._as(rows.dtype)[3]
        return out * weight.view(-1, *[1] * (rows.dim() - 1))

    def spread(self, rows: Tensor) -> Tensor:
        """The value of each orbit on all its atoms: (O, ...) -> (A, ...)."""
        return rows[self.orbit_idx]

    def at_anchors(self, rows: Tensor) -> Tensor:
        """The value of each orbit's first atom: (A, ...) -> (O, ...)."""
        return rows[self.anchor]

    def index(self, which: Tensor) -> Orbits:
        """Orbits of crystals ``which`` (K,) int64, in that order."""
        orbits = atom_rows(Layout(self.n_orbits), which)
        atoms = atom_rows(self.layout, which)
        return Orbits(
            self.n_orbits[which],
            self.multiplicity[orbits],
            self.rotation[atoms],
            self.translation[atoms],
            self.pull_back[atoms],
            self.position[orbits],
        )

    @staticmethod
    def cat(parts: Sequence[Orbits]) -> Orbits:
        """Put several batches one after the other."""
        return Orbits(
            torch.cat([p.n_orbits for p in parts]),
            torch.cat([p.multiplicity for p in parts]),
            torch.cat([p.rotation for p in parts]),
            torch.cat([p.translation for p in parts]),
            torch.cat([p.pull_back for p in parts]),
            torch.cat([p.position for p in parts]),
        )

    def to(self, device: torch.device | str) -> Orbits:
        return Orbits(
            sent(self.n_orbits, device),
            sent(self.multiplicity, device),
            sent(self.rotation, device),
            sent(self.translation, device),
            sent(self.pull_back, device),
            sent(self.position, device),
        )
