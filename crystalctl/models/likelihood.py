"""How probable SGEquiDiff finds crystals, factor by factor.

Group, lattice and occupation are probabilities, exact: the lattice's is that of its bin of 0.01 Å
and 0.012 degrees. The coordinates have a density, with respect to the free fractional coordinates
on the asymmetric part of each position, and what is computed is a lower bound of the density of the
structure blurred by the least noise:

    log p >= sum log |K| + integral over ln sigma of sigma^2 E(|v|^2 - |s - v|^2),

with v the velocity of the group-wrapped normal, s what the network says, lengths in its metric.
Ref: Theorem 3, arXiv:2101.09258; it holds on a torus as nothing flows over a border.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from crystalctl.crystal.batch import Crystals, Layout
from crystalctl.crystal.lattice import to_parameters
from crystalctl.crystal.periodic import wrap
from crystalctl.diffusion.noise import NoiseSource
from crystalctl.models.diffcsp_pp import cell_features, unit_of
from crystalctl.models.occupation import no_formula, occupied_of

if TYPE_CHECKING:
    from crystalctl.models.sgequidiff import SGEquiDiff

FACTORS = ("group", "lattice", "occupation", "coordinates")


@torch.no_grad()
def log_likelihood(
    model: SGEquiDiff, crystals: Crystals, noise: NoiseSource, *, levels: int = 50
) -> dict[str, Tensor]:
    """log p of each factor, (C,) each; -inf for a lattice that no bin holds.

    ``crystals`` have orbits. The coordinates' is a mean over noise at ``levels`` widths.
    """
    orbits, groups = crystals.layout.orbits, crystals.layout.space_group
    if orbits is None or groups is None:
        raise ValueError("likelihoods are of crystals with orbits")
    layout = Layout(orbits.n_orbits)
    parameters = to_parameters(crystals.lattice.float())
    sequence = occupied_of(orbits.position, orbits.at_anchors(crystals.species), layout)
    position, element = model.occupation.log_probability(
        groups, parameters, no_formula(groups), sequence
    )
    return {
        "group": model.occupation.group_log_probability()[0, groups],
        "lattice": lattice_log_probability(model, parameters, groups),
        "occupation": position + element,
        "coordinates": coordinate_bound(model, crystals, noise, levels=levels),
    }


def lattice_log_probability(model: SGEquiDiff, parameters: Tensor, groups: Tensor) -> Tensor:
    """log p of the bins of (C, 6) parameters, (C,)."""
    net, family = model.lattices, model.family[groups]
    each = net.log_probability(parameters, family, model.kinds[groups], None)
    outside = (parameters < net.low) | (parameters >= net.low + net.step * net.n_values)
    outside = (outside & net.free_of[family]).any(1)
    return each.sum(1).masked_fill(outside, -torch.inf)


def coordinate_bound(
    model: SGEquiDiff, crystals: Crystals, noise: NoiseSource, *, levels: int
) -> Tensor:
    """The bound on log p of the coordinates, (C,)."""
    orbits, groups = crystals.layout.orbits, crystals.layout.space_group
    assert orbits is not None
    assert groups is not None
    unit = unit_of(orbits.position, orbits.n_orbits, groups)
    process = model.process(orbits.position)
    images, sigma = process.images, model.schedule.sigma
    u0 = orbits.at_anchors(crystals.frac).float().masked_fill(~unit.sites.free, 0.0)
    species = orbits.at_anchors(crystals.species)
    g, cell = cell_features(crystals.lattice, unit)
    tables = model.network.tables()
    n_free = unit.sites.free.sum(1)
    bound = images.order.log()
    last = model.config.n_steps
    spacing = math.log(float(sigma[last] / sigma[1])) / levels
    for number in range(levels):
        t = 1 + round((number + 0.5) * (last - 1) / levels)
        kick = images.shape(noise.normal(unit.layout, 3, per_atom=True))
        u = wrap(u0 + sigma[t] * kick)
        _, velocity = images.wrapped(u, u0, sigma[t].expand(len(u)))
        time = torch.full_like(unit.layout.n_atoms, t)
        out = model.denoise(u, species, time, unit, g=g, cell=cell, tables=tables)
        score = process.strength[:, t].sqrt()[:, None] * out
        gained = images.square(velocity) * sigma[t] ** 2
        # The mean of |kick|^2 is known; what is left has little noise where images are far apart.
        gained = gained + process.strength[:, t] * (n_free - images.square(kick))
        bound = bound + spacing * (gained - images.square(score - sigma[t] * velocity))
    sums = bound.new_zeros(len(crystals))
    return sums.index_add(0, unit.layout.crystal_idx, bound)
