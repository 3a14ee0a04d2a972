"""DiffCSP: joint diffusion of lattice, coordinates and, to generate, species.

Ref: Jiao et al., "Crystal Structure Prediction by Joint Equivariant Diffusion",
arXiv:2309.04475 (NeurIPS 2023). Lattice: the 9 numbers of L, variance preserving. Coordinates:
wrapped normal on the torus. Species: fixed (``predict``) or one-hot vectors of 100 numbers,
variance preserving, argmax at the end (``generate``). Sampling: Algorithm 2.

Symbols: L lattice (rows, Å), F fractional coordinates, A species, t time step of T,
gamma the factor of the Langevin step.

With a ``property`` the network also learns it, from the noised crystal, and its gradient guides
samples towards a goal: ``models/properties.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from crystalctl.crystal.batch import Crystals, Layout, Target
from crystalctl.crystal.goal import Goal
from crystalctl.crystal.precision import full_precision
from crystalctl.data.statistics import Statistics
from crystalctl.diffusion.elements import SAYS, ElementProcess
from crystalctl.diffusion.gaussian import GaussianProcess
from crystalctl.diffusion.noise import NoiseSource
from crystalctl.diffusion.process import State
from crystalctl.diffusion.sampling import OnStep
from crystalctl.diffusion.schedules import CosineSchedule, WrappedSchedule
from crystalctl.diffusion.torus import TorusProcess
from crystalctl.errors import InputError
from crystalctl.models.contract import LossTerms, mean_loss, row_loss
from crystalctl.models.device import Call
from crystalctl.models.properties import at_once, guided, property_loss, wanted
from crystalctl.models.reverse import RANGES, excluded_elements, impossible, refusal, reverse
from crystalctl.networks.cspnet import CSPNet

LATTICE_LIMIT = 60.0
"""Bound on the Frobenius norm of a predicted lattice, Å; beyond any cell of 20 atoms in MP-20."""
Field = GaussianProcess | TorusProcess


@dataclass(frozen=True)
class CSPConfig:
    """Settings of the families with a denoiser; the defaults are DiffCSP's for MP-20 (App. B.3).

    Only sampling uses ``gamma``, ``sample_steps``, ``n_correct`` (corrector calls in a step),
    ``restarts`` (how often noise is added again) and ``restart_level`` (up to which share of T).
    ``species_says`` and ``species_scale`` are for generating: ``diffusion/elements.py``.
    """

    task: str = "predict"
    hidden: int = 512
    n_layers: int = 6
    n_frequencies: int = 128
    time_width: int = 256
    n_steps: int = 1000
    sigma_low: float = 0.005
    sigma_high: float = 0.5
    gamma: float = 1e-5
    weight_lattice: float = 1.0
    weight_frac: float = 1.0
    weight_species: float = 20.0
    species_says: str = "noise"
    species_scale: float = 1.0
    sample_steps: int = 1000
    n_correct: int = 1
    restarts: int = 0
    restart_level: float = 0.4

    def __post_init__(self) -> None:
        """Refuse settings that no network or schedule can have."""
        at_least_1 = ("hidden", "n_layers", "n_frequencies", "n_steps")
        wrong = [name for name in at_least_1 if getattr(self, name) < 1]
        weights = ("weight_lattice", "weight_frac", "weight_species")
        wrong += [name for name in weights if not 0 <= getattr(self, name) < math.inf]
        wrong += impossible(self)
        if self.time_width < 4 or self.time_width % 2:
            wrong.append("time_width")
        if self.species_says not in SAYS:
            wrong.append("species_says")
        if not 0 < self.species_scale < math.inf:
            wrong.append("species_scale")
        if wrong:
            raise refusal(
                self,
                wrong,
                f"sizes are 1 or more, time_width even and 4 or more, {RANGES}, "
                f"species_scale above 0, species_says one of: {', '.join(SAYS)}",
            )


@dataclass(frozen=True)
class DiffCSPConfig(CSPConfig):
    """And what only DiffCSP has.

    ``property`` names a label to learn (training fills in mean and spread), "" none; ``guidance``
    is the factor of its gradient at strength 1.
    """

    property: str = ""
    property_mean: float = 0.0
    property_std: float = 1.0
    weight_property: float = 1.0
    guidance: float = 5.0

    def __post_init__(self) -> None:
        """Refuse settings that no network or schedule can have."""
        super().__post_init__()
        for name in ("guidance", "weight_property"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"model.{name} = {getattr(self, name)}", "it is not negative")


class DiffCSP(nn.Module):
    """``statistics`` of the training data say how many atoms a generated crystal may have."""

    Config = DiffCSPConfig

    def __init__(self, config: DiffCSPConfig, statistics: Statistics) -> None:
        super().__init__()
        self.config = config
        self.statistics = statistics
        self.generates = config.task == "generate"
        self.network = CSPNet(
            hidden=config.hidden,
            n_layers=config.n_layers,
            n_frequencies=config.n_frequencies,
            time_width=config.time_width,
            soft_species=self.generates,
            scalar=bool(config.property),
        )
        cosine = CosineSchedule(config.n_steps)
        torus = WrappedSchedule(config.n_steps, config.sigma_low, config.sigma_high)
        self.lattice = GaussianProcess(cosine, width=9, per_atom=False, limit=LATTICE_LIMIT)
        self.frac = TorusProcess(torus, gamma=config.gamma)
        self.species = ElementProcess(cosine, says=config.species_says, scale=config.species_scale)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the dense part of the network (arguments as for ``torch.compile``)."""
        self.network.compile(*args, **kwargs)

    def processes(self) -> dict[str, Field]:
        """The fields that are diffused."""
        fields: dict[str, Field] = {"lattice": self.lattice, "frac": self.frac}
        return {**fields, "species": self.species} if self.generates else fields

    def denoise(
        self, state: State, t: Tensor, layout: Layout, tables: list[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Network output for each field; ``state``: lattice (C, 9), frac (A, 3), species."""
        matrix = state["lattice"].view(-1, 3, 3)
        with full_precision():
            gram = matrix @ matrix.transpose(1, 2)
        species = state["species"]
        if self.generates:
            species = self.species.seen(species, t, layout)
        out = self.network(species, state["frac"], gram.flatten(1), t, layout, tables=tables)
        # Multiplying by L makes the lattice output turn with the crystal (Eq. 8).
        with full_precision():
            lattice = (out.lattice.float().view(-1, 3, 3) @ matrix).flatten(1)
        fields = {"lattice": lattice, "frac": out.frac.float()}
        if out.species is not None:
            fields |= self.species.outputs(out.species.float(), state["species"], t, layout)
        if out.scalar is not None:
            fields["property"] = out.scalar.float()
        return fields

    def _clean(self, crystals: Crystals) -> dict[str, Tensor]:
        """The state without noise."""
        species = crystals.species
        if self.generates:
            species = self.species.clean(species)
        lattice = crystals.lattice.flatten(1)
        return {"lattice": lattice, "frac": crystals.frac, "species": species}

    def loss_rows(self, n_crystals: int, n_atoms: int) -> dict[str, int]:
        """Rows of each loss part for a batch of that size."""
        rows = {"lattice": n_crystals, "frac": n_atoms}
        rows |= {"species": n_atoms} if self.generates else {}
        return rows | ({"property": n_crystals} if self.config.property else {})

    def loss(self, crystals: Crystals, noise: NoiseSource) -> LossTerms:
        """Denoising loss at one random step per crystal (Eqs. 4, 5 and App. A.3)."""
        layout, config = crystals.layout, self.config
        t = noise.integers(layout, config.n_steps)
        clean = self._clean(crystals)
        state, target = dict(clean), {}
        for name, process in self.processes().items():
            state[name], target[name] = process.corrupt(clean[name], t, layout, noise)
        out = self.denoise(state, t, layout)
        terms = {
            "lattice": row_loss(out["lattice"], target["lattice"], config.weight_lattice),
            "frac": row_loss(out["frac"], target["frac"], config.weight_frac),
        }
        if self.generates:
            errors = self.species.errors(out, target["species"], crystals.species)
            terms["species"] = mean_loss(errors, config.weight_species)
        if config.property:
            terms["property"] = property_loss(out["property"], crystals.labels, config)
        return terms

    @torch.no_grad()
    def predicted(self, crystals: Crystals) -> Tensor:
        """The property the model learnt, (C,) in its own unit, of crystals without noise."""
        assert self.config.property
        device = next(self.parameters()).device
        found = []
        for part in at_once(crystals, device):
            time = torch.ones_like(part.layout.n_atoms)
            found.append(self.denoise(self._clean(part), time, part.layout)["property"])
        return torch.cat(found) * self.config.property_std + self.config.property_mean

    @torch.no_grad()
    def sample(
        self,
        targets: Sequence[Target],
        noise: NoiseSource,
        *,
        steps: int | None = None,
        on_step: OnStep | None = None,
    ) -> Crystals:
        """One crystal for each target; ``predict`` weights need a composition.

        ``steps`` of the T time steps are made, two network calls each (Alg. 2). Raises
        ``InputError`` when a target does not fit the task.
        """
        device = noise.stream.device
        layout = layout_of(targets, noise, self.statistics, generates=self.generates)
        held: dict[str, Tensor] = {}
        if not self.generates:
            numbers = [z for target in targets for z in target.species()]
            held["species"] = torch.tensor(numbers, device=device)
        goals = wanted(targets, self.config)
        # A gradient points to where the network has seen nothing: at least not to strange elements.
        known = frozenset(self.statistics.elements)
        allowed = [
            replace(target, elements=known) if goal and not target.elements else target
            for target, goal in zip(targets, goals, strict=True)
        ]
        end = reverse(
            self._call(goals, layout),
            self.processes(),
            layout,
            noise,
            held=held,
            settings=self.config,
            excluded=excluded_elements(allowed, layout) if self.generates else None,
            steps=steps,
            on_step=on_step,
        )
        return Crystals(layout, end["lattice"].view(-1, 3, 3), end["frac"], end["species"])

    def _call(self, goals: Sequence[Goal | None], layout: Layout) -> Call:
        """The network call of a sampler, guided where there are goals."""
        aimed = any(goal is not None for goal in goals)
        with torch.inference_mode(torch.is_inference_mode_enabled() and not aimed):
            tables = self.network.tables()
        if not aimed:
            return lambda state, t: self.denoise(state, t, layout, tables)
        return guided(
            lambda state, t, fresh: self.denoise(state, t, fresh, tables),
            self.processes(),
            goals,
            layout,
            factor=self.config.guidance,
        )


def layout_of(
    targets: Sequence[Target], noise: NoiseSource, statistics: Statistics, *, generates: bool
) -> Layout:
    """Atom counts: of the composition, as asked, or drawn from the training histogram.

    Raises ``InputError`` when a target does not fit the task.
    """
    device = noise.stream.device
    if generates and any(target.composition for target in targets):
        raise InputError(
            "these weights generate: they cannot take a composition",
            "use predict weights of the same family",
        )
    if not generates and not all(target.composition for target in targets):
        raise InputError(
            "these weights predict: each target needs a composition",
            "use generate weights of the same family",
        )
    one_each = Layout(torch.ones(len(targets), dtype=torch.int64, device=device))
    draw = noise.uniform(one_each, 1, per_atom=False)[:, 0]
    drawn = statistics.draw_n_atoms(draw.cpu()).tolist()
    counts = [
        len(target.species()) or target.n_atoms or drawn[i] for i, target in enumerate(targets)
    ]
    return Layout(torch.tensor(counts)).to(device)
