"""SGEquiDiff: p(G) p(L | G) p(W, A | L, G) p(X | W, A, L, G), each with a likelihood.

Ref: Chang et al., "Space Group Equivariant Crystal Diffusion", arXiv:2505.10994 (v3, 2025).
Group G: frequencies of the training data. Lattice L: bins of bins (``networks/telescope.py``).
Positions and elements W, A: a transformer (``networks/wyckoff_net.py``). Coordinates X: diffusion
along the Wyckoff positions with a normal wrapped by the space group (``diffusion/group_torus.py``)
and a network averaged over the group. The four share no parameters: each can be trained alone.

Where this differs from the paper, and why, is said in docs/models/sgequidiff.md: the wrapped normal
is invariant in hexagonal groups too, and lattice and transformer can also be given a formula.

Symbols: u free coordinates of an anchor, t time step of T, C crystals, O orbits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from crystalctl.crystal.batch import Crystals, Layout, Target, Template
from crystalctl.crystal.lattice import to_parameters
from crystalctl.crystal.orbits import Orbits
from crystalctl.data.statistics import Statistics
from crystalctl.diffusion.group_torus import GroupTorusProcess
from crystalctl.diffusion.noise import NoiseSource, seeded
from crystalctl.diffusion.sampling import OnStep
from crystalctl.diffusion.schedules import WrappedSchedule
from crystalctl.errors import InputError
from crystalctl.models import drawing, formula_search
from crystalctl.models.contract import LossTerm, LossTerms
from crystalctl.models.diffcsp_pp import Unit, cell_features, unit_of
from crystalctl.models.occupation import Occupation, formula_of, occupied_of
from crystalctl.models.reverse import RANGES, impossible, refusal
from crystalctl.models.wyckoff_images import METRICS, images_of, strengths
from crystalctl.networks.cspnet import CSPNet
from crystalctl.networks.telescope import TelescopeNet
from crystalctl.networks.wyckoff_net import Formula
from crystalctl.symmetry.features import group_features, position_features
from crystalctl.symmetry.groups import FAMILIES
from crystalctl.symmetry.primitive import CENTRINGS
from crystalctl.symmetry.tables import tables

PARTS = ("group", "lattice", "position", "element", "frac")
"""Parts of the loss; "group" is that of the group given a formula."""
MODULES = {"group": ("group",), "lattice": ("lattice",), "occupation": ("position", "element")}
MODULES |= {"coordinates": ("frac",)}
"""What ``parts`` may name, with the parts of the loss that train it."""


@dataclass(frozen=True)
class SGEquiDiffConfig:
    """Settings; the defaults are the paper's for MP-20 where it has them.

    ``hidden``, ``n_layers``, ``n_frequencies``, ``n_radial``, ``time_width``: of the network of the
    coordinates. ``parts``: "all", or the modules to train, of "group,lattice,occupation,
    coordinates"; the others stay as they are. ``metric``: "invariant", or the paper's "fractional".
    """

    task: str = "generate"
    parts: str = "all"
    hidden: int = 256
    n_layers: int = 5
    n_frequencies: int = 32
    n_radial: int = 24
    time_width: int = 128
    hidden_occupation: int = 256
    n_layers_occupation: int = 4
    n_heads: int = 2
    dropout: float = 0.1
    hidden_lattice: int = 256
    metric: str = "invariant"
    n_steps: int = 1000
    sigma_low: float = 0.002
    sigma_high: float = 0.5
    gamma: float = 1.28e-6
    sample_steps: int = 100
    n_correct: int = 1
    restarts: int = 0
    restart_level: float = 0.4
    weight_group: float = 1.0
    weight_lattice: float = 1.0
    weight_position: float = 1.0
    weight_element: float = 1.0
    weight_frac: float = 1.0

    def __post_init__(self) -> None:
        """Refuse settings that no schedule or sampler can have."""
        if wrong := impossible(self):
            raise refusal(self, wrong, RANGES)


class SGEquiDiff(nn.Module):
    """``statistics`` of the training data hold the frequencies of the groups."""

    Config = SGEquiDiffConfig
    strength: Tensor
    family: Tensor

    def __init__(self, config: SGEquiDiffConfig, statistics: Statistics) -> None:
        super().__init__()
        if config.metric not in METRICS:
            raise InputError(f"model.metric = {config.metric!r}", f"use {' or '.join(METRICS)}")
        self.config, self.statistics = config, statistics
        self.occupation = Occupation(
            statistics,
            hidden=config.hidden_occupation,
            n_layers=config.n_layers_occupation,
            n_heads=config.n_heads,
            dropout=config.dropout,
        )
        n_kind, n_place = group_features().shape[1], position_features().shape[1]
        self.lattices = TelescopeNet(config.hidden_lattice, n_kind, n_place)
        self.network = CSPNet(
            hidden=config.hidden,
            n_layers=config.n_layers,
            n_frequencies=config.n_frequencies,
            time_width=config.time_width,
            lattice_in=6 + len(CENTRINGS),
            lattice_out=0,
            n_radial=config.n_radial,
        )
        self.schedule = WrappedSchedule(config.n_steps, config.sigma_low, config.sigma_high)
        numbers = [0, *(FAMILIES.index(name) for name in tables().families)]
        self.register_buffer("family", torch.tensor(numbers), persistent=False)
        table = strengths(config.metric, self.schedule.sigma)
        self.register_buffer("strength", table, persistent=False)
        self.trained = _trained(config.parts)
        self.occupation.net.requires_grad_("position" in self.trained)
        self.occupation.group.requires_grad_("group" in self.trained)
        self.lattices.requires_grad_("lattice" in self.trained)
        self.network.requires_grad_("frac" in self.trained)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the dense part of the network, as ``torch.compile`` does."""
        self.network.compile(*args, **kwargs)

    def loss_rows(self, n_crystals: int, n_atoms: int) -> dict[str, int]:
        """Rows of each loss part: crystals."""
        del n_atoms
        return dict.fromkeys(self.trained, n_crystals)

    def loss(self, crystals: Crystals, noise: NoiseSource) -> LossTerms:
        """-log p of what is discrete, and the denoising loss at one random step per crystal.

        Half of the crystals, drawn anew, show lattice and transformer what they are to be given:
        their content, and their formula. Raises ``ValueError`` for crystals without orbits.
        """
        orbits, groups = crystals.layout.orbits, crystals.layout.space_group
        if orbits is None or groups is None:
            raise ValueError("SGEquiDiff trains on crystals with orbits")
        layout, config = Layout(orbits.n_orbits), self.config
        given = noise.uniform(layout, 2, per_atom=False) < 0.5
        found: dict[str, Tensor] = {}
        species = orbits.at_anchors(crystals.species)
        parameters = to_parameters(crystals.lattice.float())
        if "lattice" in self.trained:
            jitter = noise.uniform(layout, 6, per_atom=False)
            family = self.family[groups]
            seen = self.lattices.noised(parameters, family, jitter)
            condition = self.content(orbits.position, species, layout)
            log_p = self.lattices.log_probability(
                parameters,
                family,
                self.kinds[groups],
                torch.where(given[:, :1], condition, 0.0),
                before=seen,
            )
            found["lattice"] = -log_p.sum(1)
        if {"group", "position", "element"} & set(self.trained):
            formula = formula_of(crystals, self.occupation.net.rules.size_of[orbits.position])
        if "group" in self.trained:
            logits = self.occupation.group_log_probability(formula)
            found["group"] = -logits.gather(1, groups[:, None])[:, 0]
        if "position" in self.trained:
            shown = Formula(formula.elements * given[:, 1:], formula.counts * given[:, 1:])
            sequence = occupied_of(orbits.position, species, layout)
            training, learning = self.training, self.training and torch.is_grad_enabled()
            self.train(learning)
            # Dropout follows the noise of the step, as all else does: a resumed run is the same.
            with seeded(noise, layout) if learning and config.dropout else nullcontext():
                position, element = self.occupation.log_probability(
                    groups, parameters, shown, sequence
                )
            self.train(training)
            found |= {"position": -position, "element": -element}
        if "frac" in self.trained:
            found["frac"] = self._frac_loss(crystals, orbits, groups, noise)
        return {
            name: LossTerm(found[name].sum(), len(crystals), getattr(config, f"weight_{name}"))
            for name in self.trained
        }

    @property
    def kinds(self) -> Tensor:
        """Features of the groups, (231, 62)."""
        return self.occupation.net.kinds

    def content(self, position: Tensor, species: Tensor, layout: Layout) -> Tensor:
        """What the lattice is told of the orbits (O,), (C, hidden / 2)."""
        net = self.occupation.net
        size = net.rules.size_of[position]
        return self.lattices.condition(net.features[position], species, size, layout)

    def process(self, position: Tensor) -> GroupTorusProcess:
        """The diffusion of anchors on positions (O,)."""
        images = images_of(position, self.config.metric)
        strength = self.strength[position]
        return GroupTorusProcess(self.schedule, images, strength, gamma=self.config.gamma)

    def _frac_loss(
        self, crystals: Crystals, orbits: Orbits, groups: Tensor, noise: NoiseSource
    ) -> Tensor:
        """Squared error of the velocity, a mean over what is free in each crystal, (C,)."""
        unit = unit_of(orbits.position, orbits.n_orbits, groups)
        process = self.process(orbits.position)
        clean = orbits.at_anchors(crystals.frac).float().masked_fill(~unit.sites.free, 0.0)
        t = noise.integers(unit.layout, self.config.n_steps)
        x, target = process.corrupt(clean, t, unit.layout, noise)
        g, cell = cell_features(crystals.lattice, unit)
        out = self.denoise(x, orbits.at_anchors(crystals.species), t, unit, g=g, cell=cell)
        square = process.images.square(out - target)
        sums = square.new_zeros(len(crystals)).index_add(0, unit.layout.crystal_idx, square)
        count = torch.zeros_like(sums).index_add(
            0, unit.layout.crystal_idx, unit.sites.free.sum(1).to(sums.dtype)
        )
        return sums / count.clamp(min=1)

    def denoise(
        self,
        frac: Tensor,
        species: Tensor,
        t: Tensor,
        unit: Unit,
        *,
        g: Tensor,
        cell: Tensor,
        tables: list[Tensor] | None = None,
    ) -> Tensor:
        """Velocities (O, 3) of anchors ``frac`` (O, 3), divided by the root of their strength.

        The network sees all atoms of the primitive cell once; the mean over the group of what it
        says at them is equivariant and lies along the positions.
        """
        sites = unit.sites
        out = self.network(
            species[sites.orbit_idx],
            sites.place(frac),
            g,
            t,
            sites.atoms,
            tables=tables,
            cell=cell if self.config.n_radial else None,
        )
        return sites.pull(out.frac.float())

    @torch.no_grad()
    def sample(
        self,
        targets: Sequence[Target],
        noise: NoiseSource,
        *,
        steps: int | None = None,
        on_step: OnStep | None = None,
    ) -> Crystals:
        """One conventional cell for each target's template, see ``models/drawing.py``."""
        return drawing.sample(self, targets, noise, steps=steps, on_step=on_step)

    @torch.no_grad()
    def compose(
        self, pools: Sequence[Sequence[int]], noise: NoiseSource, **wishes: Any
    ) -> list[Template | None]:
        """Groups out of ``pools`` with lattices, positions and elements: ``drawing.compose``."""
        return drawing.compose(self, pools, noise, **wishes)

    def propose(
        self, composition: Mapping[int, int], n: int, *, groups: Collection[int] | None = None
    ) -> list[tuple[tuple[tuple[int, int], ...], float]]:
        """Templates of a composition, the likeliest first: ``models/formula_search.py``."""
        return formula_search.propose(self.occupation, composition, n, groups=groups)

    def probabilities(
        self,
        composition: Mapping[int, int],
        templates: Sequence[tuple[tuple[int, int], ...]],
        *,
        groups: Collection[int] | None = None,
    ) -> list[float]:
        """The probability of each template, as ``propose`` gives it."""
        return formula_search.probabilities(self.occupation, composition, templates, groups=groups)


def _trained(parts: str) -> tuple[str, ...]:
    """The parts of the loss of the modules that ``parts`` names."""
    names = list(MODULES) if parts == "all" else [name.strip() for name in parts.split(",")]
    unknown = [name for name in names if name not in MODULES]
    if unknown or not names:
        raise InputError(f"model.parts = {parts!r}", f"use all, or some of {', '.join(MODULES)}")
    chosen = {part for name in names for part in MODULES[name]}
    return tuple(part for part in PARTS if part in chosen)
