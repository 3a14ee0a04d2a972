"""AxisNet: a CSPNet that does not know which axis is called a, b or c.

Each atom has a state without axis, s, and one for each axis, a^x; all weights are shared by the
three axes, which see each other through means only. New names for the axes therefore permute the
a^x and the outputs read from them, exactly, and s stays. With b the mean of a^x, h of g^x over x,

    z = SiLU(W [s_i, b_i, s_j, b_j, h, sum_x psi(f_j^x - f_i^x)])
    u^x = SiLU(V [s_i, a_i^x, s_j, a_j^x, g^x, psi(f_j^x - f_i^x)])

are the first layer of a message, and a second one mixes them (``AxisMix``). As in CSPNet
(``networks/cspnet.py``) W and V are split: the Fourier parts are read from tables, one for all
axes, and the ends are added once per atom.

Symbols: S numbers in s, C in a^x; g^x the lattice features of axis x (length, angle).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crystalctl.crystal.batch import MAX_Z, Layout
from crystalctl.crystal.segments import crystal_mean, neighbour_mean
from crystalctl.networks.cspnet import CSPNetOutput
from crystalctl.networks.fourier import FourierTables
from crystalctl.networks.layers import time_features
from crystalctl.networks.pairs import Incidence

AXIS_FEATURES = 2
"""Numbers the lattice vector has for each axis."""


State = tuple[Tensor, Tensor]
"""What has no axis, (rows, S), and what each axis has, (rows, 3, C)."""
Reads = tuple[Incidence, Incidence]
"""What the pairs read, E rows, and what each axis of them does, 3E rows."""


class AxisMix(nn.Module):
    """SiLU-Linear-SiLU: the axes see what they have in common, never each other."""

    def __init__(self, common: int, axis: int) -> None:
        super().__init__()
        self.common_from_common = nn.Linear(common, common)
        self.common_from_axes = nn.Linear(axis, common, bias=False)
        self.axis_from_common = nn.Linear(common, axis)
        self.axis_from_axes = nn.Linear(axis, axis, bias=False)
        self.axis_from_axis = nn.Linear(axis, axis, bias=False)

    def forward(self, common: Tensor, axes: Tensor) -> State:
        """Pre-activations in, activations out."""
        z, u = F.silu(common), F.silu(axes)
        mean = u.mean(1)
        shared = self.axis_from_common(z) + self.axis_from_axes(mean)
        common = self.common_from_common(z) + self.common_from_axes(mean)
        return F.silu(common), F.silu(self.axis_from_axis(u) + shared[:, None])


class AxisLayer(nn.Module):
    """One message-passing step."""

    def __init__(self, common: int, axis: int, n_frequencies: int) -> None:
        super().__init__()
        self.norm_common, self.norm_axis = nn.LayerNorm(common), nn.LayerNorm(axis)
        both = common + axis
        # Receiver and sender at once.
        self.ends_common = nn.Linear(both, 2 * common)
        self.ends_axis = nn.Linear(both, 2 * axis)
        self.lattice_common = nn.Linear(AXIS_FEATURES, common, bias=False)
        self.lattice_axis = nn.Linear(AXIS_FEATURES, axis, bias=False)
        self.fourier_common = nn.Linear(2 * n_frequencies, common, bias=False)
        self.fourier_axis = nn.Linear(2 * n_frequencies, axis, bias=False)
        self.pair_mix = AxisMix(common, axis)
        self.node_common = nn.Linear(2 * both, common)
        self.node_axis = nn.Linear(2 * both, axis)
        self.node_mix = AxisMix(common, axis)
        # A function, not the module: that would be registered, and kept in files, a second time.
        self.second_half: Callable[[Tensor, Tensor], State] = self._second_half

    def _second_half(self, first: Tensor, first_axes: Tensor) -> State:
        """What is dense of a pair: most of the work."""
        return self.pair_mix(first, first_axes)  # type: ignore[no-any-return]

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile what is dense and of one kind; the gathers around it stay as they are."""
        self.second_half = torch.compile(self._second_half, *args, **kwargs)

    def forward(
        self,
        state: State,
        g: Tensor,
        tables: State,
        pairs: Reads,
        graph: Layout,
    ) -> State:
        """``g`` (C, 3, 2); ``tables`` (M, S) and (M, C)."""
        common, axes = self.norm_common(state[0]), self.norm_axis(state[1])
        receiver, sender = self.ends_common(torch.cat([common, axes.mean(1)], 1)).chunk(2, 1)
        receiver = receiver + self.lattice_common(g.mean(1))[graph.crystal_idx]
        first = _read(pairs[0], tables[0], receiver, sender)
        receiver, sender = _each(self.ends_axis, common, axes).chunk(2, 2)
        receiver = receiver + self.lattice_axis(g)[graph.crystal_idx]
        first_axes = _read(pairs[1], tables[1], receiver.flatten(0, 1), sender.flatten(0, 1))
        sent, sent_axes = self.second_half(first, first_axes.unflatten(0, (-1, 3)))
        message = neighbour_mean(sent, graph).to(common.dtype)
        message_axes = neighbour_mean(sent_axes.flatten(1), graph).to(common.dtype)
        seen = torch.cat([common, message], 1)
        seen_axes = torch.cat([axes, message_axes.unflatten(1, (3, -1))], 2)
        node = self.node_common(torch.cat([seen, seen_axes.mean(1)], 1))
        update, update_axes = self.node_mix(node, _each(self.node_axis, seen, seen_axes))
        return state[0] + update, state[1] + update_axes


