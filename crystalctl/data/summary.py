"""Facts about a prepared dataset, JSON-able, for ``crystalctl data info``."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from crystalctl.crystal.lattice import volume
from crystalctl.data.datasets import SPLITS, Dataset


def count_reasons(rejected: list[dict[str, Any]]) -> dict[str, int]:
    """Number of rejected rows by reason, most frequent first."""
    return dict(Counter(item["reason"] for item in rejected).most_common())


def describe(dataset: Dataset) -> dict[str, Any]:
    """Counts and ranges of a dataset as plain numbers, strings, lists and dictionaries."""
    crystals = dataset.crystals
    n_atoms = crystals.layout.n_atoms
    per_atom = volume(crystals.lattice) / n_atoms
    meta = dict(dataset.meta)
    rejected = meta.pop("rejected", [])
    by_group = Counter(dataset.space_group.tolist())
    return {
        "structures": len(dataset),
        "atoms": int(n_atoms.sum()),
        "splits": {
            name or "none": count
            for code, name in enumerate(SPLITS)
            if (count := int((dataset.split == code).sum()))
        },
        "n_atoms": dict(sorted(Counter(n_atoms.tolist()).items())),
        "volume_per_atom_ang3": _range(per_atom),
        "elements": _elements(dataset),
        "space_groups": dict(by_group.most_common()),
        "properties": {
            name: {"count": int((~values.isnan()).sum()), **_range(values[~values.isnan()])}
            for name, values in dataset.properties.items()
        },
        "rejected": count_reasons(rejected),
        "rejected_rows": rejected,
        "meta": meta,
    }


def _elements(dataset: Dataset) -> dict[str, int]:
    """Element -> number of structures that contain it, most frequent first."""
    from ase.data import chemical_symbols

    crystals = dataset.crystals
    present = torch.zeros(len(dataset), 256, dtype=torch.bool)
    present[crystals.layout.crystal_idx, crystals.species] = True
    counts = {chemical_symbols[z]: int(n) for z, n in enumerate(present.sum(0).tolist()) if n}
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _range(values: torch.Tensor) -> dict[str, float]:
    if not len(values):
        return {}
    values = values.double()
    return {
        "min": float(values.min()),
        "median": float(values.median()),
        "mean": float(values.mean()),
        "max": float(values.max()),
    }
