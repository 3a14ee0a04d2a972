"""DiffCSP++: diffusion within a space group and its Wyckoff positions.

Ref: Jiao et al., "Space Group Constrained Crystal Generation", arXiv:2402.03992 (ICLR 2024).
The state of a crystal is its asymmetric unit: per crystal the free ones of the six lattice
coefficients k (variance preserving), per orbit the free coordinates of the anchor (wrapped normal)
and, to ``generate``, the species (one-hot, variance preserving). Every state along the path is
exactly symmetric because nothing else is diffused.

Where this differs from the paper, and why, is said in docs/models/diffcsp_pp.md: the network is
equivariant under the group by construction, so it runs on one receiver per orbit; the lattice
coefficients are scaled; the volume is counted per atom.

Symbols: k lattice coefficients, u free coordinates of an anchor, t time step of T.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crystalctl.crystal.batch import MAX_Z, Crystals, Layout, Target, sent
from crystalctl.crystal.precision import full_precision
from crystalctl.crystal.sites import Sites
from crystalctl.data.standard import from_anchors
from crystalctl.data.statistics import Statistics
from crystalctl.diffusion.elements import ElementProcess
from crystalctl.diffusion.gaussian import GaussianProcess
from crystalctl.diffusion.lattice_coords import from_family6, to_family6
from crystalctl.diffusion.noise import NoiseSource
from crystalctl.diffusion.process import Process, State
from crystalctl.diffusion.sampling import OnStep
from crystalctl.diffusion.schedules import CosineSchedule, WrappedSchedule
from crystalctl.diffusion.torus import TorusProcess
from crystalctl.errors import InputError
from crystalctl.models.contract import LossTerm, LossTerms
from crystalctl.models.diffcsp import CSPConfig
from crystalctl.models.reverse import excluded_elements, refusal, reverse
from crystalctl.networks.cspnet import CSPNet
from crystalctl.symmetry.primitive import (
    CENTRINGS,
    centring_index,
    n_lattice_points,
    primitive_bases,
    sites_of,
)
from crystalctl.symmetry.tables import tables
from crystalctl.symmetry.wyckoff import orbits_of

VOLUME_MEAN = 1.69
"""Mean of k6 - ln(N) / sqrt 3 over MP-20, that is of ln(Å³ per atom) / sqrt 3."""
SCALE = (0.2, 0.2, 0.2, 0.45, 0.6, 0.22)
"""Spread of each coefficient over MP-20, rounded."""
LATTICE_LIMIT = 20.0
"""Bound on the norm of the scaled coefficients of a predicted clean lattice."""


@dataclass(frozen=True)
class DiffCSPPlusConfig(CSPConfig):
    """Settings as for DiffCSP; the defaults are the paper's for MP-20.

    ``n_radial`` > 0: the network also works in real space (``networks/radial.py``) with that many
    functions of distance; the paper's does not. What is summed at an anchor is that of every atom
    of its orbit, as the coefficients that are read are invariant under the group.
    ``start_level``: at the noise of which share of T sampling begins where a target has a start.
    """

    gamma: float = 5e-6
    n_radial: int = 0
    start_level: float = 0.1

    def __post_init__(self) -> None:
        """As of DiffCSP's, and for what DiffCSP++ adds."""
        super().__post_init__()
        if not 0 < self.start_level <= 1:
            raise refusal(self, ["start_level"], "start_level is above 0 and at most 1")


@dataclass(frozen=True)
class Unit:
    """What of a batch stays fixed: orbits, primitive cells, and the lattice's family.

    ``free`` (C, 6) bool, ``fixed`` (C, 6) scaled values of the others, ``offset`` (C, 6): what is
    added to the scaled coefficients after scaling, ``centring`` (C, 6) one-hot, ``primitive``
    (C, 3, 3): rows of the primitive basis in the conventional one.
    """

    layout: Layout
    sites: Sites
    free: Tensor
    fixed: Tensor
    offset: Tensor
    centring: Tensor
    primitive: Tensor


