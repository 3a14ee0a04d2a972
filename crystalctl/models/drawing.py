"""How SGEquiDiff draws: compositions within groups, then the crystals of given templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from crystalctl.crystal.batch import MAX_Z, Crystals, Layout, Target, Template
from crystalctl.crystal.lattice import from_parameters
from crystalctl.data.standard import from_anchors
from crystalctl.diffusion.noise import NoiseSource
from crystalctl.diffusion.process import State
from crystalctl.diffusion.sampling import OnStep
from crystalctl.models.diffcsp_pp import cell_features, templates_of, unit_of
from crystalctl.models.occupation import as_written
from crystalctl.models.reverse import reverse
from crystalctl.networks.telescope import pick
from crystalctl.networks.wyckoff_net import Wish

if TYPE_CHECKING:
    from crystalctl.models.sgequidiff import SGEquiDiff


def compose(
    model: SGEquiDiff,
    pools: Sequence[Sequence[int]],
    noise: NoiseSource,
    *,
    temperature: float = 1.0,
    elements: frozenset[int] | None = None,
    sizes: Sequence[int] | None = None,
) -> list[Template | None]:
    """A group out of each of ``pools``, then a lattice, then positions with their elements.

    All draws at ``temperature``. ``elements``: the only ones allowed; ``sizes``: numbers of atoms
    of the primitive cell. None where no group of a pool can have such a number.
    """
    device, n = noise.stream.device, len(pools)
    occupation = model.occupation
    most = occupation.max_atoms
    layout = Layout(torch.ones(n, dtype=torch.int64, device=device))
    allowed = torch.zeros(most + 1, dtype=torch.bool)
    allowed[[s for s in (range(1, most + 1) if sizes is None else sizes) if s <= most]] = True
    able = (occupation.net.rules.reach[:, 0].cpu() & allowed).any(1)
    mask = torch.zeros(n, len(able), dtype=torch.bool)
    for row, pool in enumerate(pools):
        mask[row, list(pool)] = able[list(pool)]
    possible = mask.any(1)
    mask[~possible, 1] = True
    logits = occupation.group_log_probability().masked_fill(~mask.to(device), -torch.inf)
    uniform = noise.uniform(layout, 13, per_atom=False)
    group = pick(logits / temperature, uniform[:, 0])
    parameters = model.lattices.draw(
        uniform[:, 1:], model.family[group], model.kinds[group], None, temperature=temperature
    )
    wish = Wish(
        element_mask(model, [elements] * n, device),
        allowed.to(device).expand(n, -1) | ~possible.to(device)[:, None],
    )
    uniform = noise.uniform(layout, 2 * most, per_atom=False)
    drawn = occupation.draw(group, parameters, wish, uniform, temperature=temperature)
    rows, species, cells = drawn.rows.tolist(), drawn.species.tolist(), parameters.tolist()
    return [
        Template(int(g), tuple(rows[i][:k]), tuple(species[i][:k]), tuple(cells[i])) if ok else None
        for i, (g, k, ok) in enumerate(
            zip(group.tolist(), drawn.n.tolist(), possible.tolist(), strict=True)
        )
    ]


def element_mask(
    model: SGEquiDiff, allowed: Sequence[frozenset[int] | None], device: torch.device
) -> Tensor:
    """Elements each crystal may hold, (C, 100) bool: those asked for, or seen in training."""
    mask = torch.zeros(len(allowed), MAX_Z, dtype=torch.bool)
    for row, wanted in enumerate(allowed):
        mask[row, [z - 1 for z in wanted or model.statistics.elements]] = True
    return mask.to(device)


def sample(
    model: SGEquiDiff,
    targets: Sequence[Target],
    noise: NoiseSource,
    *,
    steps: int | None = None,
    on_step: OnStep | None = None,
) -> Crystals:
    """One conventional cell for each target, exactly of its template; orbits in its layout.

    What the template leaves open is drawn first: a lattice that suits the template, or a lattice
    alone and then the elements. Raises ``InputError`` when a target has no template.
    """
    device = noise.stream.device
    position, n_orbits, groups, given = (x.to(device) for x in templates_of(targets, True))
    unit = unit_of(position, n_orbits, groups)
    parameters = _parameters(model, targets, (position, groups, given), unit.layout, noise)
    written = as_written(position, given, unit.layout)
    wish = Wish(
        element_mask(model, [target.elements for target in targets], device),
        torch.ones(len(targets), model.occupation.max_atoms + 1, dtype=torch.bool, device=device),
    )
    uniform = noise.uniform(unit.layout, written.rows.shape[1], per_atom=False)
    found = model.occupation.complete(groups, parameters, written, wish=wish, uniform=uniform)
    species = found[unit.layout.crystal_idx, unit.layout.atom_idx]
    lattice = from_parameters(parameters.double()).float()
    g, cell = cell_features(lattice, unit)
    tables = model.network.tables()

    def call(current: State, time: Tensor) -> Mapping[str, Tensor]:
        velocity = model.denoise(
            current["frac"], current["species"], time, unit, g=g, cell=cell, tables=tables
        )
        return {"frac": velocity}

    end = reverse(
        call,
        {"frac": model.process(position)},
        unit.layout,
        noise,
        held={"species": species},
        settings=model.config,
        steps=steps,
        on_step=on_step,
    )
    return from_anchors(
        position,
        unit.layout.n_atoms,
        space_group=groups,
        lattice=lattice,
        anchors=end["frac"],
        species=species,
    )


def _parameters(
    model: SGEquiDiff,
    targets: Sequence[Target],
    template: tuple[Tensor, Tensor, Tensor],
    layout: Layout,
    noise: NoiseSource,
) -> Tensor:
    """Lattice parameters (C, 6): those of the template, or drawn for what it says."""
    position, groups, species = template
    unknown = torch.zeros(len(targets), dtype=torch.int64, device=groups.device)
    unknown = unknown.index_add(0, layout.crystal_idx, (species == 0).long())
    content = model.content(position, species, layout)
    drawn = model.lattices.draw(
        noise.uniform(layout, 12, per_atom=False),
        model.family[groups],
        model.kinds[groups],
        content.masked_fill((unknown > 0)[:, None], 0.0),
    )
    cells = [target.template.cell if target.template else None for target in targets]
    fixed = torch.tensor([cell or (0.0,) * 6 for cell in cells], device=groups.device)
    return torch.where(fixed[:, :1] > 0, fixed, drawn)
