"""CSPNet: the periodic message-passing denoiser of DiffCSP, DiffCSP++ and EquiCSP.

Ref: arXiv:2309.04475, Eqs. 6-8. The function is the paper's; the way to it is not. The first
Linear of the edge network acts on [h_i, h_j, g(L), psi(f_j - f_i)]. It is split into its columns:
W_i h_i and W_g g are added once per atom, W_j h_j once per atom, and W_psi psi is read from tables
(``networks/fourier.py``); all three come together in one gather per pair (``networks/pairs.py``).

Symbols: h atom states, g lattice features, psi Fourier features of fractional pair vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crystalctl.crystal.batch import MAX_Z, Layout
from crystalctl.crystal.segments import Graph, crystal_mean, neighbour_mean
from crystalctl.crystal.sites import Sites
from crystalctl.networks.choice import Choice
from crystalctl.networks.fourier import COARSE, FourierTables
from crystalctl.networks.fused import Work, best_tile, fused_messages
from crystalctl.networks.layers import mlp, time_features
from crystalctl.networks.pairs import Incidence
from crystalctl.networks.radial import PairHead, PeriodicShells, Shells


@dataclass(frozen=True)
class CSPNetOutput:
    """``lattice`` (C, lattice_out), ``frac`` (A, frac_out), ``species`` (A, 100) or None.

    ``scalar`` (C,): an invariant number per crystal, where the network has that head.
    """

    lattice: Tensor
    frac: Tensor
    species: Tensor | None
    scalar: Tensor | None = None


@dataclass(frozen=True)
class Pairs:
    """``receiver``, ``sender`` (E,) rows; ``delta`` (E, 3) fractional pair vectors, any period."""

    receiver: Tensor
    sender: Tensor
    delta: Tensor
    incidence: Incidence


class CSPLayer(nn.Module):
    """One message-passing step; parameters are named and shaped as in the plain form.

    ``edge_mlp.0`` acts on [h_i (H), h_j (H), g (G), sin (3K), cos (3K)]; ``radial``, where there is
    one, on the radial features of the pair. It starts at zero: weights without it can be continued.
    """

    def __init__(self, hidden: int, lattice_in: int, n_frequencies: int, n_radial: int = 0) -> None:
        super().__init__()
        self.radial = nn.Parameter(torch.zeros(hidden, n_radial)) if n_radial else None
        self.columns = [hidden, hidden, lattice_in, 6 * n_frequencies]
        self.norm = nn.LayerNorm(hidden)
        self.edge_mlp = mlp(sum(self.columns), hidden, hidden)
        self.node_mlp = mlp(2 * hidden, hidden, hidden)
        self.second_half: Callable[[Tensor], Tensor] = self._second_half
        self.choice: Choice | None = None

    def _second_half(self, first: Tensor) -> Tensor:
        """SiLU-Linear-SiLU over the pre-activations of the pairs, (E, H): most of the work."""
        return F.silu(self.edge_mlp[2](F.silu(first)))

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile what is dense and of one kind; the gathers around it stay as they are."""
        self.second_half = torch.compile(self._second_half, *args, **kwargs)

    def _plain_messages(self, work: Work) -> Tensor:
        """The mean messages (A, H), one operation after the other."""
        first = work.pairs @ work.ends
        if work.extra is not None:
            first = first + work.extra
        return neighbour_mean(self.second_half(first), work.graph)

    def _messages(self, work: Work) -> Tensor:
        """The mean messages (A, H), in one kernel where that has turned out faster."""
        plain = self._plain_messages
        tile = None if self.choice is None else best_tile(work, plain, self.choice)
        return plain(work) if tile is None else fused_messages(work, tile)

    def fourier_weight(self) -> Tensor:
        """The columns of the first edge Linear that act on the Fourier features, (H, 6K)."""
        return self.edge_mlp.get_parameter("0.weight")[:, -self.columns[-1] :]

    def forward(
        self,
        h: Tensor,
        g: Tensor,
        table: Tensor,
        pairs: Incidence,
        graph: tuple[Tensor, Graph],
        *,
        radial: Tensor | None = None,
    ) -> Tensor:
        """``h`` (A, H), ``g`` (C, G), ``table`` (3M, H) from ``fourier_weight``.

        ``graph``: the crystal of each row (A,), and the pairs; ``radial`` (E, n_radial).
        """
        crystal_idx, neighbours = graph
        weight, bias = (self.edge_mlp.get_parameter(name) for name in ("0.weight", "0.bias"))
        w_receiver, w_sender, w_lattice, _ = weight.split(self.columns, 1)
        x = self.norm(h)
        receiver = F.linear(x, w_receiver, bias)
        receiver = receiver + F.linear(g, w_lattice)[crystal_idx]
        sender = F.linear(x, w_sender)
        # Added up in the precision of the weights: under autocast the ends come in bf16.
        ends = (receiver.to(table.dtype), sender.to(table.dtype))
        extra = None
        if radial is not None and self.radial is not None:
            extra = F.linear(radial, self.radial)
        w, b = (self.edge_mlp.get_parameter(name) for name in ("2.weight", "2.bias"))
        message = self._messages(Work(torch.cat([table, *ends]), extra, w, b, pairs, neighbours))
        update: Tensor = self.node_mlp(torch.cat([x, message.to(x.dtype)], 1))
        return h + update