class DiffCSPPlus(nn.Module):
    """``statistics`` of the training data also hold the templates generation draws from."""

    Config = DiffCSPPlusConfig

    def __init__(self, config: DiffCSPPlusConfig, statistics: Statistics) -> None:
        super().__init__()
        self.config = config
        self.statistics = statistics
        self.generates = config.task == "generate"
        self.network = CSPNet(
            hidden=config.hidden,
            n_layers=config.n_layers,
            n_frequencies=config.n_frequencies,
            time_width=config.time_width,
            lattice_in=6 + len(CENTRINGS),
            lattice_out=6,
            soft_species=self.generates,
            n_radial=config.n_radial,
        )
        cosine = CosineSchedule(config.n_steps)
        torus = WrappedSchedule(config.n_steps, config.sigma_low, config.sigma_high)
        self.lattice = GaussianProcess(cosine, width=6, per_atom=False, limit=LATTICE_LIMIT)
        self.frac = TorusProcess(torus, gamma=config.gamma)
        self.species = ElementProcess(cosine, says=config.species_says, scale=config.species_scale)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the dense part of the network (arguments as for ``torch.compile``)."""
        self.network.compile(*args, **kwargs)

    def processes(self) -> dict[str, Process]:
        """The fields that are diffused; an "atom" of theirs is an orbit."""
        fields: dict[str, Process] = {"lattice": self.lattice, "frac": self.frac}
        return {**fields, "species": self.species} if self.generates else fields

    def denoise(
        self, state: State, t: Tensor, unit: Unit, tables: list[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Network output for each field; ``state``: lattice (C, 6) scaled, frac (O, 3), species.

        What the group fixes gets the noise that leads back to its value: lattice coefficients to
        theirs, coordinates that the position does not use nowhere.
        """
        k = torch.where(unit.free, state["lattice"], unit.fixed)
        g = torch.cat([k, unit.centring], 1)
        species = state["species"]
        if self.generates:
            species = self.species.seen(species, t, unit.layout)
        out = self.network(
            species,
            state["frac"],
            g,
            t,
            unit.layout,
            tables=tables,
            sites=unit.sites,
            cell=self._primitive_cell(k, unit) if self.config.n_radial else None,
        )
        left = torch.sqrt(1 - self.lattice.schedule.alpha_bar[t])[:, None]
        with full_precision():
            frac = torch.einsum("oij,oj->oi", unit.sites.read, out.frac.float())
        fields = {
            "lattice": torch.where(unit.free, out.lattice.float(), state["lattice"] / left),
            "frac": frac.masked_fill(~unit.sites.free, 0.0),
        }
        if out.species is not None:
            fields |= self.species.outputs(out.species.float(), state["species"], t, unit.layout)
        return fields

    @full_precision()
    def _primitive_cell(self, k: Tensor, unit: Unit) -> Tensor:
        """Primitive cells, (C, 3, 3) rows in Å, of the scaled coefficients ``k`` (C, 6)."""
        # Early in sampling a cell can be anything; distances need one that numbers can hold.
        log = ((k + unit.offset) * lattice_scale(k.device)).clamp(-6.0, 6.0)
        return unit.primitive @ from_family6(log).to(unit.primitive.dtype)

    def loss_rows(self, n_crystals: int, n_atoms: int) -> dict[str, int]:
        """Rows of each loss part: crystals, as every part is a mean within a crystal first."""
        names = ("lattice", "frac", "species") if self.generates else ("lattice", "frac")
        return dict.fromkeys(names, n_crystals)

    def loss(self, crystals: Crystals, noise: NoiseSource) -> LossTerms:
        """Denoising loss at one random step per crystal (Sec. 4.3).

        Raises ``ValueError`` for crystals without orbits.
        """
        orbits, groups = crystals.layout.orbits, crystals.layout.space_group
        if orbits is None or groups is None:
            raise ValueError("DiffCSP++ trains on crystals with orbits")
        unit = unit_of(orbits.position, orbits.n_orbits, groups)
        t = noise.integers(unit.layout, self.config.n_steps)
        scaled = to_family6(crystals.lattice).float() / lattice_scale(t.device) - unit.offset
        species = orbits.at_anchors(crystals.species)
        clean = {
            "lattice": torch.where(unit.free, scaled, 0.0),
            "frac": orbits.at_anchors(crystals.frac),
            "species": self.species.clean(species) if self.generates else species,
        }
        state, target = dict(clean), {}
        for name, process in self.processes().items():
            state[name], target[name] = process.corrupt(clean[name], t, unit.layout, noise)
        out = self.denoise(state, t, unit)
        config = self.config
        terms = {
            "lattice": _crystal_loss(
                (out["lattice"] - target["lattice"]).square(),
                unit.free,
                config.weight_lattice,
                None,
            ),
            "frac": _crystal_loss(
                (out["frac"] - target["frac"]).square(),
                unit.sites.free,
                config.weight_frac,
                unit.layout,
            ),
        }
        if self.generates:
            errors = self.species.errors(out, target["species"], species)
            everything = torch.ones_like(errors, dtype=torch.bool)
            terms["species"] = _crystal_loss(errors, everything, config.weight_species, unit.layout)
        return terms

    @torch.no_grad()
    def sample(
        self,
        targets: Sequence[Target],
        noise: NoiseSource,
        *,
        steps: int | None = None,
        on_step: OnStep | None = None,
    ) -> Crystals:
        """One conventional cell for each target, exactly of its template; orbits in its layout.

        Raises ``InputError`` when a target has no template, or (predict) one without species.
        """
        warm = [bool(target.template and target.template.start) for target in targets]
        if len(set(warm)) == 1:
            return self._sample(targets, noise, steps, on_step)
        parts = [[i for i, known in enumerate(warm) if known == kind] for kind in (False, True)]
        found = [self._sample([targets[i] for i in p], noise.of(p), steps, on_step) for p in parts]
        order = parts[0] + parts[1]
        return Crystals.cat(found).index(sent(torch.tensor(order).argsort(), noise.stream.device))

    def _sample(
        self,
        targets: Sequence[Target],
        noise: NoiseSource,
        steps: int | None,
        on_step: OnStep | None,
    ) -> Crystals:
        """As ``sample``, of targets that all have a start or all have none."""
        device = noise.stream.device
        position, n_orbits, groups, given = templates_of(targets, self.generates)
        unit = unit_of(position.to(device), n_orbits.to(device), groups.to(device))
        held = {} if self.generates else {"species": given.to(device)}
        tables = self.network.tables()

        def call(current: State, time: Tensor) -> Mapping[str, Tensor]:
            return self.denoise(current, time, unit, tables)

        start = None if self.generates else starts_of(targets, unit)
        end = reverse(
            call,
            self.processes(),
            unit.layout,
            noise,
            held=held,
            settings=self.config,
            excluded=self._excluded(targets, given, unit) if self.generates else None,
            start=start,
            start_level=self.config.start_level,
            steps=steps,
            on_step=on_step,
        )
        drawn = end["lattice"]
        if start is not None:  # Its volume and the drawn one err apart: their mean errs less.
            drawn = torch.cat([drawn[:, :5], (drawn[:, 5:] + start["lattice"][:, 5:]) / 2], 1)
        k = torch.where(unit.free, drawn, unit.fixed) + unit.offset
        return from_anchors(
            position.to(device),
            unit.layout.n_atoms,
            space_group=groups.to(device),
            lattice=from_family6(k * lattice_scale(device)).float(),
            anchors=end["frac"],
            species=end["species"],
        )

    def _excluded(self, targets: Sequence[Target], given: Tensor, unit: Unit) -> Tensor:
        """Elements each orbit may not be, (O, 100) bool: not asked for, or not the given one."""
        orbit = excluded_elements(targets, unit.layout)
        known = given.to(unit.layout.device)[:, None]
        element = torch.arange(1, MAX_Z + 1, device=known.device)
        return torch.where(known > 0, element != known, orbit)


