"""Templates for a bare formula: votes of known structures whose elements are like its own.

Every known structure of the same stoichiometry and number of atoms votes for its template, its
elements exchanged for those asked for in the way that changes the Mendeleev numbers least, with the
weight exp(-sum |change| / ``WIDTH``). The structures come from a dataset of the user or from a
small file shipped with the weights. No torch here.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crystalctl.errors import DataError
from crystalctl.symmetry.assignments import lattice_points
from crystalctl.symmetry.tables import tables
from crystalctl.templating import Chosen

if TYPE_CHECKING:
    from crystalctl.data.standard import Standard

WIDTH = 6.0
"""Change of Mendeleev numbers, summed over the elements, over which a vote falls to 1/e."""
KIND = "templates"
FORMAT_VERSION = 1
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Memory:
    """The templates of N structures.

    ``group`` and ``n_orbits`` (N,), ``rows`` and ``species`` (O,) of all orbits; ``mendeleev``
    (101,) by atomic number, row 0 unused.
    """

    group: Ints
    n_orbits: Ints
    rows: Ints
    species: Ints
    mendeleev: NDArray[np.float64]

    @staticmethod
    def of(standard: Standard) -> Memory:
        """The templates of a dataset's conventional cells. Raises ``DataError`` without any."""
        from pymatgen.core import Element

        layout = standard.crystals.layout
        if layout.orbits is None or layout.space_group is None or not len(standard.source):
            raise DataError("the dataset holds no orbits", "make it again: crystalctl data prepare")
        numbers = [0.0] + [float(Element.from_Z(z).mendeleev_no or 0) for z in range(1, 101)]
        return Memory(
            layout.space_group.numpy(),
            layout.orbits.n_orbits.numpy(),
            layout.orbits.position.numpy(),
            layout.orbits.at_anchors(standard.crystals.species).numpy(),
            np.array(numbers),
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
            "mendeleev": self.mendeleev.astype(np.float32),
        }
        header = {"kind": KIND, "version": str(FORMAT_VERSION)}
        write_atomic(path, save(tensors, header))

    @staticmethod
    def load(path: Path) -> Memory:
        """Read a file of templates, or the orbits of a prepared dataset.

        Raises ``DataError`` when it is neither.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="np") as handle:
                if (handle.metadata() or {}).get("kind") != KIND:
                    return Memory._of_dataset(path)
                names = list(handle.keys())
                raw: dict[str, Any] = {name: handle.get_tensor(name) for name in names}
        except (SafetensorError, ValueError, OSError) as error:
            raise DataError(
                f"{path} holds no templates ({error})",
                "use a file made by: crystalctl data prepare",
            ) from error
        numbers = {k: v.astype(np.int64) for k, v in raw.items() if k != "mendeleev"}
        return Memory(**numbers, mendeleev=raw["mendeleev"].astype(np.float64))

    @staticmethod
    def _of_dataset(path: Path) -> Memory:
        from crystalctl.data.datasets import Dataset

        dataset = Dataset.load(path)
        if dataset.standard is None:
            raise DataError(f"{path} holds no orbits", "make it again: crystalctl data prepare")
        return Memory.of(dataset.standard)

    @cached_property
    def _by_counts(self) -> dict[tuple[int, ...], list[tuple[int, tuple[int, ...], Ints, Ints]]]:
        """Atoms of each element, sorted -> (group, elements in that order, rows, species)."""
        size = tables().multiplicity
        found: dict[tuple[int, ...], list[tuple[int, tuple[int, ...], Ints, Ints]]] = defaultdict(
            list
        )
        ends = np.cumsum(self.n_orbits)
        for group, start, end in zip(
            self.group.tolist(), (ends - self.n_orbits).tolist(), ends.tolist(), strict=True
        ):
            rows, species = self.rows[start:end], self.species[start:end]
            counts: dict[int, int] = defaultdict(int)
            for row, z in zip(rows.tolist(), species.tolist(), strict=True):
                counts[z] += int(size[row])
            points = lattice_points(group)
            order = sorted(counts, key=lambda z: (counts[z], z))
            key = tuple(counts[z] // points for z in order)
            found[key].append((group, tuple(order), rows, species))
        return found

    def propose(
        self,
        composition: Mapping[int, int],
        n: int,
        *,
        groups: Sequence[int] | None = None,
        rows: Sequence[int] | None = None,
    ) -> list[tuple[Chosen, float]]:
        """Up to ``n`` templates with their votes, the most first.

        ``composition``: Z -> atoms of the primitive cell; only templates of ``groups`` and, where
        given, on exactly the positions ``rows``.
        """
        wanted = sorted(composition, key=lambda z: (composition[z], z))
        key = tuple(composition[z] for z in wanted)
        votes: dict[Chosen, float] = defaultdict(float)
        orders = _same_counts(wanted, composition)
        target = self.mendeleev[np.array(orders)]
        for group, elements, positions, species in self._by_counts.get(key, []):
            if groups is not None and group not in groups:
                continue
            if rows is not None and sorted(positions.tolist()) != sorted(rows):
                continue
            change = np.abs(target - self.mendeleev[list(elements)]).sum(1)
            best = int(change.argmin())
            swap = dict(zip(elements, orders[best], strict=True))
            pairs = sorted(
                (r, swap[z]) for r, z in zip(positions.tolist(), species.tolist(), strict=True)
            )
            chosen = Chosen(group, tuple(r for r, _ in pairs), tuple(z for _, z in pairs))
            votes[chosen] += math.exp(-float(change[best]) / WIDTH)
        ranked = sorted(votes.items(), key=lambda item: (-item[1], item[0].key))
        return ranked[:n]


def _same_counts(wanted: Sequence[int], composition: Mapping[int, int]) -> list[tuple[int, ...]]:
    """All orders of the elements in which the sorted atom counts stay the same."""
    blocks: dict[int, list[int]] = defaultdict(list)
    for z in wanted:
        blocks[composition[z]].append(z)
    orders = product(*(permutations(blocks[count]) for count in sorted(blocks)))
    return [tuple(z for block in order for z in block) for order in orders]
