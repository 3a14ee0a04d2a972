"""Property optimisation of SyMat: how many samples come into the best 5, 10, 15 % of the data.

    python tests/bench/optimise.py WEIGHTS DATASET --n 100 [--references energies.json]

For plain samples and for samples moved towards the goal: the property as the model predicts it from
the finished structure and, with ``--references`` (element -> eV/atom of the element itself), the
formation energy that CHGNet gives; validity of both. The thresholds are quantiles of the labels of
DATASET, which is what the weights were trained on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from crystalctl.analysis.energy import energies_per_atom, load_potential
from crystalctl.analysis.validity import invalid_reason
from crystalctl.checkpoint import load_model
from crystalctl.crystal.batch import Crystals, Target
from crystalctl.crystal.elements import symbol_of
from crystalctl.crystal.goal import Goal
from crystalctl.data.datasets import Dataset
from crystalctl.diffusion.noise import NoiseSource

SHARES = (5, 10, 15)


def formation_energies(crystals: Crystals, references: dict[str, float]) -> list[float | None]:
    """CHGNet's, eV/atom; None where an element has no reference or CHGNet no answer."""
    from ase import Atoms

    frames, parts = [], crystals.split()
    for one in parts:
        cell, frac = one.lattice[0].numpy(), one.frac.numpy()
        frames.append(Atoms(one.species.numpy(), scaled_positions=frac, cell=cell, pbc=True))
    found: list[float | None] = []
    for one, energy in zip(parts, energies_per_atom(load_potential("chgnet"), frames), strict=True):
        own = [references.get(symbol_of(z)) for z in one.species.tolist()]
        known = isinstance(energy, float) and None not in own
        found.append(energy - float(np.mean(own)) if known else None)
    return found


def rates(values: list[float | None], limits: dict[int, float], sign: int) -> str:
    """Percent of all samples within each limit; a sample without a value is a failure."""
    hits = {
        share: np.mean([v is not None and sign * v <= sign * limit for v in values])
        for share, limit in limits.items()
    }
    known = [v for v in values if v is not None]
    shown = "  ".join(f"best {share} %: {100 * hit:5.1f} %" for share, hit in hits.items())
    return f"{shown}  mean {np.mean(known):7.3f}  best {sign * min(sign * v for v in known):7.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--maximize", action="store_true")
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--references", type=Path, default=None)
    given = parser.parse_args()
    model = load_model(given.weights, task="generate").model
    name, sign = model.config.property, -1 if given.maximize else 1
    labels = Dataset.load(given.dataset).properties[name]
    known = sign * labels[labels.isfinite()].double()
    limits = {s: sign * float(torch.quantile(known, s / 100)) for s in SHARES}
    print(f"{name}: {len(known)} labels, limits {limits}")
    references = json.loads(given.references.read_text()) if given.references else None
    direction = "maximize" if given.maximize else "minimize"
    for title, goal in (("plain", None), (direction, Goal(name, direction))):
        noise = NoiseSource(given.seed, torch.arange(given.n))
        made = model.sample([Target(goal=goal)] * given.n, noise, steps=given.steps)
        valid = [
            not invalid_reason(one.lattice[0].double().numpy(), one.frac.double().numpy())
            for one in made.split()
        ]
        print(f"{title}: structurally valid {100 * np.mean(valid):.1f} %")
        print("  predicted ", rates(model.predicted(made).tolist(), limits, sign))
        if references:
            print("  CHGNet    ", rates(formation_energies(made, references), limits, sign))


if __name__ == "__main__":
    main()
