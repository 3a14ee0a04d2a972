"""Exponential moving average of weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Average:
    """Averages the parameters of ``model``; the decay warms up as (1 + step) / (10 + step)."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.names = [name for name, _ in model.named_parameters()]
        self.live = [parameter.detach() for parameter in model.parameters()]
        self.values = [tensor.clone() for tensor in self.live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the current weights after optimiser step number ``step``."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, self.live, 1 - decay)

    def state(self) -> dict[str, Tensor]:
        """The averaged parameters by name."""
        return dict(zip(self.names, self.values, strict=True))

    def load(self, state: dict[str, Tensor]) -> None:
        """Take averaged parameters saved before."""
        for name, value in zip(self.names, self.values, strict=True):
            value.copy_(state[name])

    def swap(self) -> None:
        """Exchange live and averaged weights in place; a second call undoes the first."""
        for live, value in zip(self.live, self.values, strict=True):
            kept = live.clone()
            live.copy_(value)
            value.copy_(kept)