def _each(linear: nn.Linear, common: Tensor, axes: Tensor) -> Tensor:
    """``linear`` on (common, axis) of each axis, with what is common multiplied once."""
    shared, own = linear.weight.split([common.shape[1], axes.shape[2]], 1)
    return F.linear(axes, own) + F.linear(common, shared, linear.bias)[:, None]


def _read(pairs: Incidence, table: Tensor, receiver: Tensor, sender: Tensor) -> Tensor:
    """Pre-activations of the pairs, added up in the precision of the weights."""
    return pairs @ torch.cat([table, receiver.to(table.dtype), sender.to(table.dtype)])


class AxisNet(nn.Module):
    """Denoiser over fully connected crystals; arguments and outputs as for ``CSPNet``.

    ``hidden`` (4 or more) is the width H of a pair and axis; a quarter of it is of the axis.
    ``n_lattice`` and ``n_frac`` are the outputs per axis: they come as one triple after the other.
    """

    def __init__(
        self,
        *,
        hidden: int = 512,
        n_layers: int = 6,
        n_frequencies: int = 128,
        time_width: int = 256,
        n_lattice: int = 2,
        n_frac: int = 2,
        soft_species: bool = False,
    ) -> None:
        super().__init__()
        self.time_width = time_width
        axis = hidden // 4
        common = hidden - axis
        self.embedding: nn.Module = (
            nn.Linear(MAX_Z, hidden) if soft_species else nn.Embedding(MAX_Z, hidden)
        )
        self.input_common = nn.Linear(hidden + time_width, common)
        self.input_axis = nn.Linear(hidden + time_width, axis)
        self.input_lattice = nn.Linear(AXIS_FEATURES, axis, bias=False)
        self.fourier = FourierTables(n_frequencies, n_axes=1)
        self.layers = nn.ModuleList(AxisLayer(common, axis, n_frequencies) for _ in range(n_layers))
        self.norm_common, self.norm_axis = nn.LayerNorm(common), nn.LayerNorm(axis)
        self.lattice_head = nn.Linear(hidden, n_lattice, bias=False)
        self.frac_head = nn.Linear(hidden, n_frac, bias=False)
        self.species_head = nn.Linear(hidden, MAX_Z) if soft_species else None

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the dense part of every layer (arguments as for ``torch.compile``)."""
        for layer in self.layers:
            layer.compile(*args, **kwargs)

    def tables(self) -> list[Tensor]:
        """Fourier tables of all layers, (M, S) and (M, C) in turn; they change with the weights."""
        names = ("fourier_common.weight", "fourier_axis.weight")
        weights = [layer.get_parameter(name) for layer in self.layers for name in names]
        return [self.fourier.tables(weight) for weight in weights]

    def pairs(self, frac: Tensor, layout: Layout) -> Reads:
        """What each pair reads, (E, 26), and what each axis of it does, (3E, 10).

        Rows of the table at f_j - f_i, of all axes or of one; receiver row; sender row.
        """
        receiver, sender = layout.edges
        rows, weights = self.fourier.stencil(frac[sender] - frac[receiver])
        grid, n_atoms = self.fourier.grid, layout.total_atoms
        ends = torch.stack([receiver + grid, sender + (grid + n_atoms)], 1)
        axis = torch.arange(3, device=frac.device)
        receivers, senders = ((3 * end[:, None] + axis).flatten() for end in (receiver, sender))
        ends_axes = torch.stack([receivers + grid, senders + (grid + 3 * n_atoms)], 1)
        rows_axes, weights_axes = (one.view(len(ends_axes), -1) for one in (rows, weights))
        return (
            _incidence(rows, weights, ends, grid + 2 * n_atoms),
            _incidence(rows_axes, weights_axes, ends_axes, grid + 6 * n_atoms),
        )

    def forward(
        self,
        species: Tensor,
        frac: Tensor,
        g: Tensor,
        t: Tensor,
        layout: Layout,
        *,
        tables: list[Tensor] | None = None,
    ) -> CSPNetOutput:
        """Denoise once; ``g`` (C, 6): three lengths, three angles, in the order of the axes."""
        emb = self.embedding(species if self.species_head is not None else species - 1)
        time = time_features(t, self.time_width).to(emb.dtype)
        start = torch.cat([emb, time[layout.crystal_idx]], 1)
        g = g.unflatten(1, (AXIS_FEATURES, 3)).transpose(1, 2)
        axes = self.input_lattice(g)[layout.crystal_idx] + self.input_axis(start)[:, None]
        state = self.input_common(start), axes
        pairs, tables = self.pairs(frac, layout), tables or self.tables()
        for number, layer in enumerate(self.layers):
            own = tables[2 * number], tables[2 * number + 1]
            state = layer(state, g, own, pairs, layout)
        common, axes = self.norm_common(state[0]), self.norm_axis(state[1])
        each = torch.cat([common[:, None].expand(-1, 3, -1), axes], 2)
        mean = crystal_mean(each.flatten(1), layout).view(layout.n_crystals, 3, -1)
        return CSPNetOutput(
            self.lattice_head(mean).transpose(1, 2).flatten(1),
            self.frac_head(each).transpose(1, 2).flatten(1),
            None if self.species_head is None else self.species_head(each.mean(1)),
        )


def _incidence(rows: Tensor, weights: Tensor, ends: Tensor, n_rows: int) -> Incidence:
    ones = weights.new_ones(ends.shape)
    return Incidence(torch.cat([rows, ends], 1), torch.cat([weights, ones], 1), n_rows)
