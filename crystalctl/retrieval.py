"""Templates for a bare formula: votes of known structures whose elements are like its own.

Every known structure of the same stoichiometry and number of atoms votes for its template, its
elements exchanged for those asked for in the way that costs least, with the weight exp(-cost), and
where energies above the hull E are known, exp(-E / ``SOFTNESS``) besides. The cost of each exchange
is learnt (``training/metric.py``) and comes with the templates shipped beside
the weights, also for a dataset of the user. No torch here.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import permutations, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crystalctl.chosen import Begun, Chosen
from crystalctl.crystal.elements import MENDELEEV
from crystalctl.errors import DataError
from crystalctl.starts import Prototypes
from crystalctl.symmetry.assignments import lattice_points
from crystalctl.symmetry.normaliser import Orbits, canonical_orbits, equivalent_orbits
from crystalctl.symmetry.tables import tables

if TYPE_CHECKING:
    from crystalctl.data.standard import Standard

WIDTH = 6.0
"""Change of Mendeleev number that costs 1 where nothing is learnt."""
ENERGY_COLUMN = "e_above_hull"
SOFTNESS = 0.08
"""eV/atom; between 0.02 and infinity the best on MP-20 validation entries."""
UNKNOWN = 0.5
"""Weight of a structure without energy where others have one."""
KIND = "templates"
FORMAT_VERSION = 4
OLDER = {2, 3}
"""The same without prototypes, or without the sizes of their structures."""
SPARSE = 4.6
"""Size (``Prototypes``) above which atoms are too far apart for a crystal: databases hold some
thousand such cells, nearly all of one kind (Immm) and above 5.2; most others are below 3.8."""
_LEAST_VOTE = 1e-12
"""Where all votes are next to nothing."""
Ints = NDArray[np.int64]
Start = tuple[int, tuple[int, ...], tuple[int, ...]]
"""A prototype, its positions, and the elements on them."""
Sizes = list[tuple[float, float]]
"""Vote and size of structures."""


class Entry(NamedTuple):
    """One structure: its elements by number of atoms, its orbits, the weight of its vote, the
    number of its prototype, -1 = none, and its size, as of ``Prototypes``."""

    group: int
    elements: tuple[int, ...]
    rows: Ints
    species: Ints
    weight: float
    prototype: int
    size: float


@dataclass(frozen=True)
class Memory:
    """The templates of N structures.

    ``group`` and ``n_orbits`` (N,), ``rows`` and ``species`` (O,) of all orbits; ``cost``
    (101, 101): of exchanging one atomic number for another, row and column 0 unused. ``weight``
    (N,): of the vote of each structure, None = all 1. ``prototypes``: of these structures, which
    are then described in the order and setting of theirs.
    """

    group: Ints
    n_orbits: Ints
    rows: Ints
    species: Ints
    cost: NDArray[np.float64]
    weight: NDArray[np.float64] | None = None
    prototypes: Prototypes | None = None

    @staticmethod
    def of(standard: Standard, energy: NDArray[np.float64] | None = None) -> Memory:
        """The templates of a dataset's conventional cells. Raises ``DataError`` without any.

        ``energy``: above the hull, eV/atom, of each of its structures, NaN where unknown.
        """
        layout = standard.crystals.layout
        if layout.orbits is None or layout.space_group is None or not len(standard.source):
            raise DataError("the dataset holds no orbits", "make it again: crystalctl data prepare")
        return Memory(
            layout.space_group.numpy(),
            layout.orbits.n_orbits.numpy(),
            layout.orbits.position.numpy(),
            layout.orbits.at_anchors(standard.crystals.species).numpy(),
            plain_cost(),
            None if energy is None else _weight(energy[standard.source.numpy()]),
        )

    def save(self, path: Path) -> None:
        """Write the file that ``load`` reads."""
        from safetensors.numpy import save

        from crystalctl.io.structures import write_atomic

        tensors = {
            "group": self.group.astype(np.uint8),
            "n_orbits": self.n_orbits.astype(np.uint16),
            "rows": self.rows.astype(np.int16),
            "species": self.species.astype(np.uint8),
            "cost": self.cost.astype(np.float16),
        }
        tensors |= {} if self.weight is None else {"weight": self.weight.astype(np.float16)}
        tensors |= {} if self.prototypes is None else self.prototypes.tensors()
        header = {"kind": KIND, "version": str(FORMAT_VERSION)}
        write_atomic(path, save(tensors, header))

    @staticmethod
    def load(path: Path, *, cost: NDArray[np.float64] | None = None) -> Memory:
        """Read a file of templates, or the orbits of a prepared dataset, to which ``cost`` goes.

        Raises ``DataError`` when it is neither.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="np") as handle:
                header = handle.metadata() or {}
                if header.get("kind") != KIND:
                    return Memory._of_dataset(path, cost)
                if header.get("version") not in {str(v) for v in (*OLDER, FORMAT_VERSION)}:
                    raise ValueError(f"format {header.get('version')}, not {FORMAT_VERSION}")
                raw: dict[str, Any] = {k: handle.get_tensor(k) for k in list(handle.keys())}
        except (SafetensorError, ValueError, OSError) as error:
            raise DataError(
                f"{path} holds no templates ({error})",
                "use a file made by: crystalctl data prepare",
            ) from error
        prototypes = Prototypes.from_tensors(raw)
        real = {
            name: raw.pop(name).astype(np.float64) for name in ("cost", "weight") if name in raw
        }
        whole = {name: values.astype(np.int64) for name, values in raw.items()}
        return Memory(**whole, **real, prototypes=prototypes)

    @staticmethod
    def _of_dataset(path: Path, cost: NDArray[np.float64] | None) -> Memory:
        from crystalctl.data.datasets import Dataset

        dataset = Dataset.load(path)
        if dataset.standard is None:
            raise DataError(f"{path} holds no orbits", "make it again: crystalctl data prepare")
        energy = dataset.properties.get(ENERGY_COLUMN)
        memory = Memory.of(dataset.standard, None if energy is None else energy.double().numpy())
        return memory if cost is None else replace(memory, cost=cost)

    @cached_property
    def _ends(self) -> Ints:
        """Where the orbits of each structure end, (N,)."""
        return np.cumsum(self.n_orbits)

    @cached_property
    def elements(self) -> tuple[Ints, Ints, Ints]:
        """The elements of each structure, by their atoms in the primitive cell and atomic number.

        Returns where those of a structure begin (N + 1,), and of each its atoms and atomic number.
        """
        owner = np.repeat(np.arange(len(self.group)), self.n_orbits)
        pair, where = np.unique(owner * 128 + self.species, return_inverse=True)
        atoms = np.bincount(where, tables().multiplicity[self.rows]).astype(np.int64)
        points = np.array([0, *(lattice_points(group) for group in range(1, 231))])
        structure, z = pair // 128, pair % 128
        atoms //= points[self.group[structure]]
        order = np.lexsort((z, atoms, structure))
        first = np.searchsorted(structure, np.arange(len(self.group) + 1))
        return first, atoms[order], z[order]

    @cached_property
    def by_counts(self) -> dict[tuple[int, ...], list[int]]:
        """Atoms of each element, primitive cell, sorted -> the structures (``dense``) with them."""
        first, atoms, _ = self.elements
        counts, at = atoms.tolist(), first.tolist()
        found: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for structure in dense(self.prototypes, len(self.group)):
            found[tuple(counts[at[structure] : at[structure + 1]])].append(structure)
        return found

    def entries(self, counts: tuple[int, ...]) -> Iterator[Entry]:
        """The structures with so many atoms of their elements, in the primitive cell and sorted."""
        return map(self.entry, self.by_counts.get(counts, []))

    def entry(self, i: int) -> Entry:
        """The ``i``-th structure."""
        first, _, elements = self.elements
        here = slice(int(self._ends[i] - self.n_orbits[i]), int(self._ends[i]))
        return Entry(
            int(self.group[i]),
            tuple(elements[first[i] : first[i + 1]].tolist()),
            self.rows[here],
            self.species[here],
            1.0 if self.weight is None else float(self.weight[i]),
            -1 if self.prototypes is None else int(self.prototypes.which[i]),
            0.0 if self.prototypes is None else float(self.prototypes.size[i]),
        )

    def propose(
        self,
        composition: Mapping[int, int],
        n: int,
        *,
        groups: Sequence[int] | None = None,
        rows: Sequence[int] | None = None,
    ) -> list[tuple[Chosen, float]]:
        """As ``TemplateSource`` says."""
        # Canonical template -> its descriptions in the data, with the votes for each.
        votes: dict[Orbits, dict[Orbits, float]] = defaultdict(lambda: defaultdict(float))
        # Canonical template -> prototype, and the elements on its orbits -> who votes for it.
        starts: dict[Orbits, dict[Start, Sizes]] = defaultdict(lambda: defaultdict(list))
        for entry, swap, vote in self._voters(composition, groups, rows):
            there, species = entry.rows.tolist(), [swap[z] for z in entry.species.tolist()]
            pairs = tuple(sorted(zip(there, species, strict=True)))
            form = canonical_orbits(pairs)
            votes[form][pairs] += vote
            if entry.prototype >= 0 and (rows is None or sorted(rows) == sorted(there)):
                start = entry.prototype, tuple(there), tuple(species)
                starts[form][start].append((vote, entry.size))
        totals = {form: sum(v.values()) for form, v in votes.items()}
        ranked = sorted(totals.items(), key=lambda x: (-x[1], x[0]))
        return [
            (_written(votes[form], form, rows, starts_of(self.prototypes, starts[form])), total)
            for form, total in ranked[:n]
        ]

    def evidence(
        self,
        composition: Mapping[int, int],
        *,
        groups: Sequence[int] | None = None,
        rows: Sequence[int] | None = None,
    ) -> float:
        """As ``TemplateSource`` says."""
        return sum(vote for _, _, vote in self._voters(composition, groups, rows))

    def _voters(
        self,
        composition: Mapping[int, int],
        groups: Sequence[int] | None,
        rows: Sequence[int] | None,
    ) -> Iterator[tuple[Entry, dict[int, int], float]]:
        """Each structure that votes, the element of ``composition`` for each of its, its vote."""
        wanted = sorted(composition, key=lambda z: (composition[z], z))
        asked = None if rows is None else canonical_orbits((row, 1) for row in rows)
        orders = same_counts(wanted, composition)
        target = np.array(orders)
        for entry in self.entries(tuple(composition[z] for z in wanted)):
            if groups is not None and entry.group not in groups:
                continue
            there = entry.rows.tolist()
            if asked is not None and canonical_orbits((row, 1) for row in there) != asked:
                continue
            change = self.cost[target, list(entry.elements)].sum(1)
            best = int(change.argmin())
            swap = dict(zip(entry.elements, orders[best], strict=True))
            yield entry, swap, entry.weight * math.exp(-float(change[best]))