class CSPNet(nn.Module):
    """Denoiser over fully connected crystals.

    ``lattice_in`` is the width of g(L), ``lattice_out`` and ``frac_out`` those of the heads, 0 for
    no lattice head;
    ``soft_species`` takes (A, 100) species vectors instead of atomic numbers and adds a species
    head, ``scalar`` one that reads a number off the whole crystal. With ``n_radial`` pairs also see
    their distances, and heads add up pair forces and strains (``networks/radial.py``; the lattice
    must then be the six family coefficients), which the published network does not have.
    """

    def __init__(
        self,
        *,
        hidden: int = 512,
        n_layers: int = 6,
        n_frequencies: int = 128,
        time_width: int = 256,
        lattice_in: int = 9,
        lattice_out: int = 9,
        frac_out: int = 3,
        soft_species: bool = False,
        scalar: bool = False,
        n_radial: int = 0,
    ) -> None:
        super().__init__()
        self.time_width = time_width
        self.embedding: nn.Module = (
            nn.Linear(MAX_Z, hidden) if soft_species else nn.Embedding(MAX_Z, hidden)
        )
        self.input = nn.Linear(hidden + time_width, hidden)
        self.fourier = FourierTables(n_frequencies)
        self.coarse = FourierTables(n_frequencies, width=COARSE)
        self.shells = PeriodicShells(n_radial) if n_radial else None
        self.pair_head = PairHead(hidden, n_radial) if n_radial else None
        self.layers = nn.ModuleList(
            CSPLayer(hidden, lattice_in, n_frequencies, n_radial) for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(hidden)
        self.lattice_head = nn.Linear(hidden, lattice_out, bias=False) if lattice_out else None
        self.frac_head = nn.Linear(hidden, frac_out, bias=False)
        self.species_head = nn.Linear(hidden, MAX_Z) if soft_species else None
        self.scalar_head = nn.Linear(hidden, 1) if scalar else None

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the dense part of every layer (arguments as for ``torch.compile``)."""
        for layer in self.layers:
            layer.compile(*args, **kwargs)

    def fuse(self, choice: Choice | None) -> None:
        """Let ``choice`` find out whether messages are made in one kernel; None: they are not."""
        for layer in self.layers:
            layer.choice = choice  # type: ignore[assignment]

    def tables(self, *, coarse: bool = False) -> list[Tensor]:
        """Fourier tables of all layers, (3M, H) each; they change only with the weights."""
        weights = [layer.fourier_weight() for layer in self.layers]  # type: ignore[operator]
        return [(self.coarse if coarse else self.fourier).tables(weight) for weight in weights]

    def pairs(
        self, frac: Tensor, layout: Layout, sites: Sites | None = None, *, coarse: bool = False
    ) -> Pairs:
        """The pairs of a state; each reads table rows for f_j - f_i, receiver row i, sender row j.

        With ``sites`` the rows are orbits: the senders are all atoms of the primitive cell, each
        with the state of its orbit.
        """
        if sites is None:
            receiver, sender = layout.edges
            delta = frac[sender] - frac[receiver]
        else:
            receiver, atom = sites.edges
            points, sender = sites.place(frac), sites.orbit_idx[atom]
            delta = points[atom] - points[sites.anchor][receiver]
        rows, weights = (self.coarse if coarse else self.fourier).stencil(delta)
        n_table, n_rows = 3 * self.fourier.grid, layout.total_atoms
        ends = torch.stack([receiver + n_table, sender + (n_table + n_rows)], 1)
        ones = weights.new_ones(len(receiver), 2)
        incidence = Incidence(
            torch.cat([rows, ends], 1), torch.cat([weights, ones], 1), n_table + 2 * n_rows
        )
        return Pairs(receiver, sender, delta, incidence)

    def forward(
        self,
        species: Tensor,
        frac: Tensor,
        g: Tensor,
        t: Tensor,
        layout: Layout,
        *,
        tables: list[Tensor] | None = None,
        sites: Sites | None = None,
        cell: Tensor | None = None,
    ) -> CSPNetOutput:
        """Denoise once.

        ``species`` (A,) atomic numbers or (A, 100); ``frac`` (A, 3); ``g`` (C, lattice_in);
        ``t`` (C,) time steps; ``tables`` from ``tables()``, computed here when not given. With
        ``sites`` the A rows are the orbits of symmetric crystals, ``frac`` their anchors, and
        ``layout`` counts orbits. ``cell`` (C, 3, 3), rows in Å, is what ``frac`` (of the primitive
        cell, with ``sites``) refers to; only radial features need it.
        """
        emb = self.embedding(species if self.species_head is not None else species - 1)
        time = time_features(t, self.time_width).to(emb.dtype)
        h = self.input(torch.cat([emb, time[layout.crystal_idx]], 1))
        # What is rounded to bf16 anyway is read from fewer rows; tables that are given are fine.
        coarse = tables is None and torch.is_autocast_enabled(frac.device.type)
        pairs = self.pairs(frac, layout, sites, coarse=coarse)
        shells: Shells | None = None
        if self.shells is not None and cell is not None:
            shells = self.shells(pairs.delta, cell, layout.crystal_idx[pairs.receiver])
        count = None if shells is None else shells.count
        graph = layout.crystal_idx, layout if sites is None else sites
        if tables is None:
            tables = self.tables(coarse=coarse)
        for layer, table in zip(self.layers, tables, strict=True):
            h = layer(h, g, table, pairs.incidence, graph, radial=count)
        h = self.norm(h)
        whole, shift = _mean(h, layout, sites), self.frac_head(h)
        lattice = h.new_zeros(layout.n_crystals, 0)
        if self.lattice_head is not None:
            lattice = self.lattice_head(whole)
        if shells is not None and self.pair_head is not None:
            pull, strain = self.pair_head(h, pairs.receiver, pairs.sender, shells)
            shift = shift + pull
            if self.lattice_head is not None:
                lattice = lattice + _mean(strain, layout, sites)
        elements = None if self.species_head is None else self.species_head(h)
        scalar = None if self.scalar_head is None else self.scalar_head(whole)[:, 0]
        return CSPNetOutput(lattice, shift, elements, scalar)


def _mean(rows: Tensor, layout: Layout, sites: Sites | None) -> Tensor:
    """Mean over the atoms of each crystal; an orbit counts as often as it has atoms."""
    if sites is None:
        return crystal_mean(rows, layout)
    return crystal_mean(rows * sites.share, layout) * layout.n_atoms[:, None]
