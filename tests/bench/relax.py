"""What relaxing several crystals in one network call gains over one at a time, in one run.

    python tests/bench/relax.py --copies 4

Prototypes in cells 3 % too large, atoms moved by 0.05 Å; as many steps for both. Prints the
seconds of each and their ratio as JSON.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from typing import Any

from pymatgen.core import Lattice, Structure

from crystalctl.analysis.energy import load_potential
from crystalctl.analysis.relaxation import Settings, relax


def prototypes(copies: int) -> list[Structure]:
    """Rock salt, CsCl, zinc blende, perovskite and spinel cells, shaken with seeds."""
    found = []
    for cation, anion, a in (("Na", "Cl", 5.64), ("Mg", "O", 4.21), ("K", "Br", 6.6)):
        sites = [[0, 0, 0], [0.5, 0.5, 0.5]]
        found.append(Structure.from_spacegroup("Fm-3m", Lattice.cubic(a), [cation, anion], sites))
    found.append(Structure(Lattice.cubic(4.12), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]))
    found.append(
        Structure.from_spacegroup(
            "F-43m", Lattice.cubic(5.41), ["Zn", "S"], [[0, 0, 0], [0.25, 0.25, 0.25]]
        )
    )
    for a_site, b_site, a in (("Sr", "Ti", 3.9), ("Ba", "Zr", 4.2), ("K", "Ta", 4.0)):
        sites = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0]]
        found.append(
            Structure.from_spacegroup("Pm-3m", Lattice.cubic(a), [a_site, b_site, "O"], sites)
        )
    shaken = []
    for seed in range(copies):
        for structure in found:
            one = structure.get_primitive_structure()
            one.scale_lattice(one.volume * 1.03**3)
            one.perturb(0.05, seed=seed)
            shaken.append(one)
    return shaken


class Single:
    """The same calculator, one crystal a call."""

    batch = 1

    def __init__(self, potential: Any) -> None:
        self.name, self._potential = potential.name, potential

    def evaluate(self, frames: Any, *, gradients: bool) -> Any:
        return self._potential.evaluate(frames, gradients=gradients)


def seconds(potential: Any, structures: list[Structure], steps: int) -> tuple[float, int]:
    start = time.monotonic()
    calls = sum(r.steps for _, r in relax(potential, structures, Settings(max_steps=steps)))
    return time.monotonic() - start, calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--calculator", default="chgnet")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    potential = load_potential(options.calculator, options.device)
    structures = prototypes(options.copies)
    seconds(potential, structures[:2], 2)
    together, calls = seconds(potential, structures, options.steps)
    alone, same = seconds(Single(potential), structures, options.steps)
    print(
        json.dumps(
            {
                "structures": len(structures),
                "batch": potential.batch,
                "steps together, alone": [calls, same],
                "seconds together": round(together, 1),
                "seconds alone": round(alone, 1),
                "ratio": round(alone / together, 2),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