def _written(
    votes: Mapping[Orbits, float],
    template: Orbits,
    rows: Sequence[int] | None,
    starts: tuple[Begun, ...],
) -> Chosen:
    """A template in its commonest setting, or on the very positions asked for."""
    best = max(votes, key=lambda orbits: (votes[orbits], orbits))
    if rows is not None:
        best = next(
            orbits
            for orbits in equivalent_orbits(template)
            if [row for row, _ in orbits] == sorted(rows)
        )
    # What has no prototype has its part too.
    total = sum(votes.values()) or 1.0
    parts = tuple(begun._replace(part=begun.part / total) for begun in starts)
    return replace(Chosen.of(best), starts=parts)


def starts_of(prototypes: Prototypes | None, voters: Mapping[Start, Sizes]) -> tuple[Begun, ...]:
    """The prototypes of a template, those with the most votes first; these are the parts.

    Each is as large as those that voted for it are, the more alike the more.
    """
    found = []
    for (number, rows, species), voted in voters.items():
        assert prototypes is not None
        order = sorted(range(len(rows)), key=lambda i: (rows[i], species[i]))
        votes, sizes = np.array(voted).T
        size = float(np.average(sizes, weights=votes + _LEAST_VOTE))
        start = prototypes.start(number, rows, species, size=size, order=order)
        sites = [(rows[i], species[i]) for i in order]
        total = float(votes.sum())
        begun = Begun(tuple(r for r, _ in sites), tuple(z for _, z in sites), start, total)
        found.append((-total, (number, rows, species), begun))
    return tuple(begun for _, _, begun in sorted(found, key=lambda x: x[:2]))


