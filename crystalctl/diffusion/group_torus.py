"""Diffusion of an orbit's free coordinates with a normal wrapped by the space group.

Points u of a Wyckoff position that a crystal cannot tell apart are images of one under a finite
group K of operations u -> A u + b and whole translations (``symmetry/stabilisers.py``). The wrapped
normal is the sum over all images of the clean point, so it is the same at all images of u:

    q(u | u0) = 1/|K| sum_k sum_n N(u; A_k u0 + b_k + n, sigma^2 M^-1)

with M the lengths in u. That is exact only where the operations keep M, as those of the crystal do
in the invariant metric (``metric="invariant"``); the paper's lengths are those of fractional
coordinates, which the operations of trigonal and hexagonal groups do not keep.

The sum over translations n is done exactly, by factors: in a frame d = W u with M = W^T diag(c^2) W
it is a product of wrapped normals on circles, each a theta function of seven images or five Fourier
terms whose rest is below 1e-16 (``torus.py``). Only planes of hexagonal lattices are not square in
u; their frame is the rectangle of twice the area, whose second lattice point counts as an image.

Velocities v = M^-1 grad_u log q are what moves a point; the network predicts them divided by the
root of their mean square length.

Ref: Eq. 8 and App. A.2, arXiv:2505.10994. Symbols: O orbits, N images of all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from crystalctl.crystal.batch import Layout
from crystalctl.crystal.periodic import wrap
from crystalctl.crystal.precision import full_precision
from crystalctl.diffusion.noise import NoiseSource
from crystalctl.diffusion.schedules import WrappedSchedule
from crystalctl.diffusion.torus import TorusProcess, wrapped_normal


@dataclass(frozen=True)
class Images:
    """The operations of O positions, packed.

    ``orbit`` (N,) int64: which position each image is of; ``matrix`` A (N, 3, 3), ``shift`` b
    (N, 3). Per position: ``free`` (O, 3) bool; ``frame`` W (O, 3, 3), its inverse ``back`` and
    ``scale`` c (O, 3), 1 where u is not free; ``order`` |K| (O,).
    """

    orbit: Tensor
    matrix: Tensor
    shift: Tensor
    free: Tensor
    frame: Tensor
    back: Tensor
    scale: Tensor
    order: Tensor

    def to(self, dtype: torch.dtype) -> Images:
        """With all numbers in another precision."""
        numbers = {
            field.name: getattr(self, field.name).to(dtype)
            for field in fields(self)
            if getattr(self, field.name).is_floating_point()
        }
        return replace(self, **numbers)

    @full_precision()
    def shape(self, normal: Tensor) -> Tensor:
        """Noise of covariance M^-1 in the free coordinates, from standard normal (O, 3)."""
        kick = torch.einsum("oij,oj->oi", self.back, normal / self.scale)
        return kick.masked_fill(~self.free, 0.0)

    @full_precision()
    def square(self, vectors: Tensor) -> Tensor:
        """Squared length in M of vectors in u, (O, 3) -> (O,)."""
        inside = torch.einsum("oij,oj->oi", self.frame, vectors) * self.scale
        return inside.masked_fill(~self.free, 0.0).square().sum(1)

    @full_precision()
    def wrapped(self, u: Tensor, u0: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Log density at u and its velocity: (O,) and (O, 3), of ``u``, ``u0`` (O, 3), sigma (O,).

        The density is with respect to du over all of [0, 1)^free, where it integrates to 1.
        """
        image = torch.einsum("nij,nj->ni", self.matrix, u0[self.orbit]) + self.shift
        away = torch.einsum("nij,nj->ni", self.frame[self.orbit], u[self.orbit] - image)
        width = (sigma[:, None] / self.scale)[self.orbit]
        log, slope = wrapped_normal(away, width)
        free = self.free[self.orbit]
        each = log.masked_fill(~free, 0.0).sum(1)
        top = torch.full_like(sigma, -torch.inf).scatter_reduce(0, self.orbit, each, "amax")
        weight = (each - top[self.orbit]).exp()
        total = torch.zeros_like(sigma).index_add(0, self.orbit, weight)
        share = (weight / total[self.orbit])[:, None]
        mean = torch.zeros_like(u).index_add(0, self.orbit, share * slope)
        volume = torch.linalg.det(self.frame).abs()
        velocity = torch.einsum("oij,oj->oi", self.back, mean / self.scale**2)
        log_density = top + total.log() + volume.log() - self.order.log()
        return log_density, velocity.masked_fill(~self.free, 0.0)


class GroupTorusProcess(TorusProcess):
    """The free coordinates of a batch; ``strength`` (O, T + 1) as in ``Stabilisers``, by step.

    It belongs to one batch, as its positions do. The rows of its layout are orbits.
    """

    def __init__(
        self, schedule: WrappedSchedule, images: Images, strength: Tensor, *, gamma: float
    ) -> None:
        super().__init__(schedule, gamma=gamma)
        self.images = images
        self.strength = strength

    def prior(self, layout: Layout, noise: NoiseSource) -> Tensor:
        """Uniform free coordinates, (O, 3), the others 0."""
        return super().prior(layout, noise).masked_fill(~self.images.free, 0.0)

    def corrupt(
        self, x0: Tensor, t: Tensor, layout: Layout, noise: NoiseSource
    ) -> tuple[Tensor, Tensor]:
        """Noised coordinates and the network's target, both (O, 3); ``t`` (C,) steps."""
        step = t[layout.crystal_idx]
        sigma = self.schedule.sigma[step]
        x = wrap(x0 + sigma[:, None] * self._kick(layout, noise))
        _, velocity = self.images.wrapped(x, x0, sigma)
        rows = torch.arange(len(step), device=step.device)
        return x, velocity * (sigma / self.strength[rows, step].sqrt())[:, None]

    def _gain(self, t: int) -> Tensor:
        return (self.strength[:, t].sqrt() / self.schedule.sigma[t])[:, None]

    def _kick(self, layout: Layout, noise: NoiseSource) -> Tensor:
        return self.images.shape(super()._kick(layout, noise))


FAINTEST = 1e-6
"""Least strength that is told from 0: beyond it scores are rounding errors."""


def mean_strength(images: Images, sigma: Tensor, samples: Tensor) -> Tensor:
    """``strength`` at widths ``sigma`` (S,) of the position that all rows of ``images`` are.

    ``samples`` (O, 6) in (0, 1): for each row a clean point and its noise, spread evenly.
    """
    u0 = samples[:, :3].masked_fill(~images.free, 0.0)
    normal = math.sqrt(2) * torch.erfinv(2 * samples[:, 3:] - 1)
    found = []
    for width in sigma:
        u = u0 + width * images.shape(normal)
        _, velocity = images.wrapped(u, u0, width.expand(len(u)))
        n_free = images.free[0].sum().clamp(min=1)
        found.append(images.square(velocity).mean() * width**2 / n_free)
    return torch.stack(found)
