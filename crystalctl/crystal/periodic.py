"""Periodic arithmetic on fractional coordinates."""

from __future__ import annotations

import torch
from torch import Tensor


def wrap(frac: Tensor) -> Tensor:
    """Fractional coordinates moved into [0, 1); the float that rounds up to 1 becomes 0."""
    wrapped = frac - torch.floor(frac)
    return torch.where(wrapped >= 1, torch.zeros_like(wrapped), wrapped)
