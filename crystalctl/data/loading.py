"""Batches for training: shuffled by seed and epoch, shared among processes, cut by cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from crystalctl.crystal.batch import Crystals, atom_rows


@dataclass(frozen=True)
class Chunk:
    """Part of a batch that one network call takes. ``place`` (K,) is its position in the batch."""

    crystals: Crystals
    place: Tensor


@dataclass(frozen=True)
class Batch:
    """One optimiser step: this process's chunks, and the size of the whole batch."""

    chunks: list[Chunk]
    n_crystals: int
    n_atoms: int


class Loader:
    """Cuts resident crystals into batches.

    ``chunk_cost`` bounds the ordered atom pairs of one network call; with several processes each
    takes every ``world``-th crystal of a batch, by size, so that all have the same work.
    """

    def __init__(
        self,
        crystals: Crystals,
        *,
        batch_size: int,
        chunk_cost: int,
        seed: int,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.resident = crystals.to(device)
        self.layout = crystals.layout
        self.device = device
        self.batch_size = max(batch_size, world)
        self.chunk_cost = chunk_cost
        self.seed = seed
        self.rank, self.world = rank, world

    @property
    def n_batches(self) -> int:
        """Batches in an epoch; a rest too small for all processes joins the batch before it."""
        n, size = self.layout.n_crystals, self.batch_size
        return max(1, n // size + (n % size >= self.world))

    def epoch(self, number: int, skip: int = 0) -> Iterator[Batch]:
        """Batches of epoch ``number``, the first ``skip`` left out."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        order = torch.randperm(self.layout.n_crystals, generator=generator)
        for k in range(skip, self.n_batches):
            end = None if k == self.n_batches - 1 else (k + 1) * self.batch_size
            yield self.batch(order[k * self.batch_size : end])

    def batch(self, rows: Tensor) -> Batch:
        """The batch of dataset ``rows`` (K,)."""
        sizes = self.layout.n_atoms[rows]
        place = torch.argsort(self.layout.pair_counts[rows], stable=True)[self.rank :: self.world]
        cost = torch.cumsum(self.layout.pair_counts[rows][place], 0)
        number = torch.div(cost - 1, self.chunk_cost, rounding_mode="floor")
        lengths = torch.unique_consecutive(number, return_counts=True)[1].tolist()
        chunks = [Chunk(self._gather(rows[part]), part) for part in place.split(lengths)]
        return Batch(chunks, len(rows), int(sizes.sum()))

    def _gather(self, rows: Tensor) -> Crystals:
        """Resident crystals ``rows``, indexed from the host: no wait for the device."""
        atoms = atom_rows(self.layout, rows).to(self.device, non_blocking=True)
        layout = self.layout.index(rows).to(self.device)
        which = rows.to(self.device, non_blocking=True)
        return Crystals(
            layout,
            self.resident.lattice[which],
            self.resident.frac[atoms],
            self.resident.species[atoms],
            None if self.resident.labels is None else self.resident.labels[which],
        )
