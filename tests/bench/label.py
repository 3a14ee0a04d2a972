"""A dataset with the column ``formation_energy_per_atom``, from a file of ``data energies``.

    crystalctl data energies perov5.safetensors
    python tests/bench/label.py perov5.safetensors perov5-chgnet.jsonl -o labelled.safetensors

Energy of each structure less the mean of its elements', eV/atom, all by that calculator; unknown
where it has none of the structure or of an element.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

import torch

from crystalctl.crystal.elements import symbol_of
from crystalctl.data.datasets import Dataset

NAME = "formation_energy_per_atom"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("energies", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    given = parser.parse_args()
    dataset = Dataset.load(given.dataset)
    lines = [json.loads(line) for line in given.energies.read_text().splitlines()][1:]
    own = {line["element"]: line["energy_ev"] for line in lines if "element" in line}
    energy = {line["index"]: line["energy_ev"] for line in lines if "index" in line}
    labels = []
    for row, numbers in enumerate(dataset.crystals.species.split(dataset.crystals.layout.counts)):
        parts = [own.get(symbol_of(z)) for z in numbers.tolist()]
        known = energy.get(row) is not None and None not in parts
        labels.append(energy[row] - sum(parts) / len(parts) if known else math.nan)
    column = torch.tensor(labels)
    replace(dataset, properties={**dataset.properties, NAME: column}).save(given.out)
    print(f"{int(column.isfinite().sum())} of {len(column)} rows have {NAME} -> {given.out}")


if __name__ == "__main__":
    main()
