"""Makes ``symmetry/stabilisers.safetensors``: ``python -m crystalctl.models.build_stabilisers``.

The strength of the scores is a mean over 256 points of a low-discrepancy sequence; 363 actions of
the groups on their 1731 positions differ.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from crystalctl.diffusion.group_torus import mean_strength
from crystalctl.models.wyckoff_images import images_of_actions
from crystalctl.symmetry.stabilisers import FORMAT_VERSION, PATH, Action, action, metrics
from crystalctl.symmetry.tables import TRANSLATION_DENOMINATOR, Floats, tables

N_SAMPLES = 256
WIDTHS = (0.005, 0.6, 20)
"""First, last and number of the widths of noise, by equal ratios."""


def build() -> dict[str, Tensor]:
    """All tables, by name."""
    known: dict[bytes, int] = {}
    actions: list[Action] = []
    shapes, kind = [], []
    for row in range(len(tables().group)):
        found, lengths = action(row), metrics(row)
        key = found.key() + lengths.round(9).tobytes()
        if key not in known:
            known[key] = len(actions)
            actions.append(found)
            shapes.append(lengths)
        kind.append(known[key])
    first = np.cumsum([0, *(len(one.matrix) for one in actions)])
    metric = np.stack(shapes, 1)
    low, high, number = WIDTHS
    width = torch.logspace(math.log10(low), math.log10(high), number)
    samples = torch.quasirandom.SobolEngine(6, scramble=True, seed=0).draw(N_SAMPLES)
    samples = samples.clamp(1e-6, 1 - 1e-6)
    strength = []
    for one, (own, plain) in zip(actions, metric.transpose(1, 0, 2, 3), strict=True):
        invariant = _strength(one, own, width, samples)
        same = np.array_equal(own, plain)
        fractional = invariant if same else _strength(one, plain, width, samples)
        strength.append(torch.stack([invariant, fractional]))
    shift = np.concatenate([one.shift for one in actions]) * TRANSLATION_DENOMINATOR
    return {
        "kind": torch.tensor(kind, dtype=torch.int16),
        "first": torch.tensor(first, dtype=torch.int32),
        "matrix": torch.from_numpy(np.concatenate([one.matrix for one in actions])).to(torch.int8),
        "shift": torch.from_numpy(np.rint(shift)).to(torch.int8),
        "metric": torch.from_numpy(metric).float(),
        "width": width,
        "strength": torch.stack(strength, 1).float(),
    }


def _strength(one: Action, lengths: Floats, width: Tensor, samples: Tensor) -> Tensor:
    images = images_of_actions(one, lengths, len(samples))
    return mean_strength(images.to(samples.dtype), width, samples)


if __name__ == "__main__":
    PATH.write_bytes(save(build(), {"version": FORMAT_VERSION}))
