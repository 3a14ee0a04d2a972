"""EquiCSP: diffusion that does not care how the axes are named or where the crystal lies.

Ref: Lin et al., "Equivariant Diffusion for Crystal Structure Prediction", arXiv:2512.07289 (ICML
2024). Lattice: logarithms of the lengths and tangents of the angles, variance preserving.
Coordinates: noise on the torus without drift, of which the network predicts a von Mises score and
the noise itself. Species: fixed (``predict``) or one-hot vectors of 100 numbers, variance
preserving, argmax at the end (``generate``).

Renaming the axes must permute the outputs. ``permutation = "loss"`` asks for that with a loss, as
the paper does; "exact" has it by construction (``networks/axisnet.py``); "none" does without.

Symbols: L lattice vector, F fractional coordinates, A species, t time step of T, d the noise of F
without its circular mean, gamma the factor of the Langevin step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from crystalctl.crystal.batch import Crystals, Layout, Target
from crystalctl.data.statistics import Statistics
from crystalctl.diffusion.centred import CentredTorusProcess
from crystalctl.diffusion.elements import ElementProcess
from crystalctl.diffusion.gaussian import GaussianProcess
from crystalctl.diffusion.lattice_coords import (
    AXIS_ORDERS,
    from_logtan6,
    rename_axes,
    to_logtan6,
)
from crystalctl.diffusion.noise import NoiseSource
from crystalctl.diffusion.process import Process, State
from crystalctl.diffusion.sampling import OnStep
from crystalctl.diffusion.schedules import CosineSchedule, WrappedSchedule
from crystalctl.errors import InputError
from crystalctl.models.contract import LossTerm, LossTerms, mean_loss, row_loss
from crystalctl.models.diffcsp import CSPConfig, layout_of
from crystalctl.models.reverse import excluded_elements, reverse
from crystalctl.networks.axisnet import AxisNet
from crystalctl.networks.cspnet import CSPNet

LATTICE_LIMIT = 10.0
"""Bound on the norm of a predicted lattice vector: three lengths of 300 Å are within."""
PERMUTATION = ("loss", "exact", "none")


@dataclass(frozen=True)
class EquiCSPConfig(CSPConfig):
    """Settings as for DiffCSP; the defaults are the paper's for MP-20.

    ``weight_score`` is that of the von Mises score, ``weight_frac`` that of the noise; the
    ``weight_perm_`` ones are those of the permutation loss. Only sampling uses ``unbiased``.
    """

    gamma: float = 5e-6
    permutation: str = "loss"
    unbiased: bool = False
    weight_score: float = 1.0
    weight_perm_lattice: float = 1.0
    weight_perm_score: float = 1.0
    weight_perm_frac: float = 1.0
    weight_perm_species: float = 20.0

    def __post_init__(self) -> None:
        """Refuse settings that no network or schedule can have."""
        super().__post_init__()
        if self.permutation not in PERMUTATION:
            raise InputError(
                f"model.permutation = {self.permutation!r}", f"use one of: {', '.join(PERMUTATION)}"
            )
        if self.permutation == "exact" and self.hidden < 4:
            raise InputError(f"model.hidden = {self.hidden}", "permutation exact needs 4 or more")


class EquiCSP(nn.Module):
    """``statistics`` of the training data say how many atoms a generated crystal may have."""

    Config = EquiCSPConfig
    orders: Tensor

    def __init__(self, config: EquiCSPConfig, statistics: Statistics) -> None:
        super().__init__()
        self.config = config
        self.statistics = statistics
        self.generates = config.task == "generate"
        sizes: dict[str, Any] = {
            "hidden": config.hidden,
            "n_layers": config.n_layers,
            "n_frequencies": config.n_frequencies,
            "time_width": config.time_width,
            "soft_species": self.generates,
        }
        self.network: AxisNet | CSPNet = (
            AxisNet(**sizes)
            if config.permutation == "exact"
            else CSPNet(**sizes, lattice_in=6, lattice_out=6, frac_out=6)
        )
        self.register_buffer("orders", torch.tensor(AXIS_ORDERS), persistent=False)
        cosine = CosineSchedule(config.n_steps)
        torus = WrappedSchedule(config.n_steps, config.sigma_low, config.sigma_high)
        self.lattice = GaussianProcess(cosine, width=6, per_atom=False, limit=LATTICE_LIMIT)
        self.frac = CentredTorusProcess(torus, gamma=config.gamma, unbiased=config.unbiased)
        self.species = ElementProcess(cosine, says=config.species_says, scale=config.species_scale)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the dense part of the network (arguments as for ``torch.compile``)."""
        self.network.compile(*args, **kwargs)

    def processes(self) -> dict[str, Process]:
        """The fields that are diffused."""
        fields: dict[str, Process] = {"lattice": self.lattice, "frac": self.frac}
        return {**fields, "species": self.species} if self.generates else fields

    def denoise(
        self, state: State, t: Tensor, layout: Layout, tables: list[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Network output for each field; ``state``: lattice (C, 6), frac (A, 3), species.

        The output for "frac" is (A, 6): score, then d, each over its norm.
        """
        species = state["species"]
        if self.generates:
            species = self.species.seen(species, t, layout)
        out = self.network(species, state["frac"], state["lattice"], t, layout, tables=tables)
        fields = {"lattice": out.lattice.float(), "frac": out.frac.float()}
        if out.species is not None:
            fields |= self.species.outputs(out.species.float(), state["species"], t, layout)
        return fields

    def loss_rows(self, n_crystals: int, n_atoms: int) -> dict[str, int]:
        """Rows of each loss part for a batch of that size."""
        rows = {"lattice": n_crystals, "score": n_atoms, "frac": n_atoms}
        if self.generates:
            rows["species"] = n_atoms
        if self.config.permutation == "loss":
            rows |= {f"perm_{name}": count for name, count in rows.items()}
        return rows

    def loss(self, crystals: Crystals, noise: NoiseSource) -> LossTerms:
        """Denoising loss at one random step per crystal, and the loss of renamed axes."""
        layout = crystals.layout
        t = noise.integers(layout, self.config.n_steps)
        clean: dict[str, Tensor] = {
            "lattice": to_logtan6(crystals.lattice).float(),
            "frac": crystals.frac,
            "species": crystals.species,
        }
        if self.generates:
            clean["species"] = self.species.clean(crystals.species)
        state, target = dict(clean), {}
        for name, process in self.processes().items():
            state[name], target[name] = process.corrupt(clean[name], t, layout, noise)
        tables = self.network.tables()
        out = self.denoise(state, t, layout, tables)
        terms = self._terms(out, target)
        if self.generates:
            errors = self.species.errors(out, target["species"], crystals.species)
            terms["species"] = mean_loss(errors, self.config.weight_species)
        if self.config.permutation == "loss":
            number = noise.integers(layout, len(AXIS_ORDERS) - 1)
            orders = self.orders[number]
            renamed = renamed_axes(state, orders, layout)
            again = self.denoise(renamed, t, layout, tables)
            terms |= self._terms(again, renamed_axes(out, orders, layout), "perm_")
        return terms

    def _terms(
        self, out: Mapping[str, Tensor], target: Mapping[str, Tensor], prefix: str = ""
    ) -> dict[str, LossTerm]:
        """The parts of a loss, under their names after ``prefix``."""
        (score, shift), wanted = out["frac"].chunk(2, 1), target["frac"].chunk(2, 1)
        parts = {
            "lattice": (out["lattice"], target["lattice"]),
            "score": (score, wanted[0]),
            "frac": (shift, wanted[1]),
        }
        if self.generates and prefix:
            parts["species"] = (out["species"], target["species"])
        return {
            prefix + name: row_loss(*pair, getattr(self.config, f"weight_{prefix}{name}"))
            for name, pair in parts.items()
        }

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

        ``steps`` of the T time steps are made, two network calls each. Raises ``InputError`` when
        a target does not fit the task.
        """
        layout = layout_of(targets, noise, self.statistics, generates=self.generates)
        held: dict[str, Tensor] = {}
        if not self.generates:
            numbers = [z for target in targets for z in target.species()]
            held["species"] = torch.tensor(numbers, device=noise.stream.device)
        tables = self.network.tables()

        def call(current: State, time: Tensor) -> Mapping[str, Tensor]:
            return self.denoise(current, time, layout, tables)

        end = reverse(
            call,
            self.processes(),
            layout,
            noise,
            held=held,
            settings=self.config,
            excluded=excluded_elements(targets, layout) if self.generates else None,
            steps=steps,
            on_step=on_step,
        )
        return Crystals(layout, from_logtan6(end["lattice"]).float(), end["frac"], end["species"])


def renamed_axes(fields: Mapping[str, Tensor], orders: Tensor, layout: Layout) -> dict[str, Tensor]:
    """A state, or outputs, with the axes of each crystal in the order ``orders`` (C, 3)."""
    return {
        **fields,
        "lattice": rename_axes(fields["lattice"], orders),
        "frac": rename_axes(fields["frac"], orders[layout.crystal_idx]),
    }
