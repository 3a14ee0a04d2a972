"""Many structures -> conventional cells with their orbits, in parallel, failures counted."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from crystalctl.crystal.batch import Crystals, Layout
from crystalctl.crystal.lattice import standard_orientation
from crystalctl.crystal.orbits import Orbits
from crystalctl.symmetry.standard import LADDER_ANG, Standard, Structure, standardise_all
from crystalctl.symmetry.tables import Floats, Ints
from crystalctl.symmetry.workers import worker_pool
from crystalctl.symmetry.wyckoff import orbits_of

CHUNK = 64
"""Structures handed to a worker at a time."""
SERIAL_BELOW = 256
"""With fewer structures than this, starting worker processes costs more than it saves."""

Progress = Callable[[int, int], None]
"""Called with the number of structures done and the number in all."""


@dataclass(frozen=True)
class Detected:
    """The structures that could be described by orbits, and why the others could not.

    ``crystals``: conventional standard cells, atoms orbit by orbit, exactly ``orbits.place`` of
    their anchors. ``space_group`` (C,) int64. ``source`` (C,) int64: row of the input.
    ``symprec`` (C,) Å: the tolerance that found the group; ``moved`` (C,) Å: the farthest that an
    atom of the input had to move. ``failures``: (row of the input, reason).
    """

    crystals: Crystals
    orbits: Orbits
    space_group: Tensor
    source: Tensor
    symprec: Tensor
    moved: Tensor
    failures: list[tuple[int, str]]

    @property
    def reasons(self) -> dict[str, int]:
        """How many structures failed for each reason, most frequent first."""
        return dict(Counter(reason for _, reason in self.failures).most_common())


def detect(
    crystals: Crystals,
    *,
    ladder: Sequence[float] = LADDER_ANG,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Detected:
    """Group, conventional cell and orbits of every crystal of a batch, such as a dataset's.

    ``ladder``: tolerances in Å tried in turn. ``jobs``: processes (default: one per CPU). Primitive
    cells are several times faster than conventional ones. The result is on the CPU, in the dtype of
    the input.
    """
    structures = [
        (c.lattice[0].double().numpy(), c.frac.double().numpy(), c.species.numpy())
        for c in crystals.to("cpu").split()
    ]
    found: list[Standard | str] = []
    jobs = jobs or os.cpu_count() or 1
    work = _serial if jobs == 1 or len(structures) < SERIAL_BELOW else _parallel
    for part in work(structures, ladder, jobs):
        found += part
        if progress is not None:
            progress(len(found), len(structures))
    return pack(found, crystals.frac.dtype)


def _chunks(structures: Sequence[Structure]) -> list[Sequence[Structure]]:
    return [structures[i : i + CHUNK] for i in range(0, len(structures), CHUNK)]


def _serial(
    structures: Sequence[Structure], ladder: Sequence[float], jobs: int
) -> Iterator[list[Standard | str]]:
    for chunk in _chunks(structures):
        yield standardise_all(chunk, ladder)


def _parallel(
    structures: Sequence[Structure], ladder: Sequence[float], jobs: int
) -> Iterator[list[Standard | str]]:
    chunks = _chunks(structures)
    with worker_pool(min(jobs, len(chunks))) as pool:
        yield from pool.map(standardise_all, chunks, [ladder] * len(chunks))


def pack(found: Sequence[Standard | str], dtype: torch.dtype) -> Detected:
    """One batch of all structures that worked, from the answers of ``standardise_all``.

    The atoms are placed from their anchors.
    """
    failures = [(row, one) for row, one in enumerate(found) if isinstance(one, str)]
    good = [(row, one) for row, one in enumerate(found) if isinstance(one, Standard)]

    def packed(arrays: Sequence[Floats | Ints], shape: tuple[int, ...]) -> Tensor:
        return torch.from_numpy(np.concatenate(arrays) if arrays else np.zeros(shape))

    standards = [one for _, one in good]
    n_orbits = torch.tensor([len(s.positions) for s in standards], dtype=torch.int64)
    positions = packed([s.positions for s in standards], (0,)).long()
    orbits = orbits_of(positions, n_orbits)
    lattice = packed([s.lattice[None] for s in standards], (0, 3, 3)).double()
    anchors = packed([s.anchors for s in standards], (0, 3)).double()
    groups = torch.tensor([s.number for s in standards], dtype=torch.int64)
    crystals = Crystals(
        Layout(orbits.layout.n_atoms, groups, orbits),
        standard_orientation(lattice).to(dtype),
        orbits.place(anchors.to(dtype)),
        orbits.spread(packed([s.species for s in standards], (0,)).long()),
    )
    return Detected(
        crystals,
        orbits,
        groups,
        torch.tensor([row for row, _ in good], dtype=torch.int64),
        torch.tensor([s.symprec for s in standards], dtype=torch.float64),
        torch.tensor([s.moved for s in standards], dtype=torch.float64),
        failures,
    )
