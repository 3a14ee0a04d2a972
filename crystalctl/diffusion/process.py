"""What a diffused field can do, and the state that a denoiser sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

from crystalctl.crystal.batch import Layout
from crystalctl.diffusion.noise import NoiseSource

State = Mapping[str, Tensor]
"""Field name ("lattice", "frac", "species") -> rows in the form the family diffuses."""

Denoiser = Callable[[State, int], Mapping[str, Tensor]]
"""(state, time step) -> the network's output for each diffused field."""


class Process(Protocol):
    """One field. A field that has no process is held fixed."""

    def prior(self, layout: Layout, noise: NoiseSource) -> Tensor:
        """Rows at t = T."""
        ...

    def corrupt(
        self, x0: Tensor, t: Tensor, layout: Layout, noise: NoiseSource
    ) -> tuple[Tensor, Tensor]:
        """Rows at step ``t`` (C,) and the network's target."""
        ...

    def ancestral(
        self, x: Tensor, out: Tensor, t: int, s: int, layout: Layout, noise: NoiseSource
    ) -> Tensor:
        """Predictor: from step t to s < t."""
        ...

    def noised(self, x: Tensor, t: int, s: int, layout: Layout, noise: NoiseSource) -> Tensor:
        """Forward in time: from step t to s > t."""
        ...

    def langevin(
        self, x: Tensor, out: Tensor, t: int, layout: Layout, noise: NoiseSource
    ) -> Tensor:
        """Corrector at step t, or the identity."""
        ...