def _weight(energy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of votes, from energies above the hull (eV/atom, NaN unknown): a Boltzmann factor."""
    known = np.exp(-np.clip(energy, 0, None) / SOFTNESS)
    return np.where(np.isnan(energy), UNKNOWN, known)


def dense(prototypes: Prototypes | None, n: int) -> list[int]:
    """Which of ``n`` structures are not known to have their atoms far apart: the others neither
    vote nor are a precedent."""
    size = np.zeros(n) if prototypes is None else prototypes.size
    return list(np.flatnonzero(size <= SPARSE).tolist())


def plain_cost() -> NDArray[np.float64]:
    """Costs (101, 101) without learning: |change of Mendeleev number| / ``WIDTH``."""
    numbers = np.array([0, *MENDELEEV], dtype=np.float64)
    return np.abs(numbers[:, None] - numbers) / WIDTH


def same_counts(wanted: Sequence[int], composition: Mapping[int, int]) -> list[tuple[int, ...]]:
    """All orders of the elements in which the sorted atom counts stay the same."""
    blocks: dict[int, list[int]] = defaultdict(list)
    for z in wanted:
        blocks[composition[z]].append(z)
    orders = product(*(permutations(blocks[count]) for count in sorted(blocks)))
    return [tuple(z for block in order for z in block) for order in orders]
