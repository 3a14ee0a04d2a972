"""SyMat: a variational autoencoder for species and lattice, and distance scores for coordinates.

Ref: Luo, Liu, Ji, "Towards Symmetry-Aware Generation of Periodic Materials", arXiv:2307.02707
(NeurIPS 2023). All that is learnt is invariant: the encoder sees distances, angles and torsions,
the decoders write numbers, and the score of the coordinates is a sum over edges of an invariant
scalar times the direction of the edge.

Symbols: z_A, z_P, z_L latents of composition, positions and lattice; mu, ln sigma^2 their
posteriors; t a noise level of T; s_i the displacement that mends the distances of atom i.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crystalctl.crystal.batch import MAX_Z, Crystals, Layout, Target
from crystalctl.crystal.periodic import Neighbours, neighbours
from crystalctl.crystal.segments import crystal_mean
from crystalctl.data.statistics import Statistics
from crystalctl.diffusion.cartesian import CartesianLevels, descend, distance_errors, pulls
from crystalctl.diffusion.lattice_coords import from_scaled6, to_scaled6
from crystalctl.diffusion.noise import NoiseSource
from crystalctl.diffusion.sampling import OnStep
from crystalctl.errors import InputError
from crystalctl.models.contract import LossTerm, LossTerms, row_loss
from crystalctl.models.latent_search import improved
from crystalctl.models.properties import at_once, property_loss, wanted
from crystalctl.networks.composition import CompositionDecoder
from crystalctl.networks.layers import perceptron, time_features
from crystalctl.networks.spherenet import SphereNet

LOG_VAR_LIMIT, MU_LIMIT = 6.0, 14.0
"""Bounds of the posteriors (published configuration)."""
TIME_WIDTH = 16


@dataclass(frozen=True)
class SyMatConfig:
    """Settings; the defaults are the published ones for MP-20.

    ``nearest`` and ``cutoff_score`` (Å) are of the graph of the coordinates, ``nearest_encoder``
    and ``cutoff`` of the encoder's. ``n_steps`` network calls are ``n_levels`` noise levels times
    the Langevin steps at each; ``sample_steps`` are made unless told otherwise. ``temperature_*``
    scale the latents that are drawn, and the noise of the Langevin steps. ``property`` names a
    label to learn (training fills in mean and spread), "" none; ``search_steps`` are made along
    its gradient. A ``weight_frac`` of 0 leaves the coordinates and their networks out, which makes
    a step much cheaper: a first stage for species and lattice.
    """

    task: str = "generate"
    hidden: int = 128
    n_layers: int = 4
    channels: int = 16
    n_radial: int = 6
    n_spherical: int = 7
    latent: int = 128
    hidden_decoder: int = 256
    cutoff: float = 5.0
    nearest_encoder: int = 12
    cutoff_score: float = 5.0
    nearest: int = 5
    n_levels: int = 50
    n_steps: int = 5000
    sample_steps: int = 100
    sigma_low: float = 0.01
    sigma_high: float = 10.0
    langevin_step: float = 1e-4
    temperature_composition: float = 1.0
    temperature_positions: float = 1.0
    temperature_lattice: float = 1.0
    temperature_noise: float = 0.01
    weight_kl: float = 0.01
    weight_number: float = 1.0
    weight_elements: float = 30.0
    weight_counts: float = 1.0
    weight_lattice: float = 10.0
    weight_frac: float = 10.0
    property: str = ""
    property_mean: float = 0.0
    property_std: float = 1.0
    weight_property: float = 1.0
    search_steps: int = 100

    def __post_init__(self) -> None:
        """Refuse settings that no network or schedule can have."""
        whole = ["hidden", "n_layers", "channels", "n_radial", "n_spherical", "latent"]
        whole += ["hidden_decoder", "nearest", "nearest_encoder", "n_levels", "sample_steps"]
        wrong = [name for name in whole if getattr(self, name) < 1]
        positive = ("cutoff", "cutoff_score", "langevin_step")
        wrong += [name for name in positive if not 0 < getattr(self, name) < math.inf]
        wrong += [
            name
            for name in self.__dataclass_fields__
            if name.startswith(("weight_", "temperature_"))
            and not 0 <= getattr(self, name) < math.inf
        ]
        if not 0 < self.sigma_low < self.sigma_high < math.inf:
            wrong.append("sigma_low")
        if not self.sample_steps <= self.n_steps or self.n_steps % self.n_levels:
            wrong.append("n_steps")
        if wrong:
            values = ", ".join(f"model.{name} = {getattr(self, name)}" for name in wrong)
            raise InputError(
                f"{values} cannot be",
                "sizes are 1 or more, weights and temperatures not negative, sigma_low below "
                "sigma_high, n_steps a multiple of n_levels and at least sample_steps",
            )


@dataclass(frozen=True)
class Posterior:
    """mu and ln sigma^2 of (z_A, z_P, z_L) side by side, (C, 3 latent) each."""

    mu: Tensor
    log_var: Tensor

    def draw(self, layout: Layout, noise: NoiseSource) -> Tensor:
        """Latents, (C, 3 latent)."""
        eps = noise.normal(layout, self.mu.shape[1], per_atom=False)
        return self.mu + torch.exp(self.log_var / 2) * eps

    def kl(self) -> Tensor:
        """Divergence from the standard normal, (C,)."""
        terms = 1 + self.log_var - self.mu**2 - self.log_var.exp()
        return -0.5 * terms.sum(1)


class SyMat(nn.Module):
    """``statistics`` of the training data say how many atoms a generated crystal may have."""

    Config = SyMatConfig

    def __init__(self, config: SyMatConfig, statistics: Statistics) -> None:
        super().__init__()
        self.config, self.statistics = config, statistics
        width, latent = config.hidden_decoder, config.latent
        sizes = {
            "hidden": config.hidden,
            "n_layers": config.n_layers,
            "channels": config.channels,
            "n_radial": config.n_radial,
            "n_spherical": config.n_spherical,
        }
        self.encoder = SphereNet(**sizes, cutoff=config.cutoff)
        self.places = config.weight_frac > 0
        self.positions_to_latent = perceptron(config.hidden, width, 2 * latent)
        self.composition_to_latent = perceptron(MAX_Z, width, 2 * latent)
        self.lattice_to_latent = perceptron(6, width, 2 * latent)
        self.composition = CompositionDecoder(latent, width, statistics.max_atoms)
        self.species = nn.Embedding(MAX_Z, latent)
        self.latent_to_lattice = perceptron(2 * latent, width, 6)
        self.regressor = perceptron(3 * latent, width, 1) if config.property else None
        context = latent + TIME_WIDTH
        self.network = SphereNet(**sizes, cutoff=config.cutoff_score, context=context)
        self.edge_head = perceptron(config.hidden, config.hidden, 1)
        self.levels = CartesianLevels(
            config.n_levels,
            config.sigma_low,
            config.sigma_high,
            step=config.langevin_step,
            temperature=config.temperature_noise,
        )

    def encode(self, crystals: Crystals) -> Posterior:
        """The posteriors of the latents."""
        layout = crystals.layout
        cell = to_scaled6(crystals.lattice, layout.n_atoms)
        shares = self.composition.shares(crystals.species, layout).to(cell.dtype)
        mu_a, var_a = self.composition_to_latent(shares).chunk(2, 1)
        mu_p = var_p = torch.zeros_like(mu_a)
        if self.places:
            edges = neighbours(
                crystals.frac,
                crystals.lattice,
                layout,
                self.config.cutoff,
                nearest=self.config.nearest_encoder,
            )
            _, atoms = self.encoder(crystals.species, edges)
            mu_p, var_p = self.positions_to_latent(crystal_mean(atoms, layout)).chunk(2, 1)
        mu_l, var_l = self.lattice_to_latent(cell).chunk(2, 1)
        mu = torch.cat([mu_a, mu_p, mu_l], 1).to(cell.dtype).clamp(-MU_LIMIT, MU_LIMIT)
        log_var = torch.cat([var_a, var_p, var_l], 1).to(cell.dtype)
        return Posterior(mu, log_var.clamp(-LOG_VAR_LIMIT, LOG_VAR_LIMIT))

    def decode_lattice(self, z: Tensor, species: Tensor, layout: Layout) -> Tensor:
        """Scaled cell parameters (C, 6) from z_L (C, latent) and the species of the crystal."""
        mean = crystal_mean(self.species(species - 1), layout)
        out: Tensor = self.latent_to_lattice(torch.cat([z, mean], 1))
        return out

    def mending(
        self, edges: Neighbours, species: Tensor, z: Tensor, *, t: Tensor, layout: Layout
    ) -> Tensor:
        """s_i / norm_t of all atoms, (A, 3); ``z`` (C, latent) is z_P, ``t`` (C,) the level.

        ``edges`` are those of the noised crystal. Turns with the crystal, and nothing else.
        """
        time = time_features(t, TIME_WIDTH).to(z.dtype)
        context = torch.cat([z, time], 1)[layout.crystal_idx]
        features, _ = self.network(species, edges, context)
        return pulls(edges, self.edge_head(features)[:, 0].to(z.dtype), layout.total_atoms)

    def graph(self, frac: Tensor, lattice: Tensor, layout: Layout) -> Neighbours:
        """The edges that the score of the coordinates sees."""
        cutoff, nearest = self.config.cutoff_score, self.config.nearest
        return neighbours(frac, lattice, layout, cutoff, nearest=nearest)

    def loss_rows(self, n_crystals: int, n_atoms: int) -> dict[str, int]:
        """Rows of each loss part for a batch of that size."""
        parts = ("kl", "number", "elements", "counts", "lattice")
        rows = dict.fromkeys(parts, n_crystals) | ({"frac": n_atoms} if self.places else {})
        return rows if self.regressor is None else {**rows, "property": n_crystals}

    def loss(self, crystals: Crystals, noise: NoiseSource) -> LossTerms:
        """Evidence bound of the autoencoder and denoising loss of the coordinates (Eqs. 3 to 8)."""
        layout, config = crystals.layout, self.config
        posterior = self.encode(crystals)
        z = posterior.draw(layout, noise)
        z_a, z_p, z_l = z.chunk(3, 1)
        terms = {"kl": LossTerm(posterior.kl().sum(), len(crystals), config.weight_kl)}
        for name, rows in self.composition.losses(z_a, crystals.species, layout).items():
            terms[name] = LossTerm(rows.sum(), len(rows), getattr(config, f"weight_{name}"))
        cell = to_scaled6(crystals.lattice, layout.n_atoms)
        decoded = self.decode_lattice(z_l, crystals.species, layout)
        terms["lattice"] = row_loss(decoded, cell, config.weight_lattice)
        if self.regressor is not None:
            terms["property"] = property_loss(self.regressor(z)[:, 0], crystals.labels, config)
        if self.places:
            terms["frac"] = self._place_loss(crystals, z_p, noise)
        return terms

    def _place_loss(self, crystals: Crystals, z_p: Tensor, noise: NoiseSource) -> LossTerm:
        """Denoising loss at one random level per crystal (Eq. 8)."""
        layout, config = crystals.layout, self.config
        t = noise.integers(layout, config.n_levels)
        frac, moved = self.levels.corrupt(crystals.frac, crystals.lattice, t, layout, noise)
        edges = self.graph(frac, crystals.lattice, layout)
        errors = distance_errors(edges, moved, crystals.lattice, layout)
        norm = self.levels.norm[t][layout.crystal_idx][:, None]
        target = pulls(edges, errors, layout.total_atoms) / norm
        out = self.mending(edges, crystals.species, z_p, t=t, layout=layout)
        return row_loss(out, target, config.weight_frac)

    @torch.no_grad()
    def predicted(self, crystals: Crystals) -> Tensor:
        """The property the model learnt, (C,) in its own unit, from the mean of the posterior."""
        assert self.regressor is not None
        device = next(self.parameters()).device
        found = [self.regressor(self.encode(part).mu)[:, 0] for part in at_once(crystals, device)]
        scaled = torch.cat(found)
        return scaled * self.config.property_std + self.config.property_mean

    @torch.no_grad()
    def sample(
        self,
        targets: Sequence[Target],
        noise: NoiseSource,
        *,
        steps: int | None = None,
        on_step: OnStep | None = None,
    ) -> Crystals:
        """One crystal for each target, from latents of the prior.

        ``steps`` network calls, see ``descend``; ``n_steps`` are the published sampler. Raises
        ``InputError`` when a target asks for a composition.
        """
        if any(target.composition for target in targets):
            raise InputError(
                "these weights generate: they cannot take a composition",
                "use a family that predicts",
            )
        one_each = Layout(torch.ones(len(targets), dtype=torch.int64, device=noise.stream.device))
        draw = noise.uniform(one_each, 1, per_atom=False)[:, 0].cpu()
        drawn = self.statistics.draw_n_atoms(draw).tolist()
        counts = torch.tensor([t.n_atoms or n for t, n in zip(targets, drawn, strict=True)])
        layout = Layout(counts).to(noise.stream.device)
        z_a, z_p, z_l = self._latents(targets, layout, noise).unbind(1)
        species = self.composition.decode(z_a, layout, [t.elements for t in targets])
        scaled = self.decode_lattice(z_l, species, layout)
        lattice = from_scaled6(scaled, layout.n_atoms)

        def score(frac: Tensor, t: int) -> tuple[Neighbours, Tensor]:
            level = torch.full_like(layout.n_atoms, t)
            edges = self.graph(frac, lattice, layout)
            return edges, self.mending(edges, species, z_p, t=level, layout=layout)

        calls = steps or self.config.sample_steps
        frac = descend(
            score,
            self.levels,
            lattice,
            layout,
            noise,
            steps=calls,
            langevin=calls == self.config.n_steps,
            on_step=on_step,
        )
        return Crystals(layout, lattice, frac, species)

    def _latents(self, targets: Sequence[Target], layout: Layout, noise: NoiseSource) -> Tensor:
        """z_A, z_P and z_L, (C, 3, latent): drawn, then moved towards the goals."""
        config = self.config
        scale = torch.tensor(
            [
                config.temperature_composition,
                config.temperature_positions,
                config.temperature_lattice,
            ],
            device=layout.device,
        )
        drawn = noise.normal(layout, 3 * config.latent, per_atom=False)
        z = drawn.view(-1, 3, config.latent) * scale[:, None]
        goals = wanted(targets, config)
        aims = {row: goal for row, goal in enumerate(goals) if goal is not None}
        regressor = self.regressor
        if not aims or regressor is None:
            return z
        z[list(aims)] = improved(
            lambda moving: regressor(moving.flatten(1))[:, 0],
            z[list(aims)],
            list(aims.values()),
            steps=config.search_steps,
        )
        return z
