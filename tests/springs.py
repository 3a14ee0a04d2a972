"""Cheap ASE calculators for tests: ``springs:morse`` pulls pairs towards 3.2 Å."""

from __future__ import annotations

import numpy as np
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.neighborlist import neighbor_list


class Morse(Calculator):
    """A Morse well for every pair within 6 Å; fails on helium, gives NaN for neon."""

    implemented_properties = ("energy", "free_energy", "forces", "stress")

    def calculate(self, atoms=None, properties=None, system_changes=None):
        super().calculate(atoms, properties, system_changes)
        if 2 in atoms.numbers:
            raise RuntimeError("no parameters for He")
        i, j, d, vectors = neighbor_list("ijdD", atoms, 6.0)
        well = np.exp(-2.5 * (d - 3.2))
        pairs = (well**2 - 2 * well) / 2
        slope = -2.5 * (well**2 - well)  # half of dE/dd: every pair is met twice
        pull = (slope / d)[:, None] * vectors
        forces = np.zeros((len(atoms), 3))
        np.add.at(forces, i, pull)
        np.add.at(forces, j, -pull)
        stress = np.einsum("pi,pj->ij", pull, vectors) / atoms.get_volume()
        energy = float(pairs.sum()) * (np.nan if 10 in atoms.numbers else 1.0)
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "forces": forces,
            "stress": stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]],
        }


def morse() -> Calculator:
    return Morse()


def emt() -> Calculator:
    return EMT()


def nothing() -> str:
    return "not a calculator"
