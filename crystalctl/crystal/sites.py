"""The nodes of a network that respects the space group: one per orbit, not one per atom.

The state of an atom of a symmetric crystal is that of its orbit, so only the anchors receive
messages, from all atoms of the primitive cell: O x P pairs instead of N x N in the conventional
cell. Everything here is in primitive fractional coordinates, in which centring needs no atoms.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from crystalctl.crystal.batch import Layout
from crystalctl.crystal.precision import full_precision


@dataclass(frozen=True)
class Sites:
    """The O orbits of C crystals with their P atoms in the primitive cells, orbit by orbit.

    ``layout``: orbits of each crystal. ``n_images`` (O,) int64 atoms of each orbit in the primitive
    cell; the first is the anchor. ``rotation`` (P, 3, 3) and ``translation`` (P, 3): primitive
    coordinates from the anchor's conventional ones. ``read`` (O, 3, 3): a displacement of the
    anchor in primitive coordinates -> its free conventional coordinates. ``free`` (O, 3) bool.
    ``back`` (P, 3, 3): a vector at an atom, in primitive coordinates -> the free conventional
    coordinates of its part along the position, seen from the anchor.
    """

    layout: Layout
    n_images: Tensor
    rotation: Tensor
    translation: Tensor
    read: Tensor
    free: Tensor
    back: Tensor

    @cached_property
    def orbit_idx(self) -> Tensor:
        """Orbit of each atom, (P,) int64."""
        rows = torch.arange(self.n_images.shape[0], device=self.n_images.device)
        return torch.repeat_interleave(rows, self.n_images, output_size=self.rotation.shape[0])

    @cached_property
    def anchor(self) -> Tensor:
        """Atom row of each anchor, (O,) int64."""
        return torch.cumsum(self.n_images, 0) - self.n_images

    @cached_property
    def atoms(self) -> Layout:
        """Atoms of each primitive cell."""
        count = torch.zeros_like(self.layout.n_atoms)
        return Layout(count.index_add_(0, self.layout.crystal_idx, self.n_images))

    @cached_property
    def degree(self) -> Tensor:
        """Number of pairs each orbit receives, (O,) int64."""
        return self.atoms.n_atoms[self.layout.crystal_idx]

    @cached_property
    def common_degree(self) -> int | None:
        """The degree of all orbits where it is one number."""
        return self.atoms.common_degree

    @cached_property
    def edges(self) -> tuple[Tensor, Tensor]:
        """Receiving orbit and sending atom of all pairs, each (E,) int64, by receiver."""
        total = sum(o * p for o, p in zip(self.layout.counts, self.atoms.counts, strict=True))
        rows = torch.arange(self.n_images.shape[0], device=self.n_images.device)
        receiver = torch.repeat_interleave(rows, self.degree, output_size=total)
        first = torch.cumsum(self.degree, 0) - self.degree
        position = torch.arange(total, device=rows.device) - first[receiver]
        return receiver, self.atoms.offsets[self.layout.crystal_idx][receiver] + position

    @cached_property
    def share(self) -> Tensor:
        """Part of the atoms of its crystal that each orbit has, (O, 1)."""
        return (self.n_images / self.degree)[:, None].to(self.rotation.dtype)

    @full_precision()
    def pull(self, vectors: Tensor) -> Tensor:
        """The mean over the group of a field, at the anchors: (P, 3) primitive -> (O, 3) free.

        With the values of any field f at all atoms this is the mean of R_g^-1 f(g x) over all
        operations g: they lead to each atom equally often, and those that lead to one atom differ
        by operations that leave the position alone, whose mean is in ``back``.
        Ref: Eq. 3, arXiv:2505.10994.
        """
        seen = torch.einsum("aij,aj->ai", self.back.to(vectors.dtype), vectors)
        sums = seen.new_zeros(len(self.n_images), 3).index_add(0, self.orbit_idx, seen)
        return sums / self.n_images[:, None].to(seen.dtype)

    @full_precision()
    def place(self, anchors: Tensor) -> Tensor:
        """All atoms (P, 3), any period, from the anchors (O, 3)."""
        rotation, translation = self.rotation, self.translation
        if rotation.dtype != anchors.dtype:
            rotation, translation = rotation.to(anchors.dtype), translation.to(anchors.dtype)
        return torch.einsum("aij,aj->ai", rotation, anchors[self.orbit_idx]) + translation
