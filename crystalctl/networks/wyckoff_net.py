"""The transformer that writes which positions are occupied, by which elements, and when to stop.

Ref: Sec. 4.3 and App. A.4.1, arXiv:2505.10994. Orbits come by position, then by atomic number, so
that a set of orbits has one sequence; there is no positional encoding, as what came before is a
set. What cannot be has no probability: going back, a second orbit on a position without freedom,
more atoms than a cell may have. Where a formula is known, only what leaves a way to complete it
remains, and the sequence ends exactly when all its atoms are placed.

The paper's context is group and lattice. Here it is the group and either the lattice or a formula.

Symbols: B crystals, L orbits, P = 27 positions of a group at most, E elements of a formula,
M atoms of a primitive cell at most.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crystalctl.crystal.batch import MAX_Z
from crystalctl.networks.layers import perceptron
from crystalctl.networks.template_net import Positions


@dataclass(frozen=True)
class Formula:
    """``elements`` and ``counts`` (B, E): Z and atoms of the primitive cell, 0 = padding.

    A row of zeros says that no formula is known.
    """

    elements: Tensor
    counts: Tensor

    @property
    def known(self) -> Tensor:
        """(B,) bool."""
        return self.counts.sum(1) > 0


@dataclass(frozen=True)
class Occupied:
    """Orbits in order: table ``rows`` and ``species`` (B, L), of which the first ``n`` (B,) are."""

    rows: Tensor
    species: Tensor
    n: Tensor

    @property
    def valid(self) -> Tensor:
        """(B, L) bool."""
        return torch.arange(self.rows.shape[1], device=self.n.device) < self.n[:, None]


@dataclass(frozen=True)
class Wish:
    """Limits of what is drawn: ``elements`` (B, 100) and ``sizes`` (B, M + 1) allowed, bool."""

    elements: Tensor
    sizes: Tensor


class SlotSum(nn.Module):
    """Elements with numbers of atoms -> one vector, whatever their order."""

    def __init__(self, hidden: int, max_atoms: int) -> None:
        super().__init__()
        self.element = nn.Embedding(MAX_Z + 1, hidden, padding_idx=0)
        self.count = nn.Embedding(max_atoms + 1, hidden)
        self.out = perceptron(hidden, hidden, hidden)

    def forward(self, elements: Tensor, counts: Tensor) -> Tensor:
        """(..., E) each -> (..., hidden); padding has no part."""
        state = self.out(self.element(elements) + self.count(counts))
        total: Tensor = (state * (elements > 0)[..., None]).sum(-2)
        return total


class GroupNet(nn.Module):
    """Logits of the group given a formula, added to those of the training data."""

    def __init__(self, hidden: int, max_atoms: int, n_groups: int) -> None:
        super().__init__()
        self.slots = SlotSum(hidden, max_atoms)
        self.out = perceptron(hidden, hidden, n_groups + 1)

    def forward(self, formula: Formula) -> Tensor:
        """(B, 231), column 0 unused."""
        found: Tensor = self.out(self.slots(formula.elements, formula.counts))
        return found


class Rules(nn.Module):
    """What can come next: bookkeeping without parameters.

    ``reach`` (G + 1, P + 2, M + 1) bool: whether positions from the p-th of a group on can add up
    to m atoms.
    """

    size_of: Tensor
    fixed: Tensor
    first_of: Tensor
    reach: Tensor

    def __init__(self, positions: Positions, reach: Tensor) -> None:
        super().__init__()
        self.max_atoms = reach.shape[2] - 1
        self.register_buffer("size_of", positions.size, persistent=False)
        self.register_buffer("fixed", positions.fixed, persistent=False)
        self.register_buffer("first_of", positions.first, persistent=False)
        self.register_buffer("reach", reach, persistent=False)

    def left_of(self, formula: Formula, orbits: Occupied) -> Tensor:
        """Atoms of each element still to be placed before each orbit, (B, L + 1, E)."""
        size = self.size_of[orbits.rows] * orbits.valid
        mine = orbits.species[..., None] == formula.elements[:, None]
        placed = F.pad((size[..., None] * mine).cumsum(1), (0, 0, 1, 0))
        return (formula.counts[:, None] - placed).clamp(min=0)

    def placed(self, orbits: Occupied) -> Tensor:
        """Atoms placed before each orbit, (B, L + 1)."""
        return F.pad((self.size_of[orbits.rows] * orbits.valid).cumsum(1), (1, 0))

    def there(self, group: Tensor) -> Tensor:
        """Table rows of all positions of each group, (B, P), the last one repeated."""
        index = torch.arange(self.reach.shape[1] - 2, device=group.device)
        last = self.first_of[group + 1] - 1
        return torch.minimum(self.first_of[group][:, None] + index, last[:, None])

    def _before(self, group: Tensor, orbits: Occupied) -> tuple[Tensor, Tensor]:
        """Row and atomic number of the orbit before each, (B, L + 1); what comes first sees 0."""
        row = F.pad(orbits.rows, (1, 0))
        row = torch.cat([self.first_of[group][:, None], row[:, 1:]], 1)
        return row, F.pad(orbits.species, (1, 0))

    def ways(self, group: Tensor, formula: Formula, left: Tensor, orbits: Occupied) -> Tensor:
        """Whether element e of the formula may be put on position p next: (B, L + 1, P, E) bool.

        All others, and what is left of e, must find positions from there on; two elements that need
        the same one are not noticed. ``left`` as of ``left_of``.
        """
        there = self.there(group)
        size, fixed = self.size_of[there], self.fixed[there].long()
        index = there - self.first_of[group][:, None]
        before, z_before = self._before(group, orbits)
        here = there[:, None] == before[..., None]
        rest = left[:, :, None] - size[:, None, :, None]
        after = self._reached(group, (index + fixed)[:, None, :, None], rest)
        same = self._reached(group, (index + fixed)[:, None, :, None], left[:, :, None])
        beyond = self._reached(group, (index + 1)[:, None, :, None], left[:, :, None])
        z = formula.elements
        others = torch.where(
            (z[:, None] >= z[..., None])[:, None, None], same[..., None, :], beyond[..., None, :]
        )
        others = others | torch.eye(z.shape[1], dtype=torch.bool, device=z.device)
        rising = ~here[..., None] | (z[:, None, None] >= z_before[..., None, None])
        return after & others.all(4) & rising & (z > 0)[:, None, None]

    def _reached(self, group: Tensor, index: Tensor, atoms: Tensor) -> Tensor:
        """``reach`` of broadcast indices; False for negative numbers of atoms."""
        index, atoms = torch.broadcast_tensors(index, atoms)
        owner = group.view(-1, *[1] * (atoms.dim() - 1))
        found = self.reach[owner, index, atoms.clamp(min=0)]
        return found & (atoms >= 0)

    def positions_possible(
        self,
        group: Tensor,
        formula: Formula,
        orbits: Occupied,
        ways: Tensor,
        wish: Wish | None = None,
    ) -> Tensor:
        """(B, L + 1, P + 1) bool, stop last."""
        there = self.there(group)
        width = there.shape[1]
        exists = (
            torch.arange(width, device=group.device)
            < (self.first_of[group + 1] - self.first_of[group])[:, None]
        )
        before, z_before = self._before(group, orbits)
        first = z_before == 0
        repeated = (there[:, None] == before[..., None]) & ~first[..., None]
        rising = (there[:, None] >= before[..., None]) & ~(repeated & self.fixed[there][:, None])
        total = self.placed(orbits)
        size = self.size_of[there]
        free = total[..., None] + size[:, None] <= self.max_atoms
        stop = ~first
        if wish is not None:
            z = torch.arange(1, MAX_Z + 1, device=group.device)
            later = wish.elements[:, None] & (z >= z_before[..., None])
            free = free & (~repeated | later.any(2)[..., None])
            index = there - self.first_of[group][:, None] + self.fixed[there].long()
            m = torch.arange(self.max_atoms + 1, device=group.device)
            missing = m - (total[..., None] + size[:, None])[..., None]
            fits = self._reached(group, index[:, None, :, None], missing)
            free = free & (fits & wish.sizes[:, None, None]).any(3)
            stop = stop & wish.sizes.gather(1, total.clamp(max=self.max_atoms))
        known = formula.known[:, None]
        done = self.left_of(formula, orbits).sum(2) == 0
        possible = torch.where(known[..., None], ways.any(3), free) & rising & exists[:, None]
        return torch.cat([possible, torch.where(known, done & ~first, stop)[..., None]], 2)

    def elements_possible(
        self,
        formula: Formula,
        orbits: Occupied,
        ways: Tensor,
        index: Tensor,
        wish: Wish | None = None,
    ) -> Tensor:
        """Elements of each orbit, whose position is the ``index``-th (B, L): (B, L, 100) bool."""
        z = torch.arange(1, MAX_Z + 1, device=index.device)
        same = F.pad(orbits.rows[:, 1:] == orbits.rows[:, :-1], (1, 0))
        least = torch.where(same, F.pad(orbits.species[:, :-1], (1, 0)), 0)
        rising = z >= least[..., None]
        if wish is not None:
            rising = rising & wish.elements[:, None]
        n_slots = ways.shape[3]
        chosen = index[..., None, None].expand(-1, -1, 1, n_slots)
        slots = ways[:, : index.shape[1]].gather(2, chosen)[:, :, 0]
        element = formula.elements[:, None].expand_as(slots)
        of_formula = torch.zeros(*index.shape, MAX_Z + 1, dtype=torch.bool, device=index.device)
        of_formula = of_formula.scatter(2, element, slots)[..., 1:]
        return torch.where(formula.known[:, None, None], of_formula, rising)


class WyckoffNet(nn.Module):
    """``kinds`` (G + 1, 62) and ``features`` (rows, 209) of groups and positions; see ``Rules``."""

    kinds: Tensor
    features: Tensor

    def __init__(
        self,
        positions: Positions,
        reach: Tensor,
        kinds: Tensor,
        features: Tensor,
        *,
        hidden: int,
        n_layers: int,
        n_heads: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.rules = Rules(positions, reach)
        self.kind = nn.Linear(kinds.shape[1], hidden)
        self.lattice = perceptron(7, hidden, hidden)
        self.formula = SlotSum(hidden, self.rules.max_atoms)
        self.left = SlotSum(hidden, self.rules.max_atoms)
        self.place = nn.Linear(features.shape[1], hidden)
        self.row = nn.Embedding(len(features), hidden)
        self.element = nn.Embedding(MAX_Z + 1, hidden)
        self.token = perceptron(3 * hidden, hidden, hidden)
        self.start = nn.Parameter(torch.zeros(hidden))
        self.stop = nn.Parameter(torch.randn(hidden) * 0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                hidden, n_heads, 4 * hidden, dropout, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(hidden)
        self.choose = perceptron(2 * hidden, hidden, hidden)
        self.species = nn.Linear(hidden, MAX_Z)
        nn.init.normal_(self.row.weight, std=0.02)
        nn.init.normal_(self.element.weight, std=0.1)
        self.register_buffer("kinds", kinds, persistent=False)
        self.register_buffer("features", features, persistent=False)

    def context(self, group: Tensor, parameters: Tensor | None, formula: Formula) -> Tensor:
        """(B, H); ``parameters`` (B, 6) in Å and degrees count where no formula is known."""
        found: Tensor = self.kind(self.kinds[group])
        if parameters is not None:
            lengths = parameters[:, :3].clamp(min=0.1).log()
            cosines = torch.cos(torch.deg2rad(parameters[:, 3:]))
            known = torch.cat([lengths, cosines, lengths.sum(1, keepdim=True) / 3], 1)
            found = found + self.lattice(known).masked_fill(formula.known[:, None], 0.0)
        found = found + self.formula(formula.elements, formula.counts)
        return found

    def forward(
        self, context: Tensor, group: Tensor, formula: Formula, orbits: Occupied
    ) -> tuple[Tensor, Tensor]:
        """Logits of the next position, stop last, (B, L + 1, P + 1) and of elements (B, L, 100).

        Row l of the first sees l orbits. What is impossible has -inf; rows beyond the end mean
        nothing.
        """
        states = self.states(context, formula, orbits)
        left = self.rules.left_of(formula, orbits)
        there = self.rules.there(group)
        logits = self.position_logits(states, there)
        ways = self.rules.ways(group, formula, left, orbits)
        possible = self.rules.positions_possible(group, formula, orbits, ways)
        index = (orbits.rows - self.rules.first_of[group][:, None]).clamp(min=0)
        element = self.element_logits(states[:, :-1], orbits.rows)
        allowed = self.rules.elements_possible(formula, orbits, ways, index)
        return (
            logits.masked_fill(~possible, -torch.inf),
            element.masked_fill(~allowed, -torch.inf),
        )

    def states(self, context: Tensor, formula: Formula, orbits: Occupied) -> Tensor:
        """What is known after each orbit, (B, L + 1, H)."""
        n_tokens = orbits.rows.shape[1] + 1
        embedded = self.place(self.features[orbits.rows]) + self.row(orbits.rows)
        both = torch.cat([embedded, self.element(orbits.species)], 2)
        wide = context[:, None].expand(-1, n_tokens - 1, -1)
        tokens = self.token(torch.cat([both, wide], 2))
        tokens = torch.cat([(self.start + context)[:, None], tokens], 1)
        left = self.rules.left_of(formula, orbits)
        h = tokens + self.left(formula.elements[:, None].expand_as(left), left)
        later = torch.ones(n_tokens, n_tokens, dtype=torch.bool, device=h.device).triu(1)
        for block in self.blocks:
            h = block(h, src_mask=later)
        normed: Tensor = self.norm(h)
        return normed

    def position_logits(self, states: Tensor, there: Tensor) -> Tensor:
        """Of the positions ``there`` (B, P) and of stopping, (B, L + 1, P + 1)."""
        keys = self.place(self.features[there]) + self.row(there)
        stop = self.stop.expand(len(keys), 1, -1)
        both = torch.cat([keys, stop], 1) / states.shape[2] ** 0.5
        return torch.einsum("blh,bph->blp", states, both)

    def element_logits(self, states: Tensor, rows: Tensor) -> Tensor:
        """Of the elements on ``rows`` (B, L), (B, L, 100)."""
        key = self.place(self.features[rows]) + self.row(rows)
        logits: Tensor = self.species(self.choose(torch.cat([states, key], 2)))
        return logits
