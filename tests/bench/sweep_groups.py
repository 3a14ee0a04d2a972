"""All 230 groups, two structures each: do they come out with exactly their group?

    python tests/bench/sweep_groups.py [--weights W] [--n 2] [--steps 20] [--groups 1-230]

Generates through the API into a temporary folder, reads every CIF back with pymatgen, asks spglib
for the group at 0.01 and 0.001 Å, and prints what differs, what was set aside, and the time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import spglib
from pymatgen.core import Structure

from crystalctl import generate

warnings.filterwarnings("ignore")


def group_of(structure: Structure, symprec: float) -> int:
    """Group number that spglib finds, 0 for none."""
    numbers = [site.specie.Z for site in structure]
    cell = (structure.lattice.matrix, structure.frac_coords, numbers)
    found = spglib.get_symmetry_dataset(cell, symprec=symprec)
    return 0 if found is None else found.number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights")
    parser.add_argument("--n", type=int, default=2)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--groups", default="1-230")
    options = parser.parse_args()
    first, _, last = options.groups.partition("-")
    aside: Counter[str] = Counter()
    written, wrong, none, start = 0, [], [], time.monotonic()
    for number in range(int(first), int(last or first) + 1):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            result = generate(
                spacegroup=number,
                n=options.n,
                steps=options.steps,
                weights=options.weights,
                out=out,
            )
            aside.update(result.set_aside)
            files = sorted(out.glob("*.cif"))
            if not files:
                none.append(number)
            for file in files:
                structure = Structure.from_file(file)
                written += 1
                found = [group_of(structure, symprec) for symprec in (0.01, 0.001)]
                if found != [number, number]:
                    wrong.append((number, found))
    print(f"{written} structures, {time.monotonic() - start:.0f} s")
    print(f"set aside: {dict(aside)}; groups without a structure: {none}")
    print(f"written with another group: {wrong}")


if __name__ == "__main__":
    main()
