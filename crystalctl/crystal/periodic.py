"""Periodic arithmetic: wrapping, the nearest image, and all neighbours within a radius.

Nothing here assumes a reduced cell. A vector x of fractional coordinates f has |x| >= |f_i| h_i for
each axis i, where h_i is the spacing of the lattice planes that axis crosses; so which images can
lie within a radius follows from the spacings, however skewed the cell is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from crystalctl.crystal.batch import Layout
from crystalctl.crystal.precision import full_precision

THINNEST = 0.2
"""Å; cells with a smaller plane spacing (`data prepare` has none) get no neighbours at all."""
TIE = 1e-3
"""Å; neighbours this close to the last one admitted are admitted too."""


def wrap(frac: Tensor) -> Tensor:
    """Fractional coordinates moved into [0, 1); the float that rounds up to 1 becomes 0."""
    wrapped = frac - torch.floor(frac)
    return torch.where(wrapped >= 1, torch.zeros_like(wrapped), wrapped)


def plane_spacings(lattice: Tensor) -> Tensor:
    """Distance of neighbouring lattice planes along each reciprocal axis, Å: (C, 3, 3) -> (C, 3).

    0 for a cell without volume.
    """
    a, b, c = lattice.unbind(-2)
    normals = torch.stack(
        [torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], -2
    )
    volume = (a * normals[..., 0, :]).sum(-1).abs()
    area = torch.linalg.vector_norm(normals, dim=-1)
    spacings: Tensor = volume[..., None] / area.clamp_min(torch.finfo(area.dtype).tiny)
    return spacings


@dataclass(frozen=True)
class Neighbours:
    """Pairs (atom, image of an atom), sorted by receiver, the images of a pair consecutive.

    ``receiver``, ``sender``, ``pair`` (E,) int64: atom rows, and the row of ``Layout.edges``;
    ``image`` (E, 3): the cell the sender is in, as for pymatgen: its fractional coordinates plus
    ``image`` are where it is; ``vector`` (E, 3) Å from receiver to sender; ``distance`` (E,) Å.
    """

    receiver: Tensor
    sender: Tensor
    pair: Tensor
    image: Tensor
    vector: Tensor
    distance: Tensor

    def select(self, which: Tensor) -> Neighbours:
        """Those that a bool mask (E,) keeps."""
        rows = which.nonzero()[:, 0]
        return Neighbours(
            *(getattr(self, name).index_select(0, rows) for name in self.__dataclass_fields__)
        )

    @property
    def direction(self) -> Tensor:
        """Unit vectors (E, 3); 0 for atoms on one point."""
        return self.vector / self.distance.clamp_min(1e-6)[:, None]

    def share(self) -> Tensor:
        """1 / (number of images of the same pair), (E,): a sum over pairs of means over images."""
        count = torch.bincount(self.pair)
        return 1 / count[self.pair].to(self.distance.dtype)


@full_precision()
def neighbours(
    frac: Tensor, lattice: Tensor, layout: Layout, cutoff: float, *, nearest: int | None = None
) -> Neighbours:
    """All images of all atoms within ``cutoff`` Å of each atom, but for the atom itself.

    ``nearest`` keeps that many for each atom, and those that tie with the last of them: a choice
    among equals would not be invariant.
    """
    receiver, sender = layout.edges
    delta = frac[sender] - frac[receiver]
    offset = torch.round(delta)
    owner = layout.crystal_idx[receiver]
    spacing = plane_spacings(lattice)
    # |delta - offset| <= 1/2, so |n_i| <= cutoff / h_i + 1/2.
    reach = torch.floor(cutoff / spacing.clamp_min(THINNEST) + 0.5 + 1e-4).long()
    thin = spacing.amin(1) < THINNEST
    pair, shift = _grid(torch.where(thin[:, None], -1, reach)[owner])
    near = (delta - offset)[pair] + shift.to(delta.dtype)
    vector = torch.einsum("ei,eij->ej", near, lattice[owner[pair]])
    distance = torch.linalg.vector_norm(vector, dim=1)
    image = shift - offset[pair].long()
    itself = (receiver == sender)[pair] & (image == 0).all(1)
    found = Neighbours(receiver[pair], sender[pair], pair, image, vector, distance).select(
        (distance <= cutoff) & ~itself
    )
    return found if nearest is None else _nearest(found, nearest, layout.total_atoms)


@full_precision()
def nearest_image(delta: Tensor, lattice: Tensor) -> Tensor:
    """The shortest of all periodic images of a vector.

    ``delta`` (K, 3) fractional, ``lattice`` (K, 3, 3) of each row; (K, 3) in Å.
    """
    delta = delta - torch.round(delta)
    bound = torch.linalg.vector_norm(torch.einsum("ki,kij->kj", delta, lattice), dim=1)
    spacing = plane_spacings(lattice)
    reach = torch.floor(bound[:, None] / spacing.clamp_min(THINNEST) + 0.5 + 1e-4).long()
    reach = torch.where((spacing.amin(1) < THINNEST)[:, None], 0, reach)
    row, shift = _grid(reach)
    vector = torch.einsum("ki,kij->kj", delta[row] + shift.to(delta.dtype), lattice[row])
    length = vector.square().sum(1)
    best = torch.full_like(bound, torch.inf).scatter_reduce(0, row, length, "amin")
    # Of equally short ones the first: rows are consecutive, so it is where the count starts anew.
    candidate = (length == best[row]).nonzero()[:, 0]
    first = torch.ones_like(candidate, dtype=torch.bool)
    first[1:] = row[candidate][1:] != row[candidate][:-1]
    return vector[candidate[first]]


def _grid(reach: Tensor) -> tuple[Tensor, Tensor]:
    """All integer triples with |n_i| <= ``reach`` (K, 3) of each row: (row (G,), triple (G, 3)).

    A row of negative reach has none.
    """
    width = (2 * reach + 1).clamp(min=0)
    count = width.prod(1)
    row = torch.repeat_interleave(torch.arange(len(reach), device=reach.device), count)
    position = torch.arange(len(row), device=reach.device)
    position = position - (torch.cumsum(count, 0) - count)[row]
    wide = width[row]
    last = position % wide[:, 2]
    rest = torch.div(position, wide[:, 2], rounding_mode="floor")
    middle = rest % wide[:, 1]
    first = torch.div(rest, wide[:, 1], rounding_mode="floor")
    return row, torch.stack([first, middle, last], 1) - reach[row]


def _nearest(found: Neighbours, nearest: int, n_atoms: int) -> Neighbours:
    """The ``nearest`` ones of each receiver, ties included."""
    by_distance = torch.argsort(found.distance, stable=True)
    order = by_distance[torch.argsort(found.receiver[by_distance], stable=True)]
    degree = torch.bincount(found.receiver, minlength=n_atoms)
    first = F.pad(torch.cumsum(degree, 0), (1, 0))[:-1]
    full = degree >= nearest
    limit = found.distance.new_full((n_atoms,), torch.inf)
    limit[full] = found.distance[order[(first + nearest - 1)[full]]]
    return found.select(found.distance <= limit[found.receiver] + TIE)
