"""From a latent to a composition: how many elements, which, and how many atoms of each.

Ref: section 3.2, arXiv:2307.02707.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crystalctl.crystal.batch import MAX_Z, Layout
from crystalctl.networks.layers import perceptron


class CompositionDecoder(nn.Module):
    """``max_atoms``: the largest number of atoms in a cell."""

    def __init__(self, latent: int, hidden: int, max_atoms: int) -> None:
        super().__init__()
        self.max_atoms = max_atoms
        self.number = perceptron(latent, hidden, max_atoms)
        self.elements = perceptron(latent, hidden, MAX_Z)
        self.embedding = nn.Embedding(MAX_Z, latent)
        self.counts = perceptron(latent, hidden, max_atoms)

    @staticmethod
    def shares(species: Tensor, layout: Layout) -> Tensor:
        """The share of each element in each crystal, (C, 100)."""
        return _table(species, layout) / layout.n_atoms[:, None]

    def losses(self, z: Tensor, species: Tensor, layout: Layout) -> dict[str, Tensor]:
        """Of each crystal, (C,): number of elements, element set, counts.

        ``z`` (C, latent); ``species`` (A,) atomic numbers.
        """
        table = _table(species, layout)
        present = table > 0
        number = present.sum(1)
        owner, element = present.nonzero(as_tuple=True)
        count = F.cross_entropy(
            self._count_logits(z, owner, element), table[owner, element] - 1, reduction="none"
        )
        return {
            "number": F.cross_entropy(self.number(z).float(), number - 1, reduction="none"),
            "elements": F.binary_cross_entropy_with_logits(
                self.elements(z).float(), present.float(), reduction="none"
            ).mean(1),
            "counts": count.new_zeros(len(z)).index_add(0, owner, count) / number,
        }

    def _count_logits(self, z: Tensor, owner: Tensor, element: Tensor) -> Tensor:
        """Logits of 1 .. max_atoms atoms, one row for each (crystal, element)."""
        out: Tensor = self.counts(z[owner] * self.embedding(element)).float()
        return out

    def decode(self, z: Tensor, layout: Layout, allowed: Sequence[frozenset[int] | None]) -> Tensor:
        """The likeliest species of each crystal, grouped by element: (A,) atomic numbers.

        The number of atoms is that of ``layout``: of all counts with that sum the likeliest.
        ``allowed``: atomic numbers a crystal may contain, None = all.
        """
        keep = torch.zeros(len(z), MAX_Z, dtype=torch.bool)
        for row, numbers in enumerate(allowed):
            keep[row, slice(None) if numbers is None else [n - 1 for n in numbers]] = True
        keep = keep.to(z.device)
        logits = self.elements(z).float().masked_fill(~keep, -torch.inf)
        room = torch.minimum(layout.n_atoms, keep.sum(1))
        sizes = torch.arange(1, self.max_atoms + 1, device=z.device)
        impossible = sizes > room[:, None]
        number = self.number(z).float().masked_fill(impossible, -torch.inf).argmax(1) + 1
        most = int(number.max())
        element = logits.topk(most, 1).indices
        used = torch.arange(most, device=z.device) < number[:, None]
        owner = torch.arange(len(z), device=z.device)[:, None].expand_as(element)
        scores = self._count_logits(z, owner.flatten(), element.flatten()).log_softmax(1)
        count = likeliest_counts(scores.view(*element.shape, -1), used, layout.n_atoms)
        element = torch.where(used, element, MAX_Z)
        order = element.argsort(1)
        repeated = torch.repeat_interleave(
            element.gather(1, order).flatten(), count.gather(1, order).flatten()
        )
        return repeated + 1


def _table(species: Tensor, layout: Layout) -> Tensor:
    """How many atoms of each element a crystal has, (C, 100) int64."""
    table = torch.zeros(layout.n_crystals, MAX_Z, dtype=torch.int64, device=species.device)
    one = torch.ones_like(species)
    return table.index_put((layout.crystal_idx, species - 1), one, accumulate=True)


def likeliest_counts(scores: Tensor, used: Tensor, total: Tensor) -> Tensor:
    """Counts c >= 1 of the ``used`` elements with the given ``total`` and the highest score.

    ``scores`` (C, K, M): of c = 1 .. M atoms; ``used`` (C, K) bool; ``total`` (C,). Counts (C, K),
    0 where not used. Dynamic programming over the elements.
    """
    n_crystals, n_elements, width = scores.shape
    top = int(total.max())
    best = scores.new_full((n_crystals, top + 1), -torch.inf)
    best[:, 0] = 0
    choices = []
    for k in range(n_elements):
        ways = scores.new_full((n_crystals, min(width, top) + 1, top + 1), -torch.inf)
        ways[:, 0] = torch.where(used[:, k, None], -torch.inf, best)
        for c in range(1, ways.shape[1]):
            here = best[:, : top + 1 - c] + scores[:, k, c - 1, None]
            ways[:, c, c:] = torch.where(used[:, k, None], here, -torch.inf)
        best, choice = ways.max(1)
        choices.append(choice)
    left, counts = total.clone(), torch.zeros_like(used, dtype=torch.int64)
    for k in reversed(range(n_elements)):
        counts[:, k] = choices[k].gather(1, left[:, None])[:, 0]
        left = left - counts[:, k]
    return counts