def unit_of(position: Tensor, n_orbits: Tensor, groups: Tensor) -> Unit:
    """Everything fixed of a batch: ``position`` (O,), ``n_orbits`` (C,), ``groups`` (C,)."""
    device = position.device
    orbits = orbits_of(position, n_orbits)
    table = _group_tables(device)
    free = table["free"][groups]
    sites = sites_of(orbits)
    atoms = (sites.atoms.n_atoms * table["points"][groups]).float()
    offset = torch.zeros(len(groups), 6, device=device)
    offset[:, 5] = (VOLUME_MEAN + atoms.log() / math.sqrt(3)) / SCALE[5]
    return Unit(
        sites.layout,
        sites,
        free,
        torch.where(free, 0.0, table["fixed"][groups] / lattice_scale(device)),
        offset,
        table["centring"][groups],
        table["basis"][groups],
    )


@full_precision()
def cell_features(lattice: Tensor, unit: Unit) -> tuple[Tensor, Tensor]:
    """What the network sees of lattices (C, 3, 3) Å: (C, 12), and the primitive cells."""
    k = to_family6(lattice).float() / lattice_scale(lattice.device) - unit.offset
    cell = unit.primitive @ lattice.to(unit.primitive.dtype)
    return torch.cat([torch.where(unit.free, k, unit.fixed), unit.centring], 1), cell


