"""Small building blocks the networks share."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def mlp(n_in: int, n_hidden: int, n_out: int) -> nn.Sequential:
    """Linear-SiLU-Linear-SiLU."""
    first, second = nn.Linear(n_in, n_hidden), nn.Linear(n_hidden, n_out)
    return nn.Sequential(first, nn.SiLU(), second, nn.SiLU())


def perceptron(n_in: int, n_hidden: int, n_out: int) -> nn.Sequential:
    """Linear-SiLU-Linear."""
    return nn.Sequential(nn.Linear(n_in, n_hidden), nn.SiLU(), nn.Linear(n_hidden, n_out))


def time_features(t: Tensor, width: int) -> Tensor:
    """Sinusoidal features of the time step: (C,) -> (C, width), sines then cosines.

    Frequencies fall geometrically from 1 to 1e-4. Ref: Vaswani et al., arXiv:1706.03762, 3.5.
    """
    half = width // 2
    rate = torch.arange(half, device=t.device, dtype=torch.float64) / (half - 1)
    angle = t[:, None].double() * torch.exp(-math.log(10000.0) * rate)
    return torch.cat([angle.sin(), angle.cos()], 1)
