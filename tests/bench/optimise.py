"""Property optimisation: how many samples come into the best 5, 10, 15 % of the data.

    python tests/bench/optimise.py WEIGHTS DATASET --n 100 --strengths 1,3 [--energies FILE.jsonl]

For plain samples and for samples moved towards the goal (SyMat: in latent space; DiffCSP: by
guidance): the property as the model predicts it from the finished structure and, with
``--energies`` (a file of ``crystalctl data energies``, for what it says of the elements), the
formation energy that CHGNet gives; what of them is valid, and how many formulas there are. The
thresholds are quantiles of the labels of DATASET, which is what the weights were trained on. A
sample that is not structurally valid is a failure, whatever its property. With ``--target VALUE``
instead of thresholds: the mean distance from the value.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from crystalctl.analysis.charges import smact_valid
from crystalctl.analysis.energy import energies_per_atom, load_potential
from crystalctl.analysis.validity import invalid_reason
from crystalctl.checkpoint import load_model
from crystalctl.crystal.batch import Crystals, Target
from crystalctl.crystal.elements import symbol_of
from crystalctl.crystal.goal import Goal
from crystalctl.data.datasets import Dataset
from crystalctl.diffusion.noise import NoiseSource

SHARES = (5, 10, 15)


def elements(path: Path) -> dict[str, float]:
    """eV/atom of each element, from a file of energies."""
    lines = (json.loads(line) for line in path.read_text().splitlines())
    return {line["element"]: line["energy_ev"] for line in lines if line.get("element")}


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
    middle, best = np.median(known), sign * min(sign * v for v in known)
    return f"{shown}  median {middle:7.3f}  best {best:7.3f}"


def distances(values: list[float | None], value: float) -> str:
    """How far from the target."""
    known = np.array([v for v in values if v is not None])
    off = np.abs(known - value)
    return (
        f"mean {known.mean():7.3f}  distance: mean {off.mean():6.3f}, median {np.median(off):6.3f}"
    )


def facts(made: Crystals) -> tuple[list[bool], str]:
    """Which are structurally valid; and what is said of all."""
    parts = made.split()
    valid = [
        not invalid_reason(one.lattice[0].double().numpy(), one.frac.double().numpy())
        for one in parts
    ]
    formulas = [Counter(symbol_of(z) for z in one.species.tolist()) for one in parts]
    neutral = 100 * np.mean([smact_valid(formula) for formula in formulas])
    kinds = len({tuple(sorted(formula.items())) for formula in formulas})
    known = f"structurally valid {100 * np.mean(valid):.1f} %, compositionally {neutral:.1f} %"
    return valid, f"{known}, {kinds} formulas of {len(parts)}"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--strengths", default="1")
    parser.add_argument("--maximize", action="store_true")
    parser.add_argument("--target", type=float, default=None)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--energies", type=Path, default=None)
    return parser.parse_args()


def main() -> None:
    given = options()
    model = load_model(given.weights, task="generate").model
    name, sign = model.config.property, -1 if given.maximize else 1
    labels = Dataset.load(given.dataset).properties[name]
    known = sign * labels[labels.isfinite()].double()
    limits = {s: sign * float(torch.quantile(known, s / 100)) for s in SHARES}
    print(f"{name}: {len(known)} labels, limits {limits}")
    direction = "maximize" if given.maximize else "minimize"
    if given.target is not None:
        direction = "target"
    strengths = [float(text) for text in given.strengths.split(",")]
    for strength in [0.0, *strengths]:
        goal = Goal(name, direction, given.target, strength)
        noise = NoiseSource(given.seed, torch.arange(given.n))
        began = time.process_time()
        with torch.inference_mode():
            made = model.sample([Target(goal=goal)] * given.n, noise, steps=given.steps)
        seconds = (time.process_time() - began) / given.n
        valid, said = facts(made)
        print(f"{direction}, strength {strength:g}: {said}, {seconds:.3f} s of CPU a sample")
        found = {"predicted": [float(x) for x in model.predicted(made)]}
        if given.energies:
            found["CHGNet"] = formation_energies(made, elements(given.energies))
        for who, values in found.items():
            kept = [v if ok else None for v, ok in zip(values, valid, strict=True)]
            shown = rates(kept, limits, sign) if given.target is None else ""
            shown += distances(kept, given.target) if given.target is not None else ""
            print(f"  {who:10}{shown}")


if __name__ == "__main__":
    main()
