"""Metric learning for templates: which elements replace each other, learnt from known structures.

Every structure is predicted from all others of its stoichiometry: the probability of its template
is the share of their votes that go to it (neighbourhood components analysis), and the cost of
exchanging elements is what is fitted: a part of the change of Mendeleev number plus the distance of
two learnt points. Ref: Goldberger et al., NIPS 17 (2004); retrieval of templates by a learnt
metric on compositions: Kusaba, Liu & Yoshida, Comput. Mater. Sci. 211, 111496 (2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from crystalctl.retrieval import Memory, plain_cost, same_counts
from crystalctl.symmetry.normaliser import canonical

WIDTH = 24
"""Dimensions in which the elements lie."""
QUERIES = 128
NEIGHBOURS = 1000
"""Structures that vote in one step where there are more."""
_FLOOR = 1e-3
"""Added to the share of votes: a structure whose template has next to none does not rule."""
_NEVER = -1e9


class Cost(nn.Module):
    """The cost of exchanging elements, (101, 101)."""

    plain: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("plain", torch.from_numpy(plain_cost()).float())
        self.point = nn.Parameter(torch.randn(len(self.plain), WIDTH) * 0.1)
        self.log_plain = nn.Parameter(torch.zeros(()))
        self.log_learnt = nn.Parameter(torch.full((), -1.0))

    def forward(self) -> Tensor:
        square = (self.point[:, None] - self.point).square().sum(-1)
        # The root has no gradient at 0, where an element meets itself.
        other = ~torch.eye(len(square), dtype=torch.bool)
        distance = torch.where(other, square + 1e-12, 1.0).sqrt() * other
        return self.log_plain.exp() * self.plain + self.log_learnt.exp() * distance


@dataclass(frozen=True)
class _Class:
    """N structures of one stoichiometry; ``orders`` are the P ways to exchange like-counted slots.

    ``species`` (N, S) by slot; ``template`` (N, P): number of the template with slots exchanged.
    """

    species: Tensor
    template: Tensor
    orders: list[tuple[int, ...]]


def learn_cost(
    memory: Memory,
    *,
    epochs: int = 6,
    lr: float = 5e-3,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float64]:
    """Costs (101, 101) under which the structures of ``memory`` predict each other best."""
    classes = [c for c in _classes(memory) if len(c.species) > 1]
    steps = [(c, i) for c in classes for i in range(math.ceil(len(c.species) / QUERIES))]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        cost = Cost()
        optimizer = torch.optim.AdamW(cost.parameters(), lr=lr, weight_decay=1e-4)
        total = max(1, epochs * len(steps))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total, pct_start=0.15)
        for epoch in range(epochs):
            shuffled = {id(c): torch.randperm(len(c.species)) for c in classes}
            for done, step in enumerate(torch.randperm(len(steps)).tolist(), start=1):
                here, i = steps[step]
                order = shuffled[id(here)]
                loss = _loss(cost(), here, order[i * QUERIES : (i + 1) * QUERIES], order)
                if loss is not None:
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                schedule.step()
                if progress is not None:
                    progress(epoch * len(steps) + done, total)
        learnt: NDArray[np.float64] = cost().detach().double().numpy()
    return learnt


def _classes(memory: Memory) -> list[_Class]:
    number: dict[object, int] = {}
    found = []
    for counts in memory.by_counts:
        entries = list(memory.entries(counts))
        slots = range(len(counts))
        orders = same_counts(slots, dict(enumerate(counts)))
        templates = []
        for entry in entries:
            there = (entry.rows[entry.species == z] for z in entry.elements)
            at = [tuple(sorted(rows.tolist())) for rows in there]
            forms = [canonical(tuple(at[slot] for slot in order)) for order in orders]
            templates.append([number.setdefault(form, len(number)) for form in forms])
        found.append(
            _Class(
                torch.tensor([entry.elements for entry in entries]),
                torch.tensor(templates),
                orders,
            )
        )
    return found


def _loss(cost: Tensor, here: _Class, queries: Tensor, order: Tensor) -> Tensor | None:
    """Mean of -log(share of votes for the true template); None where no other structure has it."""
    voters = torch.arange(len(order))
    if len(order) > NEIGHBOURS + QUERIES:
        chance = order[torch.randperm(len(order))[:NEIGHBOURS]]
        voters = torch.cat([queries, chance]).unique()
    votes = _votes(cost, here.species[queries], here.species[voters], here.orders)
    itself = (queries[:, None] == voters)[..., None]
    votes = votes.masked_fill(itself, _NEVER)
    right = (here.template[voters] == here.template[queries, :1, None]) & ~itself
    known = right.flatten(1).any(1)
    if not bool(known.any()):
        return None
    share = torch.logsumexp(votes.masked_fill(~right, _NEVER).flatten(1), 1)
    share = (share - torch.logsumexp(votes.flatten(1), 1)).exp()
    return -(share + _FLOOR).log()[known].sum() / QUERIES


def _votes(
    cost: Tensor, queries: Tensor, voters: Tensor, orders: Sequence[tuple[int, ...]]
) -> Tensor:
    """Log of the vote of each voter for each query and order of its slots, (Q, V, P)."""
    pairs = cost[queries.T[:, None, :, None], voters.T[None, :, None, :]]
    per_order = [
        sum((pairs[i, slot] for i, slot in enumerate(order)), torch.zeros(())) for order in orders
    ]
    return -torch.stack(per_order, -1)
