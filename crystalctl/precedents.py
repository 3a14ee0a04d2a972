"""What is known like a template with elements: how likely is it to be a compound? No torch here.

A new composition in the template of a compound whose elements are like its own is often stable, one
that resembles nothing hardly ever (docs/guide/generate.md has the numbers). The same idea:
Hautier et al., Inorg. Chem. 50, 656 (2011).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from crystalctl.chosen import Begun, Chosen
from crystalctl.retrieval import Ints, Memory, Sizes, Start, same_counts, starts_of
from crystalctl.symmetry.assignments import atoms_of
from crystalctl.symmetry.normaliser import Orbits, canonical_orbits


class Precedent(NamedTuple):
    """Of one template with elements.

    ``known``: whether a structure has these elements on these positions. ``likeness``: the largest
    vote for the template among structures of other elements, 0 to 1. ``starts``: the prototype of
    the most alike, if any has one.
    """

    known: bool
    likeness: float
    starts: tuple[Begun, ...]


class Precedents:
    """The structures of ``memory`` by their positions."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self._by_positions: dict[tuple[tuple[int, ...], int], dict[Orbits, Ints]] = {}

    def of(self, chosen: Chosen) -> Precedent:
        """What is known like a template, whose elements are given."""
        assert chosen.species is not None
        memory = self.memory
        composition = _composition(chosen)
        wanted = sorted(composition, key=lambda z: (composition[z], z))
        alike = self._alike(tuple(composition[z] for z in wanted), chosen.group, chosen.rows)
        first, _, elements = memory.elements
        theirs = elements[first[alike][:, None] + np.arange(len(wanted))]
        orders = np.array(same_counts(wanted, composition))
        change = memory.cost[orders[:, None], theirs].sum(2)
        weight = 1.0 if memory.weight is None else memory.weight[alike]
        votes = np.exp(-change.min(0)) * weight
        same = (theirs == wanted).all(1)
        form = canonical_orbits(zip(chosen.rows, chosen.species, strict=True))
        known, likeness = False, 0.0
        starts: dict[Start, Sizes] = {}
        # The most alike first: what comes later is looked at only for what is still missing.
        for i in np.argsort(-votes, kind="stable").tolist():
            if starts and (known if same[i] else likeness):
                continue
            entry = memory.entry(int(alike[i]))
            swap = dict(zip(entry.elements, orders[change[:, i].argmin()].tolist(), strict=True))
            there, species = entry.rows.tolist(), [swap[z] for z in entry.species.tolist()]
            if canonical_orbits(zip(there, species, strict=True)) != form:
                continue
            if same[i]:
                known = True
            else:
                likeness = max(likeness, float(votes[i]))
            if entry.prototype >= 0 and not starts:
                assert memory.prototypes is not None
                of_it = memory.prototypes.which[alike] == entry.prototype
                sizes = zip(votes[of_it], memory.prototypes.size[alike[of_it]], strict=True)
                starts[entry.prototype, tuple(there), tuple(species)] = list(sizes)
        return Precedent(known, likeness, starts_of(memory.prototypes, starts))

    def _alike(self, counts: tuple[int, ...], group: int, rows: Sequence[int]) -> Ints:
        """The crystals with so many atoms of their elements on positions like ``rows``."""
        memory = self.memory
        if (counts, group) not in self._by_positions:
            kinds: dict[Orbits, list[int]] = defaultdict(list)
            for i in memory.by_counts.get(counts, []):
                if memory.group[i] == group:
                    there = memory.entry(i).rows.tolist()
                    kinds[canonical_orbits((row, 1) for row in there)].append(i)
            found = {form: np.array(structures) for form, structures in kinds.items()}
            self._by_positions[counts, group] = found
        form = canonical_orbits((row, 1) for row in rows)
        return self._by_positions[counts, group].get(form, np.array([], dtype=np.int64))


def _composition(chosen: Chosen) -> dict[int, int]:
    """Atoms of each element in the primitive cell of a template."""
    assert chosen.species is not None
    found: dict[int, int] = defaultdict(int)
    for row, z in zip(chosen.rows, chosen.species, strict=True):
        found[z] += atoms_of([row])
    return found
