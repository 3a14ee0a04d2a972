"""Diffusion of fractional coordinates on the torus with a wrapped normal (variance exploding).

Ref: arXiv:2309.04475, section 4.2 and App. A.2; Langevin corrector: arXiv:2011.13456, Alg. 5.
Symbols: F coordinates, sigma_t widths, lambda_t score norms, gamma the corrector's step factor.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from crystalctl.crystal.batch import Layout
from crystalctl.crystal.periodic import wrap
from crystalctl.diffusion.noise import NoiseSource

if TYPE_CHECKING:
    from crystalctl.diffusion.schedules import WrappedSchedule

_CROSSOVER = 0.3
"""Below this width the sum over images has few terms, above it the Fourier series does."""


def wrapped_normal_score(delta: Tensor, sigma: Tensor) -> Tensor:
    """d/d(delta) of the log density of a normal of width ``sigma`` wrapped to period 1."""
    return wrapped_normal(delta, sigma)[1]


def wrapped_normal(delta: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Log density at ``delta`` of a normal of width ``sigma`` wrapped to period 1, and its slope.

    Any shapes that broadcast; ``sigma`` > 0. Exact to rounding for every width: near the centre
    seven images suffice below sigma = 0.3, five Fourier terms above it (the rest is below 1e-16).
    """
    delta = delta - torch.round(delta)
    images = torch.arange(-3, 4, device=delta.device, dtype=delta.dtype)
    distance = delta[..., None] + images
    narrow = torch.clamp(sigma, max=_CROSSOVER)[..., None]
    exponent = -(distance**2) / (2 * narrow**2)
    share = torch.softmax(exponent, -1)
    near = -(share * distance).sum(-1) / narrow[..., 0] ** 2
    near_log = exponent.logsumexp(-1) - (narrow[..., 0] * math.sqrt(2 * math.pi)).log()
    m = torch.arange(1, 6, device=delta.device, dtype=delta.dtype)
    wide = torch.clamp(sigma, min=_CROSSOVER)[..., None]
    damping = torch.exp(-2 * (math.pi * m * wide) ** 2)
    angle = 2 * math.pi * m * delta[..., None]
    slope = -4 * math.pi * (damping * m * torch.sin(angle)).sum(-1)
    density = 1 + 2 * (damping * torch.cos(angle)).sum(-1)
    is_narrow = sigma < _CROSSOVER
    return torch.where(is_narrow, near_log, density.log()), torch.where(
        is_narrow, near, slope / density
    )


class TorusProcess(nn.Module):
    """Coordinates; the network predicts the score divided by sqrt(lambda_t)."""

    def __init__(self, schedule: WrappedSchedule, *, gamma: float) -> None:
        super().__init__()
        self.schedule = schedule
        self.gamma = gamma

    def prior(self, layout: Layout, noise: NoiseSource) -> Tensor:
        """Uniform coordinates, (A, 3)."""
        return noise.uniform(layout, 3, per_atom=True)

    def corrupt(
        self, x0: Tensor, t: Tensor, layout: Layout, noise: NoiseSource
    ) -> tuple[Tensor, Tensor]:
        """Noised coordinates and the target of the network, both (A, 3); ``t`` (C,) steps."""
        sigma = self.schedule.sigma[t][layout.crystal_idx][:, None]
        shift = sigma * noise.normal(layout, 3, per_atom=True)
        norm = self.schedule.norm[t][layout.crystal_idx][:, None]
        return wrap(x0 + shift), wrapped_normal_score(shift, sigma) / norm.sqrt()

    def ancestral(
        self, x: Tensor, out: Tensor, t: int, s: int, layout: Layout, noise: NoiseSource
    ) -> Tensor:
        """From step ``t`` to ``s`` < t given the network's ``out`` at t; no noise at s = 0."""
        now, then = self.schedule.sigma[t], self.schedule.sigma[s]
        variance = now**2 - then**2
        x = x + variance * self._gain(t) * out
        if s > 0:
            gain = torch.sqrt(then**2 * variance / now**2)
            x = x + gain * self._kick(layout, noise)
        return wrap(x)

    def noised(self, x: Tensor, t: int, s: int, layout: Layout, noise: NoiseSource) -> Tensor:
        """From step ``t`` to ``s`` > t: what is missing of the noise of ``s`` is added."""
        variance = self.schedule.sigma[s] ** 2 - self.schedule.sigma[t] ** 2
        return wrap(x + variance.sqrt() * self._kick(layout, noise))

    def steered(self, out: Tensor, gradient: Tensor, t: Tensor, layout: Layout) -> Tensor:
        """The network's output for a score higher by ``gradient`` (A, 3); ``t`` (C,) steps."""
        return out + gradient / self.schedule.norm[t][layout.crystal_idx][:, None].sqrt()

    def langevin(
        self, x: Tensor, out: Tensor, t: int, layout: Layout, noise: NoiseSource
    ) -> Tensor:
        """One Langevin step at ``t`` of size gamma (sigma_t / sigma_1)^2; no noise at t = 1."""
        step = self.gamma * (self.schedule.sigma[t] / self.schedule.sigma[1]) ** 2
        x = x + step * self._gain(t) * out
        if t > 1:
            x = x + torch.sqrt(2 * step) * self._kick(layout, noise)
        return wrap(x)

    def _gain(self, t: int) -> Tensor:
        """What turns the network's output into the score at step ``t``."""
        return self.schedule.norm[t].sqrt()

    def _kick(self, layout: Layout, noise: NoiseSource) -> Tensor:
        """Noise of width 1, (A, 3)."""
        return noise.normal(layout, 3, per_atom=True)
