"""The planned samples cut into the batches in which they are drawn.

The cut follows from the request and the kind of device, never from the machine's free memory: an
interrupted run goes on with the same tiles. No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crystalctl.planning import Sample

MAX_TILE = 512
EDGE_BUDGET = {"cpu": 2048}
"""Atom pairs in one tile by kind of device; ``EDGE_BUDGET_ACCELERATOR`` for all others."""
EDGE_BUDGET_ACCELERATOR = 524288


def tiles(samples: Sequence[Sample], device_kind: str) -> list[list[Sample]]:
    """Batches of samples of bounded cost, in an order fixed by the request: the cheapest first.

    Free cells share a batch only with cells of as many atoms. Within templates there are so few
    pairs that a network call costs more by itself, so sizes are mixed. What begins at a known
    structure takes fewer calls and goes by itself.
    """
    budget = EDGE_BUDGET.get(device_kind, EDGE_BUDGET_ACCELERATOR)
    found: list[list[Sample]] = []
    kind, left = None, 0
    for sample in sorted(samples, key=lambda s: (_begun(s), s.pairs, s.n_atoms)):
        own = sample.n_atoms if sample.template is None else -_begun(sample)
        if own != kind or sample.pairs > left or len(found[-1]) == MAX_TILE:
            found.append([])
            kind, left = own, budget
        found[-1].append(sample)
        left -= sample.pairs
    return found


def _begun(sample: Sample) -> bool:
    return sample.template is not None and sample.template.start is not None
