"""What a model must remember of its training data: sizes, elements, formula units per cell."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from crystalctl.crystal.batch import Crystals, Layout


@dataclass(frozen=True)
class Statistics:
    """Counts over a dataset, JSON-able.

    ``n_atoms``: atoms in the cell -> crystals. ``elements``: atomic numbers that occur.
    ``formula_units``: "E:m" -> {Z: crystals}, for crystals of E elements with m atoms in the
    reduced formula; "*:m" and "*:*" pool them. ``templates``: "group:row,row" (the Wyckoff
    positions, rows of their table, ascending) -> crystals, where orbits are known.
    """

    n_crystals: int = 0
    max_atoms: int = 0
    elements: tuple[int, ...] = ()
    n_atoms: Mapping[int, int] = field(default_factory=dict)
    formula_units: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    templates: Mapping[str, int] = field(default_factory=dict)

    @staticmethod
    def of(crystals: Crystals, symmetry: Layout | None = None) -> Statistics:
        """Count over ``crystals``; ``symmetry``: their layout in conventional cells with orbits."""
        units: dict[str, Counter[int]] = {}
        for numbers in crystals.species.split(crystals.layout.counts):
            amounts = torch.unique(numbers, return_counts=True)[1].tolist()
            z = math.gcd(*amounts)
            size = len(numbers) // z
            for key in (f"{len(amounts)}:{size}", f"*:{size}", "*:*"):
                units.setdefault(key, Counter())[z] += 1
        return Statistics(
            n_crystals=len(crystals),
            max_atoms=max(crystals.layout.counts),
            elements=tuple(torch.unique(crystals.species).tolist()),
            n_atoms=dict(sorted(Counter(crystals.layout.counts).items())),
            formula_units={key: dict(sorted(units[key].items())) for key in sorted(units)},
            templates={} if symmetry is None else _templates(symmetry),
        )

    def draw_n_atoms(self, uniform: Tensor) -> Tensor:
        """Atom counts drawn from the data: (K,) numbers in [0, 1) -> (K,) int64."""
        sizes = torch.tensor(list(self.n_atoms))
        share = torch.cumsum(torch.tensor(list(self.n_atoms.values()), dtype=torch.float64), 0)
        return sizes[torch.searchsorted(share, uniform.double() * share[-1], right=True)]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "n_crystals": self.n_crystals,
            "max_atoms": self.max_atoms,
            "elements": list(self.elements),
            "n_atoms": {str(k): v for k, v in self.n_atoms.items()},
            "formula_units": {
                key: {str(z): count for z, count in row.items()}
                for key, row in self.formula_units.items()
            },
            "templates": dict(self.templates),
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Statistics:
        """The inverse of ``to_dict``."""
        return Statistics(
            n_crystals=int(data["n_crystals"]),
            max_atoms=int(data["max_atoms"]),
            elements=tuple(data["elements"]),
            n_atoms={int(k): int(v) for k, v in data["n_atoms"].items()},
            formula_units={
                key: {int(z): int(count) for z, count in row.items()}
                for key, row in data["formula_units"].items()
            },
            templates={key: int(n) for key, n in data.get("templates", {}).items()},
        )


def _templates(layout: Layout) -> dict[str, int]:
    """Count the templates of crystals with orbits, most frequent first."""
    if layout.orbits is None or layout.space_group is None:
        return {}
    rows = layout.orbits.position.split(layout.orbits.n_orbits.tolist())
    found = Counter(
        f"{group}:" + ",".join(str(row) for row in sorted(here.tolist()))
        for group, here in zip(layout.space_group.tolist(), rows, strict=True)
    )
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))
