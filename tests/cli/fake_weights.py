"""Stands in for trained weights: draws rock salt, broken cells and random ones in known shares.

As a script it is the command line with these weights, for tests that kill a process.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch

from crystalctl.crystal.batch import Crystals, Layout
from crystalctl.errors import WeightsError

STATISTICS = {
    "n_crystals": 100,
    "max_atoms": 24,
    "elements": [*range(1, 84)],
    "n_atoms": {"2": 30, "4": 50, "8": 20},
    "formula_units": {"2:2": {"1": 70, "2": 20, "4": 10}, "*:*": {"1": 50, "2": 30, "4": 20}},
}


class FakeModel:
    """Every crystal depends on its own noise only; the first number decides what it becomes."""

    def __init__(self, memory: int = 10**9) -> None:
        self.memory = memory
        self.batches: list[int] = []
        self.steps: list[int | None] = []

    def sample(self, targets, noise, *, steps=None, on_step=None):
        if len(targets) > self.memory:
            raise torch.OutOfMemoryError("no memory")
        self.batches.append(len(targets))
        self.steps.append(steps)
        counts = [t.n_atoms for t in targets]
        layout = Layout(torch.tensor(counts))
        for step in range(steps or 4):
            time.sleep(float(os.environ.get("FAKE_SLEEP", "0")))
            if on_step is not None:
                on_step(step + 1, steps or 4)
        kind = noise.uniform(layout, 1, per_atom=False)[:, 0]
        frac = noise.uniform(layout, 3, per_atom=True)
        shake = noise.normal(layout, 3, per_atom=True)
        parts = [
            self._one(
                target, float(k), frac[layout.crystal_idx == i], shake[layout.crystal_idx == i]
            )
            for i, (target, k) in enumerate(zip(targets, kind, strict=True))
        ]
        return Crystals.cat(parts)

    def _one(self, target, kind, frac, shake):
        n = target.n_atoms
        allowed = sorted(target.elements or {11, 17})
        species = target.species() or [allowed[i % len(allowed)] for i in range(n)]
        lattice = torch.eye(3) * (20.0 * n) ** (1 / 3)
        if n == 2 and kind > 0.4:
            lattice = torch.tensor([[0.0, 2.8, 2.8], [2.8, 0.0, 2.8], [2.8, 2.8, 0.0]])
            frac = torch.tensor([[0.0] * 3, [0.5] * 3]) + shake * 1e-3
        elif kind < 0.1:
            lattice = lattice * float("nan")
        elif kind < 0.2:
            frac = frac * 1e-3
        else:  # a grid without overlaps
            grid = torch.cartesian_prod(*[torch.arange(3) / 3] * 3)[:n]
            frac = grid + shake * 0.01
        return Crystals(Layout(torch.tensor([n])), lattice[None], frac % 1.0, torch.tensor(species))


def fake_checkpoint(model: FakeModel) -> ModuleType:
    """A module with the interface of crystalctl.checkpoint."""
    module = ModuleType("crystalctl.checkpoint")

    def load_model(name, *, task, family=None, device="cpu"):
        if name == "broken.safetensors":
            raise WeightsError("broken.safetensors is not a weights file", "see crystalctl models")
        config = {"task": task, "n_steps": 1000}
        meta = {"family": "diffcsp", "task": task, "config": config, "statistics": STATISTICS}
        return SimpleNamespace(model=model, meta=meta, sha256=f"sha-of-{name}", name=name)

    module.load_model = load_model
    module.hull_file = lambda wish, calculator: None if wish is None else Path(wish)
    module.known_file = lambda: None
    module.default_weights = lambda task, family=None: f"fake-{task}"
    module.available = lambda: [
        {
            "name": "fake-predict",
            "file": "fake.safetensors",
            "family": "diffcsp",
            "task": "predict",
            "data": "none",
            "params": 1_234_567,
            "size": "2 MB",
            "default": True,
            "mp_20": {"match_rate_k1": 0.5},
        }
    ]
    return module


if __name__ == "__main__":
    sys.modules["crystalctl.checkpoint"] = fake_checkpoint(FakeModel())
    from crystalctl.cli.app import main

    main()
