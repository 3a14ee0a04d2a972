"""Noise in Å on atoms, undone through the distances to their neighbours.

Ref: Luo et al., arXiv:2307.02707, section 3.3 (denoising score matching on distances). Symbols:
sigma_l the width of level l = 1..T; d the true and d~ the noised distance of an edge, u its
direction from receiver to sender, w its share (1 / number of images of the pair).

The displacement that mends the distances of atom i is, to first order,

    s_i = -sum over edges of i of w (d - d~) u                                   (Å)

the score of the paper times sigma^2. With e the displacement of the atoms from where they belong,
d - d~ is about -u . (e_j - e_i), so s = -K e with K known from the geometry: ``mended`` solves that
by least squares, which makes one network call worth many Langevin steps.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from crystalctl.crystal.batch import Layout
from crystalctl.crystal.lattice import inverse
from crystalctl.crystal.periodic import Neighbours, nearest_image, wrap
from crystalctl.crystal.precision import full_precision
from crystalctl.diffusion.noise import NoiseSource
from crystalctl.diffusion.sampling import OnStep
from crystalctl.diffusion.schedules import spaced_steps

SATURATION = 1.8
"""Å; a noised distance differs from the nearest true one by no more than this, rms."""


class CartesianLevels(nn.Module):
    """Log-spaced noise levels and how large the error of a distance is at each.

    ``sigma`` (T + 1,) Å: 0, then ``low`` ... ``high``. ``norm`` (T + 1,) Å: sqrt(2) sigma, as both
    ends move, bounded where the noise exceeds the cell. ``step`` is the Langevin step at level 1,
    Å^2, ``temperature`` scales the variance of its noise.
    """

    sigma: Tensor
    norm: Tensor

    def __init__(
        self, n_levels: int, low: float, high: float, *, step: float, temperature: float
    ) -> None:
        super().__init__()
        ratio = torch.arange(n_levels, dtype=torch.float64) / max(1, n_levels - 1)
        sigma = low * (high / low) ** ratio
        norm = ((2**0.5 * sigma) ** -4 + SATURATION**-4) ** -0.25
        zero = sigma.new_zeros(1)
        self.register_buffer("sigma", torch.cat([zero, sigma]).float(), persistent=False)
        self.register_buffer("norm", torch.cat([zero + 1, norm]).float(), persistent=False)
        self.step, self.temperature = step, temperature

    def prior(self, layout: Layout, noise: NoiseSource) -> Tensor:
        """Uniform fractional coordinates, (A, 3)."""
        return noise.uniform(layout, 3, per_atom=True)

    def corrupt(
        self, frac: Tensor, lattice: Tensor, t: Tensor, layout: Layout, noise: NoiseSource
    ) -> tuple[Tensor, Tensor]:
        """Noised fractional coordinates and the fractional shift, (A, 3) each; ``t`` (C,)."""
        sigma = self.sigma[t][layout.crystal_idx][:, None]
        shift = sigma * noise.normal(layout, 3, per_atom=True)
        moved = to_frac(shift, lattice, layout)
        return wrap(frac + moved), moved

    def langevin(self, mending: Tensor, t: int, layout: Layout, noise: NoiseSource) -> Tensor:
        """The shift (A, 3) Å of one Langevin step at level ``t``.

        ``mending`` (A, 3) Å is s_i, the score s / norm^2; the step size step (sigma_t / sigma_1)^2.
        Ref: Alg. 1, arXiv:2307.02707.
        """
        size = self.step * (self.sigma[t] / self.sigma[1]) ** 2
        spread = torch.sqrt(2 * self.temperature * size)
        drift = size / self.norm[t] ** 2 * mending
        return drift + spread * noise.normal(layout, 3, per_atom=True)

    def renoise(self, error: Tensor, t: int, layout: Layout, noise: NoiseSource) -> Tensor:
        """The shift (A, 3) Å that mends ``error`` and draws the noise of level ``t`` anew."""
        return self.sigma[t] * noise.normal(layout, 3, per_atom=True) - error

    def ancestral(
        self, error: Tensor, t: int, s: int, layout: Layout, noise: NoiseSource
    ) -> Tensor:
        """The shift (A, 3) Å from level ``t`` to ``s`` < t.

        ``error`` (A, 3) Å says how far each atom is displaced. The posterior of a
        variance-exploding step, without noise at s = 0. Ref: Eq. 46, arXiv:2011.13456.
        """
        now, then = self.sigma[t] ** 2, self.sigma[s] ** 2
        shift = -(1 - then / now) * error
        if s > 0:
            spread = torch.sqrt(then * (now - then) / now)
            shift = shift + spread * noise.normal(layout, 3, per_atom=True)
        return shift


@full_precision()
def to_frac(vectors: Tensor, lattice: Tensor, layout: Layout) -> Tensor:
    """Vectors of atoms in Å -> fractional, (A, 3)."""
    return torch.einsum("ai,aij->aj", vectors, inverse(lattice)[layout.crystal_idx])


def distance_errors(edges: Neighbours, moved: Tensor, lattice: Tensor, layout: Layout) -> Tensor:
    """d - d~ of each edge of the noised crystal, (E,) Å.

    ``moved`` (A, 3) is the fractional shift that noised it. Of the images of the pair in the clean
    crystal the one nearest to the noised sender counts.
    """
    receiver, sender = layout.edges
    owner = layout.crystal_idx[receiver]
    between = nearest_image(moved[sender] - moved[receiver], lattice[owner])
    clean = edges.vector - between[edges.pair]
    errors: Tensor = torch.linalg.vector_norm(clean, dim=1) - edges.distance
    return errors


def pulls(edges: Neighbours, errors: Tensor, n_atoms: int) -> Tensor:
    """s_i of all atoms from the ``errors`` (E,) of the distances: (A, 3)."""
    rows = -(edges.share() * errors)[:, None] * edges.direction
    return rows.new_zeros(n_atoms, 3).index_add(0, edges.receiver, rows)


def descend(
    score: Callable[[Tensor, int], tuple[Neighbours, Tensor]],
    levels: CartesianLevels,
    lattice: Tensor,
    layout: Layout,
    noise: NoiseSource,
    *,
    steps: int,
    langevin: bool = False,
    on_step: OnStep | None = None,
) -> Tensor:
    """Fractional coordinates (A, 3) from the prior, ``steps`` network calls.

    ``score``: (coordinates, level) -> edges there and s / norm. Two calls at each of ``steps`` / 2
    levels, or more at each of all T: all but the last mend the crystal and noise it anew at its
    level, so that what one call got wrong the next one sees; the last goes to the next level.
    ``langevin``: Langevin steps instead, at every level (Alg. 1, arXiv:2307.02707).
    """
    top = len(levels.sigma) - 1
    path = spaced_steps(top, top if langevin else min(top, max(1, steps // 2)))
    ends = spaced_steps(steps, len(path) - 1)
    frac = levels.prior(layout, noise)
    for (t, s), (left, after) in zip(pairwise(path), pairwise(ends), strict=True):
        for ahead in range(left - 1, after - 1, -1):
            edges, out = score(frac, t)
            mending = levels.norm[t] * out
            if langevin:
                shift = levels.langevin(mending, t, layout, noise)
            else:
                error = mended(edges, mending, layout)
                if ahead > after:
                    shift = levels.renoise(error, t, layout, noise)
                else:
                    shift = levels.ancestral(error, t, s, layout, noise)
            frac = wrap(frac + to_frac(shift, lattice, layout))
            if on_step is not None:
                on_step(steps - ahead, steps)
    return frac


def mended(edges: Neighbours, mending: Tensor, layout: Layout, *, ridge: float = 0.1) -> Tensor:
    """The displacements e (A, 3) Å with s = -K e: least squares, ``ridge`` on what is left open.

    ``mending`` (A, 3) Å is s. Per crystal one symmetric system of 3 n unknowns.
    """
    width = max(layout.counts)
    place = layout.atom_idx
    u = edges.direction
    block = edges.share()[:, None, None] * u[:, :, None] * u[:, None, :]
    row = layout.crystal_idx[edges.receiver] * width + place[edges.receiver]
    k = block.new_zeros(layout.n_crystals * width * width, 3, 3)
    k.index_add_(0, row * width + place[edges.receiver], block)
    k.index_add_(0, row * width + place[edges.sender], -block)
    k = k.view(-1, width, width, 3, 3).transpose(2, 3).reshape(-1, 3 * width, 3 * width)
    s = mending.new_zeros(layout.n_crystals * width, 3)
    rows = layout.crystal_idx * width + place
    s[rows] = mending
    kt = k.transpose(1, 2)
    normal = kt @ k + ridge * torch.eye(3 * width, dtype=k.dtype, device=k.device)
    e = -torch.linalg.solve(normal, kt @ s.view(-1, 3 * width, 1))
    displacements: Tensor = e.view(-1, 3)[rows]
    return displacements
