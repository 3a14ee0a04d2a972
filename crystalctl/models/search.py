"""The likeliest templates of a formula, by best first search over their sequences."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable
from itertools import count
from typing import NamedTuple

from crystalctl.symmetry.normaliser import Orbits

AT_ONCE = 64
"""Partial templates that are continued in one network call."""
MOST_CALLS = 30
"""Network calls for one formula at most."""
LEAST = 1e-4
"""Templates that are less probable are not looked for."""


class Partial(NamedTuple):
    """-log p, the group, what is occupied so far, and the name of the template once complete."""

    cost: float
    group: int
    orbits: tuple[tuple[int, int], ...]
    complete: Orbits | None = None


class Found(NamedTuple):
    """A template: its name, its probability, and the likeliest of its sequences."""

    name: Orbits
    probability: float
    orbits: Orbits


def best_first(
    start: Iterable[Partial],
    extend: Callable[[list[Partial]], Iterable[Partial]],
    n: int,
) -> list[Found]:
    """Up to ``n`` different templates, the likeliest first.

    A partial template is at least as probable as all that it can become, so the first complete ones
    are the best. Several sequences of one template add up.
    """
    ticket = count()
    found: dict[Orbits, Found] = {}
    edge = [(one.cost, next(ticket), one) for one in start]
    heapq.heapify(edge)
    for _ in range(MOST_CALLS):
        batch: list[Partial] = []
        while edge and len(batch) < AT_ONCE and edge[0][0] < -math.log(LEAST):
            cost, _, partial = heapq.heappop(edge)
            if (name := partial.complete) is None:
                batch.append(partial)
            else:
                before = found.get(name, Found(name, 0.0, partial.orbits))
                found[name] = before._replace(probability=before.probability + math.exp(-cost))
        best = sorted((one.probability for one in found.values()), reverse=True)[:n]
        if not batch or (len(best) == n and math.exp(-batch[0].cost) <= best[-1]):
            break
        for new in extend(batch):
            heapq.heappush(edge, (new.cost, next(ticket), new))
    return sorted(found.values(), key=lambda one: (-one.probability, one.name))[:n]
