"""What of a crystal is discrete: its group, and which positions hold which elements.

The two of SGEquiDiff's factors p(G) and p(W, A | L, G), and the same given a formula instead of a
lattice, which makes it a proposer of templates. Ref: Sec. 4.3, arXiv:2505.10994.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crystalctl.crystal.batch import MAX_Z, Crystals, Layout
from crystalctl.data.statistics import Statistics
from crystalctl.models.proposer import position_facts
from crystalctl.networks.telescope import pick
from crystalctl.networks.wyckoff_net import Formula, GroupNet, Occupied, Wish, WyckoffNet
from crystalctl.symmetry.assignments import reach
from crystalctl.symmetry.features import group_features, position_features
from crystalctl.symmetry.tables import N_GROUPS

LARGEST = 48
"""Atoms of the primitive cell that every general position fits in."""
UNSEEN = 0.5
"""Added to the number of training structures of each group."""


class Occupation(nn.Module):
    """The transformer, and the logits of the groups with and without a formula."""

    prior: Tensor

    def __init__(
        self, statistics: Statistics, *, hidden: int, n_layers: int, n_heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.max_atoms = max(statistics.max_atoms, LARGEST)
        self.net = WyckoffNet(
            position_facts(),
            torch.from_numpy(reach(self.max_atoms)),
            torch.from_numpy(group_features()).float(),
            torch.from_numpy(position_features()).float(),
            hidden=hidden,
            n_layers=n_layers,
            n_heads=n_heads,
            dropout=dropout,
        )
        self.group = GroupNet(hidden, self.max_atoms, N_GROUPS)
        self.register_buffer("prior", _group_prior(statistics), persistent=False)

    def group_log_probability(self, formula: Formula | None = None) -> Tensor:
        """(B, 231) given a formula, (1, 231) of the training data; column 0 is -inf."""
        logits = self.prior[None]
        if formula is not None:
            logits = logits + self.group(formula).float()
        return logits.log_softmax(1)

    def log_probability(
        self, group: Tensor, parameters: Tensor | None, formula: Formula, orbits: Occupied
    ) -> tuple[Tensor, Tensor]:
        """log p of all positions with the stop, and of all elements, (B,) each."""
        context = self.net.context(group, parameters, formula)
        position, element = self.net(context, group, formula, orbits)
        index = (orbits.rows - self.net.rules.first_of[group][:, None]).clamp(min=0)
        stop = torch.full_like(index[:, :1], position.shape[2] - 1)
        chosen = torch.where(
            torch.arange(position.shape[1], device=group.device) < orbits.n[:, None],
            torch.cat([index, stop], 1),
            stop,
        )
        each = position.float().log_softmax(2).gather(2, chosen[..., None])[..., 0]
        valid = orbits.valid
        counted = torch.arange(position.shape[1], device=group.device) <= orbits.n[:, None]
        # Rows beyond the end are nan; where() keeps that out of the sum and of the gradients.
        z = (orbits.species - 1).clamp(min=0)
        what = torch.where(valid[..., None], element.float(), 0.0).log_softmax(2)
        what = what.gather(2, z[..., None])[..., 0]
        return each.masked_fill(~counted, 0.0).sum(1), what.masked_fill(~valid, 0.0).sum(1)

    def draw(
        self,
        group: Tensor,
        parameters: Tensor,
        wish: Wish,
        uniform: Tensor,
        *,
        temperature: float = 1.0,
    ) -> Occupied:
        """Occupied positions for groups (B,) and lattices (B, 6); ``uniform`` (B, 2 max_atoms).

        Every one is within the ``wish``; what can be is known before each step.
        """
        context = self.net.context(group, parameters, no_formula(group))
        n = torch.zeros_like(group)
        rows = n[:, None].repeat(1, self.max_atoms)
        species = torch.zeros_like(rows)
        going = torch.arange(len(group), device=group.device)
        # Only what has not stopped goes on: most crystals have a few orbits, some have dozens.
        for step in range(self.max_atoms):
            part, nothing = group[going], no_formula(group[going])
            orbits = Occupied(rows[going, :step], species[going, :step], n[going])
            allowed = Wish(wish.elements[going], wish.sizes[going])
            states = self.net.states(context[going], nothing, orbits)[:, -1:]
            left = self.net.rules.left_of(nothing, orbits)
            ways = self.net.rules.ways(part, nothing, left, orbits)
            possible = self.net.rules.positions_possible(part, nothing, orbits, ways, allowed)
            logits = self.net.position_logits(states, self.net.rules.there(part))[:, 0].float()
            logits = logits.masked_fill(~possible[:, -1], -torch.inf)
            index = pick(logits / temperature, uniform[going, 2 * step])
            # As numbers, for a device is waited for at each use of a mask.
            on = (index < self.net.rules.reach.shape[1] - 2).nonzero()[:, 0]
            going = going[on]
            if len(going) == 0:
                break
            rows[going, step] = self.net.rules.first_of[group[going]] + index[on]
            species[going, step] = self._draw_element(
                states[on],
                Occupied(rows[going, : step + 1], species[going, : step + 1], n[going]),
                Wish(wish.elements[going], wish.sizes[going]),
                temperature,
                uniform=uniform[going, 2 * step + 1],
            )
            n[going] += 1
        return Occupied(rows, species, n)

    def complete(
        self, group: Tensor, parameters: Tensor, given: Occupied, *, wish: Wish, uniform: Tensor
    ) -> Tensor:
        """Species (B, L) for positions that are given; those of ``given`` that are not 0 stay."""
        nothing = no_formula(group)
        context = self.net.context(group, parameters, nothing)
        species = given.species[:, :0]
        for step in range(given.rows.shape[1]):
            n = given.n.clamp(max=step)
            before = Occupied(given.rows[:, :step], species, n)
            states = self.net.states(context, nothing, before)[:, -1:]
            now = Occupied(
                given.rows[:, : step + 1], torch.cat([species, given.species[:, step, None]], 1), n
            )
            drawn = self._draw_element(states, now, wish, 1.0, uniform=uniform[:, step])
            known = given.species[:, step]
            species = torch.cat([species, torch.where(known > 0, known, drawn)[:, None]], 1)
        return species

    def _draw_element(
        self, states: Tensor, orbits: Occupied, wish: Wish, temperature: float, *, uniform: Tensor
    ) -> Tensor:
        """Atomic number (B,) on the last of the rows, whose own entry in species is not read."""
        z = torch.arange(1, MAX_Z + 1, device=uniform.device)
        least = torch.zeros_like(orbits.n)
        if orbits.rows.shape[1] > 1:
            same = orbits.rows[:, -1] == orbits.rows[:, -2]
            least = torch.where(same, orbits.species[:, -2], 0)
        allowed = wish.elements & (z >= least[:, None])
        logits = self.net.element_logits(states, orbits.rows[:, -1:])[:, 0].float()
        # Forced positions may leave no element in ascending order: then any that is allowed.
        allowed = torch.where(allowed.any(1, keepdim=True), allowed, wish.elements)
        return 1 + pick(logits.masked_fill(~allowed, -torch.inf) / temperature, uniform)


def no_formula(group: Tensor) -> Formula:
    """Of as many crystals as there are groups (B,)."""
    nothing = torch.zeros_like(group)[:, None]
    return Formula(nothing, nothing)


def occupied_of(position: Tensor, species: Tensor, layout: Layout) -> Occupied:
    """The sequences of packed orbits: ``position``, ``species`` (O,); ``layout`` counts orbits."""
    order = torch.argsort((layout.crystal_idx * 2048 + position) * 128 + species)
    return as_written(position[order], species[order], layout)


def as_written(position: Tensor, species: Tensor, layout: Layout) -> Occupied:
    """Packed orbits (O,) as padded rows, in the order in which they come."""
    shape = (layout.n_crystals, max(layout.counts))
    place = (layout.crystal_idx, layout.atom_idx)
    rows = torch.zeros(shape, dtype=torch.int64, device=position.device)
    kinds = torch.zeros_like(rows).index_put(place, species)
    return Occupied(rows.index_put(place, position), kinds, layout.n_atoms)


def formula_of(crystals: Crystals, size: Tensor) -> Formula:
    """The composition of the primitive cells; ``size`` (O,): atoms of each orbit in them."""
    orbits = crystals.layout.orbits
    assert orbits is not None
    flat = orbits.orbit_crystal * MAX_Z + orbits.at_anchors(crystals.species) - 1
    table = torch.zeros(len(crystals) * MAX_Z, dtype=torch.int64, device=size.device)
    counts = table.index_add(0, flat, size).view(-1, MAX_Z)
    present = counts > 0
    width = int(present.sum(1).max())
    order = torch.argsort((~present).long(), dim=1, stable=True)[:, :width]
    kept = present.gather(1, order)
    return Formula((order + 1) * kept, counts.gather(1, order) * kept)


def _group_prior(statistics: Statistics) -> Tensor:
    """Logits of the groups, (231,): the training data's frequencies."""
    count = torch.full((N_GROUPS + 1,), UNSEEN, dtype=torch.float64)
    for key, number in statistics.templates.items():
        count[int(key.split(":")[0])] += number
    count[0] = 0
    return count.log().float()
