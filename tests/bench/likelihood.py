"""Do held-out structures score above the same structures spoilt?

    python tests/bench/likelihood.py WEIGHTS mp20_test.safetensors --entries 100

Each entry is spoilt in four ways: its elements exchanged among its positions, all lengths 10 %
longer or shorter, every anchor 0.3 Å along its position (where it has freedom), every atom 0.3 Å
anywhere, which loses the symmetry. AUC: how often a true structure has more log p than a spoilt
one, whichever; paired: than its own.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crystalctl.checkpoint import load_model
from crystalctl.crystal.batch import Crystals
from crystalctl.data.datasets import Dataset
from crystalctl.diffusion.noise import NoiseSource
from crystalctl.models.likelihood import FACTORS, log_likelihood
from crystalctl.symmetry.detect import detect

MOVED_ANG, STRAIN = 0.3, 0.1


def exchanged(crystals: Crystals) -> tuple[Crystals, Tensor]:
    """The elements of each crystal passed on to the next one; which crystals have two."""
    parts, changed = [], []
    for one in crystals.split():
        kinds = torch.unique(one.species)
        place = torch.searchsorted(kinds, one.species)
        parts.append(one.replace(species=kinds[(place + 1) % len(kinds)]))
        changed.append(len(kinds) > 1)
    return Crystals.cat(parts), torch.tensor(changed)


def strained(crystals: Crystals, generator: torch.Generator) -> tuple[Crystals, Tensor]:
    """All lengths 10 % longer or shorter."""
    sign = torch.randint(0, 2, (len(crystals), 1, 1), generator=generator) * 2 - 1
    everywhere = torch.ones(len(crystals), dtype=torch.bool)
    return crystals.replace(lattice=crystals.lattice * (1 + STRAIN * sign)), everywhere


def moved_along(crystals: Crystals, generator: torch.Generator) -> tuple[Crystals, Tensor]:
    """Every anchor 0.3 Å along its position."""
    orbits = crystals.layout.orbits
    assert orbits is not None
    draw = torch.randn(orbits.total_orbits, 3, generator=generator)
    lattice = crystals.lattice[orbits.orbit_crystal]
    frac = torch.linalg.solve(lattice.transpose(1, 2), draw[..., None])[..., 0]
    shift = orbits.project(frac)
    length = torch.linalg.vector_norm(torch.einsum("oi,oij->oj", shift, lattice), dim=1)
    able = length > 1e-3
    shift = torch.where(able[:, None], shift * (MOVED_ANG / length.clamp(min=1e-6))[:, None], 0.0)
    anchors = orbits.place(orbits.at_anchors(crystals.frac) + shift)
    free = torch.zeros(len(crystals)).index_add(0, orbits.orbit_crystal, able.float()) > 0
    return crystals.replace(frac=anchors), free


def moved_anywhere(crystals: Crystals, generator: torch.Generator) -> tuple[Crystals, Tensor]:
    """Every atom 0.3 Å anywhere, described anew."""
    draw = torch.randn(crystals.layout.total_atoms, 3, generator=generator)
    draw = MOVED_ANG * draw / torch.linalg.vector_norm(draw, dim=1, keepdim=True)
    lattice = crystals.lattice[crystals.layout.crystal_idx]
    shift = torch.linalg.solve(lattice.transpose(1, 2), draw[..., None])[..., 0]
    found = detect(crystals.replace(frac=(crystals.frac + shift) % 1.0), jobs=1)
    there = torch.zeros(len(crystals), dtype=torch.bool)
    there[found.source] = True
    return found.crystals, there


def totals(model: Any, crystals: Crystals, levels: int) -> dict[str, Tensor]:
    """Sum and factors of log p."""
    parts: list[dict[str, Tensor]] = []
    for rows in torch.arange(len(crystals)).split(50):
        noise = NoiseSource(0, rows)
        parts.append(log_likelihood(model, crystals.index(rows), noise, levels=levels))
    every = {name: torch.cat([part[name] for part in parts]) for name in FACTORS}
    return {"total": sum(every.values(), torch.zeros(len(crystals))), **every}


def auc(true: Tensor, spoilt: Tensor) -> float:
    """How often a true value is above a spoilt one."""
    above = (true[:, None] > spoilt).double() + 0.5 * (true[:, None] == spoilt)
    return float(above.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights")
    parser.add_argument("data", type=Path)
    parser.add_argument("--entries", type=int, default=100)
    parser.add_argument("--levels", type=int, default=25)
    options = parser.parse_args()
    model = load_model(options.weights, task="generate").model
    standard = Dataset.load(options.data).standard
    assert standard is not None
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(standard.crystals), generator=generator)[: options.entries]
    crystals = standard.crystals.index(rows)
    true = totals(model, crystals, options.levels)
    means = ", ".join(f"{name} {float(v[v > -math.inf].mean()):.2f}" for name, v in true.items())
    print(f"{len(rows)} entries, log p: {means}", flush=True)
    primitive = Dataset.load(options.data).crystals.index(standard.source[rows])
    ways = {
        "elements exchanged": exchanged(crystals),
        "lengths 10 % off": strained(crystals, generator),
        "0.3 Å along the positions": moved_along(crystals, generator),
        "0.3 Å anywhere": moved_anywhere(replace(primitive, labels=None), generator),
    }
    for name, (spoilt, which) in ways.items():
        if len(spoilt) != len(crystals):  # those that could not be described anew are left out
            values = totals(model, spoilt, options.levels)
        else:
            kept = which.nonzero()[:, 0]
            values = totals(model, spoilt.index(kept), options.levels)
        here = {key: value[which] for key, value in true.items()}
        paired = float((here["total"] > values["total"]).double().mean())
        line = (
            f"{name}: {len(values['total'])} entries, AUC {auc(here['total'], values['total']):.3f}"
        )
        by = ", ".join(f"{key} {auc(here[key], values[key]):.3f}" for key in FACTORS)
        print(f"{line}, paired {paired:.3f}; by factor: {by}", flush=True)


if __name__ == "__main__":
    main()
