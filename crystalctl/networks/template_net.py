"""The network of the template proposer: composition, then group, then position after position."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crystalctl.crystal.elements import MENDELEEV

MOST_COUNT = 128
"""Atom counts are embedded up to here; larger ones share an embedding."""


@dataclass(frozen=True)
class Positions:
    """All P Wyckoff positions of the G groups, by table row.

    ``size`` (P,): atoms in the primitive cell; ``site`` (P,): number of the site symmetry symbol,
    of which there are ``n_sites``; ``fixed`` (P,) bool: without freedom, so that one orbit takes
    it; ``first`` (G + 2,): first row of group g at [g], [0] unused and the number of rows last.
    """

    size: Tensor
    site: Tensor
    n_sites: int
    fixed: Tensor
    first: Tensor


@dataclass(frozen=True)
class Sequences:
    """B templates as padded sequences; row 0 of an axis of elements or orbits comes first.

    ``elements`` and ``counts`` (B, E): atomic numbers and atoms of the primitive cell, 0 = padding.
    ``group`` (B,) number. ``rows`` (B, L): position of each orbit, ``kinds`` (B, L): which element
    it holds, ``left`` (B, L): atoms of that element still to be placed, before this orbit;
    ``valid`` (B, L) bool.
    """

    elements: Tensor
    counts: Tensor
    group: Tensor
    rows: Tensor
    kinds: Tensor
    left: Tensor
    valid: Tensor


class TemplateNet(nn.Module):
    """A transformer over (elements, group, orbits).

    Elements see each other; the group sees the elements; an orbit sees all that came before it.
    """

    size_of: Tensor
    site_of: Tensor
    fixed: Tensor
    first_of: Tensor

    def __init__(
        self, positions: Positions, *, hidden: int, n_layers: int, n_heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.n_heads = n_heads
        n_groups, n_positions = len(positions.first) - 2, len(positions.size)
        self.element = nn.Embedding(len(MENDELEEV) + 1, hidden)
        self.count = nn.Embedding(MOST_COUNT + 1, hidden)
        self.size = nn.Embedding(MOST_COUNT + 1, hidden)
        self.left = nn.Embedding(MOST_COUNT + 1, hidden)
        self.group_query = nn.Parameter(torch.zeros(hidden))
        self.group_in = nn.Embedding(n_groups + 1, hidden)
        self.group_out = nn.Linear(hidden, n_groups + 1)
        self.row_in = nn.Embedding(n_positions, hidden)
        self.row_out = nn.Embedding(n_positions, hidden)
        self.site = nn.Embedding(positions.n_sites, hidden)
        self.share = nn.Embedding(2 * MOST_COUNT, hidden)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                hidden, n_heads, 4 * hidden, dropout, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(hidden)
        self.drop = nn.Dropout(dropout)
        # Facts, not parameters: they are not in the file of the weights.
        self.register_buffer("size_of", positions.size, persistent=False)
        self.register_buffer("site_of", positions.site, persistent=False)
        self.register_buffer("fixed", positions.fixed, persistent=False)
        self.register_buffer("first_of", positions.first, persistent=False)
        for embedding in (self.row_in, self.row_out):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, given: Sequences) -> tuple[Tensor, Tensor]:
        """Logits of the group (B, 231) and of each orbit's position (B, L, P), P = 27 at most.

        Positions count from the first of the group; those that cannot be have -inf.
        """
        h = self._tokens(given)
        n_elements = given.elements.shape[1]
        hidden = self._mask(given)
        for block in self.blocks:
            h = block(h, src_mask=hidden)
        h = self.norm(h)
        group = self.group_out(h[:, n_elements])
        return group, self._positions(h[:, n_elements + 1 :], given)

    def _tokens(self, given: Sequences) -> Tensor:
        size = given.counts.sum(1, keepdim=True).clamp(max=MOST_COUNT)
        element = self.element(given.elements)
        atoms = element + self.count(given.counts.clamp(max=MOST_COUNT)) + self.size(size)
        query = (self.group_query + self.size(size[:, 0]))[:, None]
        before = self.row_in(given.rows[:, :-1]) + self.site(self.site_of[given.rows[:, :-1]])
        start = torch.zeros_like(query)
        previous = torch.cat([start, before + self._of_kind(element, given.kinds[:, :-1])], 1)
        orbit = (
            previous[:, : given.rows.shape[1]]
            + self.group_in(given.group)[:, None]
            + 2 * self._of_kind(element, given.kinds)
            + self.left(given.left.clamp(max=MOST_COUNT))
        )
        tokens: Tensor = self.drop(torch.cat([atoms, query, orbit], 1))
        return tokens

    @staticmethod
    def _of_kind(element: Tensor, kinds: Tensor) -> Tensor:
        return element.gather(1, kinds[..., None].expand(-1, -1, element.shape[2]))

    def _mask(self, given: Sequences) -> Tensor:
        """True where a token must not look, (B * heads, T, T)."""
        n_batch, n_elements = given.elements.shape
        n_tokens = n_elements + 1 + given.rows.shape[1]
        device = given.elements.device
        order = torch.arange(n_tokens, device=device)
        seen = (order[None, :] <= order[:, None]) | (order[None, :] < n_elements)
        seen = seen & ~((order[:, None] < n_elements) & (order[None, :] >= n_elements))
        real = torch.ones(n_batch, n_tokens, dtype=torch.bool, device=device)
        real[:, :n_elements] = given.elements > 0
        allowed = seen & real[:, None, :] | torch.eye(n_tokens, dtype=torch.bool, device=device)
        return ~allowed.repeat_interleave(self.n_heads, 0)

    def _positions(self, h: Tensor, given: Sequences) -> Tensor:
        first = self.first_of[given.group]
        n_there = self.first_of[given.group + 1] - first
        most = int(n_there.max())
        index = torch.arange(most, device=h.device)
        there = (first[:, None] + index).clamp(max=len(self.fixed) - 1)
        out = (
            self.row_out(there)
            + self.site(self.site_of[there])
            + self.share(self.size_of[there].clamp(max=2 * MOST_COUNT - 1))
        )
        logits = torch.einsum("blh,bph->blp", h, out) / h.shape[2] ** 0.5
        masked: Tensor = logits.masked_fill(
            ~self._possible(given, there, index < n_there[:, None]), -torch.inf
        )
        return masked

    def _possible(self, given: Sequences, there: Tensor, exists: Tensor) -> Tensor:
        """Where each orbit can be, given those before it: (B, L, P) bool."""
        fits = self.size_of[there][:, None] <= given.left[..., None]
        used = torch.zeros_like(fits)
        for step in range(1, given.rows.shape[1]):
            used[:, step] = used[:, step - 1] | (there == given.rows[:, step - 1, None])
        free = ~(used & self.fixed[there][:, None])
        # Within an element positions ascend, so that a set of them has one sequence only.
        least = torch.zeros_like(given.rows)
        same = given.kinds[:, 1:] == given.kinds[:, :-1]
        least[:, 1:] = torch.where(same, given.rows[:, :-1], 0)
        rising = there[:, None] >= least[..., None]
        possible: Tensor = fits & free & rising & exists[:, None]
        return possible
