"""A template that was chosen: its orbits, and the known structures at which drawing may begin.

No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from crystalctl.symmetry.assignments import atoms_of
from crystalctl.symmetry.wyckoff import position

NOISE_PART = 0.1
"""Votes of a sample that begins at noise, where one that begins at the structure that all votes
for its template are for has 1."""
LEAST_PART = 1e-3
"""Of a structure whose own vote is next to nothing, as that of an unstable one is."""


class Begun(NamedTuple):
    """A template as a known structure has it: ``start`` as of ``Template``, ``part`` of the votes
    for the template that structures like it gave."""

    rows: tuple[int, ...]
    species: tuple[int, ...]
    start: tuple[float, ...]
    part: float


@dataclass(frozen=True, slots=True)
class Chosen:
    """A group and its positions, with the atomic number on each where it is prescribed.

    ``cell`` and ``start``: as of ``Template``, where a model or a known structure says them.
    ``starts``: the known structures of this template, the likeliest first. ``source``: who proposed
    it.
    """

    group: int
    rows: tuple[int, ...]
    species: tuple[int, ...] | None = None
    cell: tuple[float, ...] | None = None
    source: str = field(default="", compare=False)
    start: tuple[float, ...] | None = field(default=None, compare=False, repr=False)
    starts: tuple[Begun, ...] = field(default=(), compare=False, repr=False)

    @staticmethod
    def of(orbits: Sequence[tuple[int, int]]) -> Chosen:
        """The template of (table row, atomic number) pairs."""
        rows, species = zip(*sorted(orbits), strict=True)
        return Chosen(position(rows[0]).group, rows, species)

    def taken(self, n: int) -> list[tuple[Chosen, float]]:
        """What ``n`` samples of this template are, and the part of its votes that each has.

        By turns one begins at the next of the known structures, one at noise, until no structure
        is left: the likeliest is right more often than what noise leads to, a second one seldom.
        """
        plain = replace(self, starts=())
        turns: list[tuple[Chosen, float]] = []
        for k in range(n):
            number, noise = divmod(k, 2)
            if noise or number >= len(self.starts):
                turns.append((plain, NOISE_PART))
            else:
                begun = self.starts[number]
                known = replace(
                    plain,
                    rows=begun.rows,
                    species=begun.species,
                    start=begun.start,
                    source="prototype",
                )
                turns.append((known, max(begun.part, LEAST_PART)))
        total = sum(part for _, part in turns)
        return [(chosen, part / total) for chosen, part in turns]

    @property
    def likeliest(self) -> Chosen:
        """As the likeliest of the known structures has it, where there are any."""
        return self.taken(1)[0][0]

    @property
    def n_atoms(self) -> int:
        """Atoms of the primitive cell."""
        return atoms_of(self.rows)

    @property
    def key(self) -> str:
        """Names it for good."""
        elements = "" if self.species is None else ":" + ",".join(map(str, self.species))
        return f"{self.group}:{','.join(map(str, self.rows))}{elements}"
