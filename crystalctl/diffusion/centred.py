"""Diffusion of coordinates with noise that has no drift: its circular mean is taken out (EquiCSP).

The network learns two things of the noise d that is left: its score under a von Mises law, and d
itself, which the chain rule through the mean needs. Ref: arXiv:2512.07289, Eq. 15, App. C.2.
Symbols: y = sigma_t eps the drawn noise, m(y) its circular mean per crystal and axis, d = w(y - m).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from crystalctl.crystal.batch import Layout
from crystalctl.crystal.periodic import wrap
from crystalctl.crystal.segments import crystal_mean
from crystalctl.diffusion.noise import NoiseSource
from crystalctl.diffusion.schedules import WrappedSchedule
from crystalctl.diffusion.torus import TorusProcess
from crystalctl.diffusion.von_mises import (
    MOST_ATOMS,
    N_WIDTHS,
    NODES_N,
    law_tables,
    moment_nodes,
)
from crystalctl.errors import InputError

_LEAST_RESULTANT = 0.1
"""Bound on the resultant of predicted noise: the circular mean of evenly spread points is none."""


def centred(shift: Tensor, layout: Layout) -> Tensor:
    """``shift`` (A, 3) minus its circular mean over each crystal, in [-1/2, 1/2]."""
    angle = 2 * math.pi * shift
    sine, cosine = crystal_mean(angle.sin(), layout), crystal_mean(angle.cos(), layout)
    mean = torch.atan2(sine, cosine) / (2 * math.pi)
    left = shift - mean[layout.crystal_idx]
    return left - torch.round(left)


def without_drift(score: Tensor, d: Tensor, layout: Layout) -> Tensor:
    """The score of the coordinates from that of the noise ``d``, both (A, 3).

    s_i - (dm / dx_i) sum_j s_j; its sum over a crystal is zero. Ref: Eq. 36, arXiv:2512.07289.
    """
    angle = 2 * math.pi * d
    sine, cosine = angle.sin(), angle.cos()
    u = crystal_mean(sine, layout)[layout.crystal_idx]
    v = crystal_mean(cosine, layout)[layout.crystal_idx]
    square = torch.clamp(u**2 + v**2, min=_LEAST_RESULTANT**2)
    mean = crystal_mean(score, layout)[layout.crystal_idx]
    return score - (v * cosine + u * sine) / square * mean


class CentredTorusProcess(nn.Module):
    """Coordinates of up to 200 atoms; the network's six columns are the score and d, normalised.

    The n noises of a crystal add up to nothing. The paper's n independent laws do not know that and
    pull n / (n - 1) times too much; ``unbiased`` takes that out.
    """

    nodes: Tensor
    tables: Tensor

    def __init__(self, schedule: WrappedSchedule, *, gamma: float, unbiased: bool) -> None:
        super().__init__()
        self.torus = TorusProcess(schedule, gamma=gamma)
        self.unbiased = unbiased
        # Filled when first needed, or from a file of weights: they take seconds to compute.
        empty = torch.full((3, len(NODES_N), N_WIDTHS), math.nan, dtype=torch.float64)
        self.register_buffer("nodes", empty)
        self.register_buffer("tables", torch.empty(0), persistent=False)

    def law(self, t: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        """kappa, norm of the score, norm of d at steps ``t`` (C,), each (A, 1)."""
        counts = layout.n_atoms
        if max(layout.counts) > MOST_ATOMS:
            raise InputError(
                f"a crystal of {max(layout.counts)} atoms: EquiCSP takes up to {MOST_ATOMS}",
                "use diffcsp, or leave large cells out (--set train.max_atoms=200)",
            )
        if not len(self.tables):
            if self.nodes.isnan().any():
                self.nodes.copy_(moment_nodes())
            sigma = self.torus.schedule.sigma
            after_0 = law_tables(self.nodes, sigma[1:]).to(sigma)
            self.tables = torch.cat([torch.ones_like(after_0[..., :1]), after_0], -1)
        rows = self.tables[:, counts, t][:, layout.crystal_idx, None]
        kappa, score, shift = rows.unbind(0)
        return kappa, score, shift

    def prior(self, layout: Layout, noise: NoiseSource) -> Tensor:
        """Uniform coordinates, (A, 3)."""
        return self.torus.prior(layout, noise)

    def corrupt(
        self, x0: Tensor, t: Tensor, layout: Layout, noise: NoiseSource
    ) -> tuple[Tensor, Tensor]:
        """Noised coordinates (A, 3), and the normalised score and d, (A, 6); ``t`` (C,) steps."""
        sigma = self.torus.schedule.sigma[t][layout.crystal_idx][:, None]
        shift = sigma * noise.normal(layout, 3, per_atom=True)
        return wrap(x0 + shift), self.target(shift, t, layout)

    def target(self, shift: Tensor, t: Tensor, layout: Layout) -> Tensor:
        """What the network has to say of noise ``shift`` (A, 3): (A, 6)."""
        kappa, score_norm, square = self.law(t, layout)
        d = centred(shift, layout)
        score = -2 * math.pi * kappa * torch.sin(2 * math.pi * d)
        return torch.cat([score / score_norm.sqrt(), d / square.sqrt()], 1)

    def score(self, out: Tensor, t: int, layout: Layout) -> Tensor:
        """The score of the coordinates from the network's ``out`` (A, 6)."""
        steps = torch.full_like(layout.n_atoms, t)
        _, score_norm, square = self.law(steps, layout)
        d = torch.clamp(out[:, 3:] * square.sqrt(), -0.5, 0.5)
        score = without_drift(out[:, :3] * score_norm.sqrt(), d, layout)
        if self.unbiased:
            score = score * (1 - 1 / layout.degree.to(score.dtype))[:, None]
        return score

    def ancestral(
        self, x: Tensor, out: Tensor, t: int, s: int, layout: Layout, noise: NoiseSource
    ) -> Tensor:
        """From step ``t`` to ``s`` < t: the step of the torus process, with this score."""
        unit = self.score(out, t, layout) / self.torus.schedule.norm[t].sqrt()
        return self.torus.ancestral(x, unit, t, s, layout, noise)

    def noised(self, x: Tensor, t: int, s: int, layout: Layout, noise: NoiseSource) -> Tensor:
        """From step ``t`` to ``s`` > t, as ``corrupt`` does: with noise that may drift."""
        return self.torus.noised(x, t, s, layout, noise)

    def langevin(
        self, x: Tensor, out: Tensor, t: int, layout: Layout, noise: NoiseSource
    ) -> Tensor:
        """One Langevin step at ``t``, with this score."""
        unit = self.score(out, t, layout) / self.torus.schedule.norm[t].sqrt()
        return self.torus.langevin(x, unit, t, layout, noise)
