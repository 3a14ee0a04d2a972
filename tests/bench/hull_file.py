"""The phases on the hull of files of `crystalctl data energies`, as one such file.

    python tests/bench/hull_file.py mp20-chgnet.jsonl mp52-chgnet.jsonl -o hull-mp-chgnet.jsonl.gz

What lies above the hull never changes an energy above it and is left out. The shipped
weights/hull-*.jsonl.gz are made like this.
"""

from __future__ import annotations

import argparse
import gzip
import json
from itertools import combinations
from pathlib import Path

from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition

from crystalctl.analysis.hull import KIND, Hull

Systems = dict[frozenset[str], list[PDEntry]]


def on_the_hull(systems: dict[frozenset[str], list[tuple[str, float]]]) -> Systems:
    """The stable phases of each chemical system, smaller systems first: they bound the larger."""
    stable: Systems = {}
    for elements in sorted(systems, key=lambda e: (len(e), sorted(e))):
        entries = [
            PDEntry(composition, energy * composition.num_atoms)
            for formula, energy in systems[elements]
            for composition in [Composition(formula)]
        ]
        ends = [
            entry
            for size in range(1, len(elements))
            for part in combinations(sorted(elements), size)
            for entry in stable.get(frozenset(part), [])
        ]
        if any(frozenset([e]) not in stable for e in elements) and len(elements) > 1:
            continue
        found = PhaseDiagram([*ends, *entries]).stable_entries
        stable[elements] = [entry for entry in entries if entry in found]
    return stable


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    hulls = [Hull.load(file) for file in options.files]
    calculators = {hull.calculator for hull in hulls}
    if len(calculators) > 1:
        parser.error(f"energies of several calculators: {calculators}")
    systems: dict[frozenset[str], list[tuple[str, float]]] = {}
    for hull in hulls:
        for elements, rows in hull.systems.items():
            systems.setdefault(elements, []).extend(rows)
    phases = {  # of equal energies one is enough
        (len(entry.elements), entry.composition.reduced_formula): entry.energy_per_atom
        for found in on_the_hull(systems).values()
        for entry in found
    }
    header = {"kind": KIND, "calculator": calculators.pop(), "phases": len(phases)}
    rows = sorted((*key, energy) for key, energy in phases.items())
    lines = [header, *({"formula": f, "energy_ev": round(e, 5), "reason": ""} for _, f, e in rows)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    # No time of making inside: the same energies give the same file.
    options.out.write_bytes(gzip.compress(text.encode(), mtime=0))
    total = sum(map(len, systems.values()))
    print(f"{len(phases)} of {total} structures are on the hull: {options.out}")


if __name__ == "__main__":
    main()
