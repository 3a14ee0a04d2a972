"""Variance-preserving Gaussian diffusion of vectors per crystal or per atom (DDPM).

Ref: arXiv:2006.11239; the network predicts the noise. Symbols: alpha_bar, beta of the schedule.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crystalctl.crystal.batch import Layout
from crystalctl.diffusion.noise import NoiseSource
from crystalctl.diffusion.schedules import CosineSchedule


class GaussianProcess(nn.Module):
    """``width`` numbers per crystal (``per_atom=False``) or per atom.

    ``limit`` bounds the Euclidean norm of the clean row the predicted noise implies. Near t = T
    alpha_bar is so small that an error of 1 % in the noise means hundreds of Å; the published
    sampler lets that pass, and with few steps it diverges. Elsewhere the bound is not reached.
    """

    def __init__(
        self, schedule: CosineSchedule, *, width: int, per_atom: bool, limit: float
    ) -> None:
        super().__init__()
        self.limit = limit
        self.schedule = schedule
        self.width = width
        self.per_atom = per_atom

    def prior(self, layout: Layout, noise: NoiseSource) -> Tensor:
        """Standard normal rows: (A, width) or (C, width)."""
        return noise.normal(layout, self.width, per_atom=self.per_atom)

    def corrupt(
        self, x0: Tensor, t: Tensor, layout: Layout, noise: NoiseSource
    ) -> tuple[Tensor, Tensor]:
        """Noised rows and the noise that was added; ``x0`` (rows, width), ``t`` (C,) steps."""
        eps = self.prior(layout, noise)
        alpha_bar = self.schedule.alpha_bar[t]
        if self.per_atom:
            alpha_bar = alpha_bar[layout.crystal_idx]
        keep = alpha_bar[:, None]
        return keep.sqrt() * x0 + (1 - keep).sqrt() * eps, eps

    def ancestral(
        self, x: Tensor, out: Tensor, t: int, s: int, layout: Layout, noise: NoiseSource
    ) -> Tensor:
        """From step ``t`` to ``s`` < t given the predicted noise ``out``; no noise at s = 0.

        The mean is Eq. 7 of arXiv:2006.11239, through the clean row; without the limit it equals
        (x - beta / sqrt(1 - alpha_bar) out) / sqrt(1 - beta).
        """
        now, then = self.schedule.alpha_bar[t], self.schedule.alpha_bar[s]
        beta = 1 - now / then
        clean = (x - torch.sqrt(1 - now) * out) / torch.sqrt(now)
        norm = torch.linalg.vector_norm(clean, dim=1, keepdim=True)
        clean = clean * torch.clamp(self.limit / norm, max=1)
        x = (then.sqrt() * beta * clean + torch.sqrt(1 - beta) * (1 - then) * x) / (1 - now)
        if s > 0:
            x = x + torch.sqrt(beta * (1 - then) / (1 - now)) * self.prior(layout, noise)
        return x

    def noised(self, x: Tensor, t: int, s: int, layout: Layout, noise: NoiseSource) -> Tensor:
        """From step ``t`` to ``s`` > t: what is missing of the noise of ``s`` is added."""
        keep = self.schedule.alpha_bar[s] / self.schedule.alpha_bar[t]
        return keep.sqrt() * x + (1 - keep).sqrt() * self.prior(layout, noise)

    def steered(self, out: Tensor, gradient: Tensor, t: Tensor, layout: Layout) -> Tensor:
        """The noise that means a score higher by ``gradient`` (rows, width); ``t`` (C,) steps.

        The score is -noise / sqrt(1 - alpha_bar).
        """
        alpha_bar = self.schedule.alpha_bar[t]
        if self.per_atom:
            alpha_bar = alpha_bar[layout.crystal_idx]
        return out - (1 - alpha_bar).sqrt()[:, None] * gradient

    def langevin(
        self, x: Tensor, out: Tensor, t: int, layout: Layout, noise: NoiseSource
    ) -> Tensor:
        """No corrector: the published samplers correct coordinates only."""
        return x
