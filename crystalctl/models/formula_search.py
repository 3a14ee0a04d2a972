"""Templates for a formula, by the occupation's transformer: the likeliest first, none twice."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache

import torch

from crystalctl.models.occupation import Occupation
from crystalctl.models.proposer import position_facts
from crystalctl.models.search import Partial, best_first
from crystalctl.networks.wyckoff_net import Formula, Occupied
from crystalctl.symmetry.assignments import may_hold
from crystalctl.symmetry.normaliser import Orbits, canonical_orbits, equivalent_orbits
from crystalctl.symmetry.tables import N_GROUPS, tables


@torch.no_grad()
def propose(
    occupation: Occupation,
    composition: Mapping[int, int],
    n: int,
    *,
    groups: Collection[int] | None = None,
) -> list[tuple[Orbits, float]]:
    """Up to ``n`` different templates and their probabilities, the likeliest first.

    ``composition``: Z -> atoms of the primitive cell. Each in its likeliest setting, with the
    probability of all its settings that were found.
    """
    if sum(composition.values()) > occupation.max_atoms:
        return []
    formula = _formula(occupation, composition)
    able = _groups(occupation, formula, composition, groups)
    start = (Partial(-log_p, group, ()) for group, log_p in able)
    found = best_first(start, lambda batch: _extended(occupation, batch, formula, composition), n)
    return [(one.orbits, one.probability) for one in found]


def _formula(occupation: Occupation, composition: Mapping[int, int]) -> Formula:
    known = sorted(composition.items())
    device = occupation.net.rules.fixed.device
    return Formula(
        torch.tensor([[z for z, _ in known]], device=device),
        torch.tensor([[count for _, count in known]], device=device),
    )


def _groups(
    occupation: Occupation,
    formula: Formula,
    composition: Mapping[int, int],
    groups: Collection[int] | None,
) -> Iterator[tuple[int, float]]:
    """Those that may hold the composition, with log p among them."""
    wanted = range(1, N_GROUPS + 1) if groups is None else groups
    able = [g for g in wanted if all(may_hold(g, k) for k in composition.values())]
    if able:
        log_p = occupation.group_log_probability(formula)[0, able].log_softmax(0)
        yield from zip(able, log_p.tolist(), strict=True)


def _extended(
    occupation: Occupation, batch: list[Partial], formula: Formula, composition: Mapping[int, int]
) -> Iterator[Partial]:
    """Each partial template with every possible next orbit."""
    device = occupation.net.rules.fixed.device
    group = torch.tensor([one.group for one in batch], device=device)
    given = _padded([one.orbits for one in batch], device)
    formulas = Formula(
        formula.elements.expand(len(batch), -1), formula.counts.expand(len(batch), -1)
    )
    context = occupation.net.context(group, None, formulas)
    states = occupation.net.states(context, formulas, given)
    last = given.n
    rows = torch.arange(len(batch), device=device)
    state = states[rows, last]
    left = occupation.net.rules.left_of(formulas, given)
    ways = occupation.net.rules.ways(group, formulas, left, given)
    possible = occupation.net.rules.positions_possible(group, formulas, given, ways)[rows, last]
    there = occupation.net.rules.there(group)
    logits = occupation.net.position_logits(state[:, None], there)[:, 0].float()
    position = logits.masked_fill(~possible, -torch.inf).log_softmax(1)[:, :-1]
    wide = state[:, None].expand(-1, there.shape[1], -1)
    species = occupation.net.element_logits(wide, there).float()
    slots = formula.elements[0] - 1
    ways = ways[rows, last]
    species = species[..., slots].masked_fill(~ways, -torch.inf).log_softmax(2)
    both = (position[..., None] + species).tolist()
    total = sum(composition.values())
    for one, table, place in zip(batch, both, there.tolist(), strict=True):
        done = sum(_size(row) for row, _ in one.orbits)
        for row, costs in zip(place, table, strict=True):
            for z, log_p in zip(sorted(composition), costs, strict=True):
                if log_p > -math.inf:  # nan, where nothing can be, is not
                    orbits = (*one.orbits, (row, z))
                    whole = done + _size(row) == total
                    name = canonical_orbits(orbits) if whole else None
                    yield Partial(one.cost - log_p, one.group, orbits, name)


@torch.no_grad()
def probabilities(
    occupation: Occupation,
    composition: Mapping[int, int],
    templates: Sequence[Orbits],
    *,
    groups: Collection[int] | None = None,
) -> list[float]:
    """The probability of each template of a composition, all its settings together."""
    formula = _formula(occupation, composition)
    known = dict(_groups(occupation, formula, composition, groups))
    found = []
    for template in templates:
        settings = equivalent_orbits(tuple(sorted(template)))
        group = int(tables().group[template[0][0]])
        device = occupation.net.rules.fixed.device
        position, element = occupation.log_probability(
            torch.full((len(settings),), group, device=device),
            None,
            Formula(
                formula.elements.expand(len(settings), -1),
                formula.counts.expand(len(settings), -1),
            ),
            _padded(settings, device),
        )
        log_p = (position + element).nan_to_num(nan=-math.inf).logsumexp(0)
        found.append(math.exp(float(log_p) + known.get(group, -math.inf)))
    return found


def _padded(sequences: Sequence[Sequence[tuple[int, int]]], device: torch.device) -> Occupied:
    length = max(map(len, sequences))
    rows, species = (
        torch.tensor(
            [[*(pair[which] for pair in one), *[0] * (length - len(one))] for one in sequences],
            dtype=torch.int64,
            device=device,
        ).view(len(sequences), length)
        for which in (0, 1)
    )
    return Occupied(rows, species, torch.tensor([len(one) for one in sequences], device=device))


@cache
def _size(row: int) -> int:
    return int(position_facts().size[row])