@cache
def _group_tables(device: torch.device) -> dict[str, Tensor]:
    """By group number, row 0 unused: what its lattice leaves free, centring, lattice points."""
    free = torch.tensor(tables().lattice_free)
    fixed = torch.tensor(tables().lattice_fixed, dtype=torch.float32)
    found = {
        "free": torch.cat([free[:1], free]),
        "fixed": torch.cat([fixed[:1], fixed]),
        "centring": F.one_hot(centring_index(), len(CENTRINGS)).float(),
        "basis": primitive_bases()[centring_index()],
        "points": n_lattice_points(),
    }
    return {name: tensor.to(device) for name, tensor in found.items()}


@cache
def lattice_scale(device: torch.device) -> Tensor:
    return torch.tensor(SCALE, device=device)


def templates_of(
    targets: Sequence[Target], generates: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Positions (O,), orbits of each crystal, groups, and species (O,), 0 where free."""
    positions: list[int] = []
    species: list[int] = []
    counts, groups = [], []
    for target in targets:
        template = target.template
        if template is None:
            raise InputError(
                "these weights need a template: a space group and Wyckoff positions",
                "name them, or use weights of another family",
            )
        if template.species is None and not generates:
            raise InputError(
                "these weights predict: the template must name the species of each position",
                "use generate weights of the same family",
            )
        positions += template.positions
        counts.append(len(template.positions))
        groups.append(template.space_group)
        species += template.species or [0] * len(template.positions)
    position, count, group, kind = map(torch.tensor, (positions, counts, groups, species))
    return position, count, group, kind


def starts_of(targets: Sequence[Target], unit: Unit) -> State | None:
    """The structures to begin near, as clean fields; None where the targets name none."""
    starts = [target.template.start for target in targets if target.template]
    values = torch.tensor([x for start in starts if start for x in start[6:]], dtype=torch.float32)
    if not len(values):
        return None
    k = torch.tensor([start[:6] for start in starts if start], dtype=torch.float32)
    scaled = sent(k, unit.layout.device) / lattice_scale(unit.layout.device) - unit.offset
    frac = sent(values.view(-1, 3), unit.layout.device)
    return {"lattice": torch.where(unit.free, scaled, 0.0), "frac": frac}


def _crystal_loss(errors: Tensor, free: Tensor, weight: float, layout: Layout | None) -> LossTerm:
    """Errors (rows, width) over what is free, averaged within each crystal, summed over crystals.

    ``layout`` None: the rows are crystals.
    """
    total = torch.where(free, errors, 0.0).sum(1)
    count = free.sum(1)
    n_rows = len(total)
    if layout is not None:
        n_rows = layout.n_crystals
        total = total.new_zeros(n_rows).index_add(0, layout.crystal_idx, total)
        count = count.new_zeros(n_rows).index_add(0, layout.crystal_idx, count)
    return LossTerm((total / count.clamp(min=1)).sum(), n_rows, weight)
